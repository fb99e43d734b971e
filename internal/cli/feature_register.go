package cli

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/config"
	"bulkhead.dev/bulkhead/internal/feature"
	"bulkhead.dev/bulkhead/internal/guestimage"
	"bulkhead.dev/bulkhead/internal/vmm"
	"bulkhead.dev/bulkhead/internal/vmm/qemu"
)

func newFeatureRegisterCommand() *cobra.Command {
	var p place
	cmd := &cobra.Command{
		Use:   "register NAME",
		Short: "Turn a preview feature on",
		Long: `Checks whether this host can have the feature, and turns it on for all clusters of the state directory. To register what is registered
changes nothing.

EmulatedVMIsolation allows node pools with the workload runtime vm-isolation where KVM doesn't work, by emulating the virtual
machines. It needs QEMU and the guest image. EMULATION IS NOT ISOLATION: it is for development and CI.`,
		Example: `  # A cluster that exists takes note with: sudo bulkhead cluster update NAME
  sudo bulkhead feature register EmulatedVMIsolation`,
		Args: exactArg("the feature's name"),
	}
	p.stateFlag(cmd)
	cmd.ValidArgsFunction = p.completeFeatures
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return p.register(cmd, args[0]) }
	return cmd
}

func (p *place) register(cmd *cobra.Command, name string) error {
	store := feature.Open(p.state)
	f, err := store.Get(name)
	if err != nil {
		return err
	}
	check := func(context.Context) error { return nil }
	if f.Name == feature.EmulatedVMIsolation {
		check = p.checkEmulation
	}
	if err := store.Register(cmd.Context(), f.Name, check); err != nil {
		return err
	}
	stderr := cmd.ErrOrStderr()
	fmt.Fprintf(stderr, "%s is registered; clusters that exist take note with: bulkhead cluster update NAME\n", f.Name)
	if f.Name != feature.EmulatedVMIsolation {
		return nil
	}
	if acceleration, err := p.isolation(cmd.Context()); err == nil && acceleration == vmm.Hardware {
		fmt.Fprintln(stderr, "KVM works on this host, so nothing is emulated here, and the feature isn't needed.")
		return nil
	}
	fmt.Fprint(stderr, `
  *************************************************************************
  *  EMULATION IS NOT ISOLATION. On this host the virtual machines of     *
  *  pods are emulated in software. That is for development and CI; it    *
  *  is no wall against hostile code.                                     *
  *************************************************************************
`)
	return nil
}

// checkEmulation finds out whether guests can be emulated here. It boots none: that takes long, and the first pod shows it.
func (p *place) checkEmulation(context.Context) error {
	if _, err := qemu.FindBinary(""); err != nil {
		return fmt.Errorf("look for QEMU: %w", err)
	}
	if _, err := guestimage.Open(p.guest()); err != nil {
		return fmt.Errorf("look for the guest image: %w", err)
	}
	return nil
}

// isolation finds out what runs a guest on the nodes. Their runtime has a configuration of its own, so the host's doesn't count.
func (p *place) isolation(ctx context.Context) (vmm.Acceleration, error) {
	cfg := config.Default()
	cfg.StateDir = p.state
	cfg.Guest.Kernel = filepath.Join(p.guest(), guestimage.KernelFile)
	cfg.Guest.Initramfs = filepath.Join(p.guest(), guestimage.InitramfsFile)
	acceleration, _, err := accelerate(cfg)(ctx)
	return acceleration, err
}
