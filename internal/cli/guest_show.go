package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/guestimage"
)

// shownImage is what "guest show" writes.
type shownImage struct {
	Dir string `json:"dir"`
	guestimage.Manifest
}

func newGuestShowCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Say what is in the guest image, and whether it is whole",
		Long:  `Computes the checksums of the guest image's files and writes what the image was made of.`,
		Example: `  bulkhead guest show

  # The kernel that pods get.
  bulkhead guest show -o json | jq -r .kernelVersion`,
		Args: noArgs,
	}
	out := formatFlag(cmd)
	cmd.Flags().StringVar(&dir, "dir", "", "the image's `directory` (default: guest in the configuration's state_dir)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if dir == "" {
			cfg, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			dir = cfg.GuestDir()
		}
		img, err := guestimage.Open(dir)
		if err != nil {
			return err
		}
		if err := img.Verify(); err != nil {
			return err
		}
		shown := shownImage{Dir: img.Dir, Manifest: img.Manifest}
		return out.write(cmd.OutOrStdout(), shown, func(w io.Writer) error { return writeImage(w, shown) })
	}
	return cmd
}

func writeImage(w io.Writer, img shownImage) error {
	libraries := make([]string, len(img.Libraries))
	for i, name := range img.Libraries {
		libraries[i] = name
		if slices.Contains(img.Stubs, name) {
			libraries[i] += " (stub)"
		}
	}
	rows := [][]string{
		{"directory", img.Dir},
		{"kernel", fmt.Sprintf("%s, %s, %s", img.KernelVersion, img.Arch, mebibytes(img.Kernel.Size))},
		{"initramfs", mebibytes(img.Initramfs.Size)},
		{"agent", mebibytes(img.Agent.Size)},
		{"runtime", mebibytes(img.Runtime.Size)},
		{"libraries", strings.Join(libraries, ", ")},
		{"modules", strings.Join(img.Modules, ", ")},
	}
	for i, p := range img.Packages {
		label := ""
		if i == 0 {
			label = "packages"
		}
		rows = append(rows, []string{label, p.Name + " " + p.Version})
	}
	return writeTable(w, rows...)
}
