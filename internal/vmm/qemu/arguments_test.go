package qemu

import (
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bulkhead.dev/bulkhead/internal/vmm"
)

var update = flag.Bool("update", false, "write the golden files")

func TestArguments(t *testing.T) {
	tests := map[string]struct {
		spec vmm.Spec
		fds  descriptors
	}{
		"emulated": {
			spec: vmm.Spec{
				ID: "pod-1", VCPUs: 1, MemoryBytes: 192 << 20, Kernel: "/guest/kernel", Initramfs: "/guest/initramfs",
				KernelArgs: []string{"bulkhead.a=1", "b"}, Acceleration: vmm.Emulated,
			},
			fds: descriptors{qmp: 5, agent: 6, console: 7},
		},
		"hardware": {
			spec: vmm.Spec{
				ID: "pod-2", VCPUs: 4, MemoryBytes: 2 << 30, Kernel: "/guest/kernel", Initramfs: "/guest/initramfs",
				Acceleration: vmm.Hardware,
				NICs: []vmm.NIC{
					{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1500},
					{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, MTU: 8950},
				},
			},
			fds: descriptors{qmp: 5, agent: 6, console: 7, taps: []int{8, 9}},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got := golden(arguments(tc.spec, tc.fds))
			file := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("arguments (-want +got):\n%s", diff)
			}
		})
	}
}

// golden puts every option on a line.
func golden(args []string) string {
	var b strings.Builder
	for i, arg := range args {
		switch {
		case i == 0:
		case strings.HasPrefix(arg, "-"):
			b.WriteByte('\n')
		default:
			b.WriteByte(' ')
		}
		b.WriteString(arg)
	}
	b.WriteByte('\n')
	return b.String()
}
