package vmmtest

import (
	"bytes"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"bulkhead.dev/bulkhead/internal/vmm"
)

func fakeSpec(id string) vmm.Spec {
	return vmm.Spec{ID: id, VCPUs: 1, MemoryBytes: 256 << 20, Kernel: "kernel", Initramfs: "initramfs", Acceleration: vmm.Emulated}
}

func TestFakeConforms(t *testing.T) {
	fake := NewFakeGuest(ServeGuest)
	Run(t, Harness{
		Driver: fake,
		Spec:   fakeSpec("any"),
		Kill: func(t *testing.T, id string, _ vmm.VM) {
			if err := fake.Kill(id); err != nil {
				t.Fatal(err)
			}
		},
	})
	if ids := fake.Running(); len(ids) != 0 {
		t.Errorf("VMs are left: %v", ids)
	}
}

func TestFakeInspection(t *testing.T) {
	fake := NewFake(func(conn net.Conn) { _, _ = conn.Read(make([]byte, 1)) })
	for _, id := range []string{"a", "b"} {
		vm, err := fake.Start(t.Context(), fakeSpec(id))
		if err != nil {
			t.Fatal(err)
		}
		defer vm.Stop(t.Context())
	}
	if diff := cmp.Diff([]string{"a", "b"}, fake.Running()); diff != "" {
		t.Errorf("running (-want +got):\n%s", diff)
	}
	if err := fake.Kill("a"); err != nil {
		t.Fatal(err)
	}
	if err := fake.Kill("a"); !errdefs.IsNotFound(err) {
		t.Errorf("second Kill: %v, want ErrNotFound", err)
	}
	if spec, err := fake.Spec("b"); err != nil || spec.ID != "b" {
		t.Errorf("Spec: %+v, %v", spec, err)
	}
}

func TestFakeFails(t *testing.T) {
	broken := errors.New("broken on purpose")
	on := "start"
	fake := NewFake(func(conn net.Conn) { _, _ = conn.Read(make([]byte, 1)) })
	fake.Fail = func(operation, id string) error {
		if operation == on && id == "a" {
			return broken
		}
		return nil
	}
	if _, err := fake.Start(t.Context(), fakeSpec("a")); !errors.Is(err, broken) {
		t.Errorf("Start: %v", err)
	}
	on = "add-disk"
	vm, err := fake.Start(t.Context(), fakeSpec("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Stop(t.Context())
	if _, err := vm.AddDisk(t.Context(), vmm.Disk{File: image(t, 512)}); !errors.Is(err, broken) {
		t.Errorf("AddDisk: %v", err)
	}
	on = "remove-disk"
	at, err := vm.AddDisk(t.Context(), vmm.Disk{File: image(t, 512)})
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.RemoveDisk(t.Context(), at); !errors.Is(err, broken) {
		t.Errorf("RemoveDisk: %v", err)
	}
}

func TestFakeHasRoomForSoManyDisks(t *testing.T) {
	fake := NewFake(func(conn net.Conn) { _, _ = conn.Read(make([]byte, 1)) })
	vm, err := fake.Start(t.Context(), fakeSpec("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Stop(t.Context())
	file := image(t, 512)
	for i := range fakeLUNs {
		if _, err := vm.AddDisk(t.Context(), vmm.Disk{File: file}); err != nil {
			t.Fatalf("disk %d: %v", i, err)
		}
	}
	if _, err := vm.AddDisk(t.Context(), vmm.Disk{File: file}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("one disk too many: %v, want ErrResourceExhausted", err)
	}
}

func TestCPIO(t *testing.T) {
	files := []cpioFile{{Name: "dir", Dir: true}, {Name: "dir/file", Data: []byte("hello")}, {Name: "empty"}}
	var first, second bytes.Buffer
	if err := errors.Join(writeCPIO(&first, files), writeCPIO(&second, files)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("equal files give different bytes")
	}
	if first.Len()%4 != 0 {
		t.Errorf("%d bytes, not a multiple of 4", first.Len())
	}
	want := "070701" + "00000002" + "000081ed" + "00000000" + "00000000" + "00000001" + "00000000" + "00000005" +
		"00000000" + "00000000" + "00000000" + "00000000" + "00000009" + "00000000" + "dir/file\x00\x00" + "hello\x00\x00\x00"
	if !strings.Contains(first.String(), want) {
		t.Errorf("the archive %q lacks %q", first.String(), want)
	}
	if !strings.HasSuffix(first.String(), "TRAILER!!!\x00\x00\x00\x00") {
		t.Errorf("the archive's end: %q", first.String())
	}
}
