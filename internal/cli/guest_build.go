package cli

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/guestimage"
)

// agentName is the program that becomes /init in the guest.
const agentName = "bulkhead-guest"

func newGuestBuildCommand() *cobra.Command {
	var o guestimage.Options
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Make the guest image",
		Long: `Fetches the Debian packages of a kernel and of crun (they are verified by apt, kept in a cache, and not installed), takes
out what a guest needs, adds the agent, and replaces the guest image in one step. The same packages and agent give the same
bytes. Pods that run keep what they booted; the next ones boot the new image.

Clusters look for the image in guest of their --state-dir: name that with --dir where it isn't the configuration's state_dir.

It needs apt, so Debian or a distribution derived from it. An image can be made on one machine and its directory copied to
others.`,
		Example: `  # Where the runtime looks for it, with the agent that lies beside this program.
  sudo bulkhead guest build

  # Somewhere else, with another kernel.
  bulkhead guest build --agent ./bulkhead-guest --dir ./guest --kernel-package linux-image-6.1.0-57-cloud-amd64`,
		Args: noArgs,
	}
	cmd.Flags().StringVar(&o.Agent, "agent", "", "the agent `program` (default: "+agentName+" beside this program, or on the PATH)")
	cmd.Flags().StringVar(&o.Dir, "dir", "", "the image's `directory` (default: guest in the configuration's state_dir)")
	cmd.Flags().StringVar(&o.Cache, "cache", "", "the `directory` where packages are kept (default: packages beside the image's)")
	cmd.Flags().StringVar(&o.KernelPackage, "kernel-package", "", "the Debian `package` of the kernel, or one that depends on it (default: linux-image-cloud-<arch>)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if o.Dir == "" {
			cfg, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			o.Dir = cfg.GuestDir()
		}
		if o.Agent == "" {
			agent, err := findAgent()
			if err != nil {
				return err
			}
			o.Agent = agent
		}
		o.Progress = cmd.ErrOrStderr()
		return guestimage.Build(cmd.Context(), o)
	}
	return cmd
}

func findAgent() (string, error) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), agentName)
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	found, err := exec.LookPath(agentName)
	if err != nil {
		return "", errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("%s is neither beside this program nor on the PATH: name it with --agent", agentName))
	}
	return found, nil
}
