//go:build root

package qemu

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/vmm"
)

// TestStartFails starts what can't run: the error says why, and no process or descriptor is left.
func TestStartFails(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Fatalf("QEMU is not installed: %v", err)
	}
	file := filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(file, []byte(strings.Repeat("no kernel ", 1000)), 0o644); err != nil {
		t.Fatal(err)
	}
	good := vmm.Spec{
		ID: "a", VCPUs: 1, MemoryBytes: 128 << 20, Kernel: file, Initramfs: file,
		Acceleration: vmm.Emulated, Jail: vmm.Jail{UID: 2000102, GID: 2000102},
	}
	tests := map[string]struct {
		binary string
		change func(*vmm.Spec)
		is     func(error) bool
		text   string
	}{
		"no such netns":   {"", func(s *vmm.Spec) { s.Jail.NetNS = "/run/netns/missing" }, errdefs.IsNotFound, "/run/netns/missing"},
		"no such cgroup":  {"", func(s *vmm.Spec) { s.Jail.Cgroup = "/missing/vm" }, errdefs.IsNotFound, "/missing/vm"},
		"no kernel":       {"", func(*vmm.Spec) {}, errdefs.IsUnavailable, "the VMM ended with code 1"},
		"tap is no tap":   {"", func(s *vmm.Spec) { s.NICs = []vmm.NIC{{Tap: os.Stdin, MAC: []byte{2, 0, 0, 0, 0, 1}, MTU: 1500}} }, errdefs.IsUnavailable, "the VMM ended with code 1"},
		"QEMU is no QEMU": {"/bin/true", func(*vmm.Spec) {}, errdefs.IsUnavailable, "the VMM ended with code 0"},
	}
	before := countFiles(t)
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			spec := good
			tc.change(&spec)
			_, err := New(Options{Binary: tc.binary}).Start(t.Context(), spec)
			if !tc.is(err) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("Start: %v", err)
			}
			t.Log(err)
		})
	}
	if after := countFiles(t); after > before+1 { // the poller's
		t.Errorf("%d descriptors, %d before", after, before)
	}
	children, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range children {
		if data, err := os.ReadFile(name); err == nil && len(data) > 0 {
			t.Errorf("processes are left: %s", data)
		}
	}
}

func countFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
