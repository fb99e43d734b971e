package cli

import (
	"context"

	"bulkhead.dev/bulkhead/internal/config"
	"bulkhead.dev/bulkhead/internal/vmm"
	"bulkhead.dev/bulkhead/internal/vmm/qemu"
)

// accelerate asks the VMM's driver what would run a guest on this host.
func accelerate(cfg config.Config) func(context.Context) (vmm.Acceleration, string, error) {
	return func(ctx context.Context) (vmm.Acceleration, string, error) {
		return qemu.Resolve(ctx, cfg.VMM.Acceleration, qemu.ProbeOptions{
			Binary: cfg.VMM.Binary, Kernel: cfg.Guest.Kernel, Initramfs: cfg.Guest.Initramfs, CacheDir: cfg.StateDir,
		})
	}
}
