package cli

import (
	"fmt"
	"os/exec"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/image"
)

func newImageBusyboxCommand(open opener) *cobra.Command {
	target := imageTarget{member: member{place: place{open: open}}}
	var name, binary string
	cmd := &cobra.Command{
		Use:   "busybox",
		Short: "Make an image of this host's BusyBox",
		Long: `Makes a small system out of a static BusyBox (Debian's package busybox-static): all its applets, the usual directories,
and accounts for root and nobody. It runs a shell.`,
		Example: `  bulkhead image busybox --name busybox -o busybox.tar`,
		Args:    noArgs,
	}
	cmd.Flags().StringVar(&name, "name", "busybox", "the image's `name`")
	target.flags(cmd)
	cmd.Flags().StringVar(&binary, "busybox", "", "the BusyBox `program` (default: the one on the PATH)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := target.check(name); err != nil {
			return err
		}
		if binary == "" {
			found, err := exec.LookPath("busybox")
			if err != nil {
				return errdefs.ErrFailedPrecondition.WithMessage("busybox is not on the PATH: apt-get install busybox-static")
			}
			binary = found
		}
		files, err := image.BusyBox(cmd.Context(), binary)
		if err != nil {
			return fmt.Errorf("make an image of BusyBox: %w", err)
		}
		return target.put(cmd, name, image.Spec{Files: files, Cmd: []string{"sh"}})
	}
	return cmd
}
