package cli

import (
	"context"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/config"
	"bulkhead.dev/bulkhead/internal/vmm"
)

// accelerate asks the VMM's driver what would run a guest on this host.
func accelerate(cfg config.Config) func(context.Context) (vmm.Acceleration, string, error) {
	return func(ctx context.Context) (vmm.Acceleration, string, error) {
		if cfg.VMM.Acceleration == config.AccelerationEmulated {
			return vmm.Emulated, "", nil
		}
		return "", "", errdefs.ErrUnavailable.WithMessage("whether KVM boots a guest is not known")
	}
}
