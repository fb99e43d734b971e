//go:build vm

package qemu

import (
	"testing"

	"bulkhead.dev/bulkhead/internal/vmm"
	"bulkhead.dev/bulkhead/internal/vmm/vmmtest"
)

func testSpec(t testing.TB) vmm.Spec {
	kernel, initramfs := vmmtest.BuildGuest(t)
	return vmm.Spec{
		ID:           "any",
		VCPUs:        1,
		MemoryBytes:  256 << 20,
		Kernel:       kernel,
		Initramfs:    initramfs,
		Acceleration: vmm.Emulated,
		Jail:         vmm.Jail{UID: 2000101, GID: 2000101},
	}
}

func TestConformance(t *testing.T) {
	vmmtest.Run(t, vmmtest.Harness{Driver: New(Options{}), Spec: testSpec(t)})
}
