package vmmtest

import (
	"net"
	"testing"

	"bulkhead.dev/bulkhead/internal/vmm"
)

func TestFakeKill(t *testing.T) {
	f := NewFake(func(conn net.Conn) { conn.Read(make([]byte, 1)) })
	vm, err := f.Start(t.Context(), vmm.Spec{ID: "a", VCPUs: 1, MemoryBytes: 1 << 20, Kernel: "k", Initramfs: "i", Acceleration: vmm.Emulated})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Kill("a"); err != nil {
		t.Fatal(err)
	}
	if err := vm.Wait(t.Context()); err == nil {
		t.Error("Wait after Kill returned nil")
	}
	if got := f.Running(); len(got) != 0 {
		t.Errorf("running after Kill: %v", got)
	}
}
