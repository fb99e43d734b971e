package cli

import "github.com/spf13/cobra"

func newGuestCommand() *cobra.Command {
	return newNoun("guest", "Make and look at the guest image",
		`The guest image is what a pod's virtual machine boots: a kernel, taken from a Debian package that is not installed, and an
initramfs with Bulkhead's agent, an OCI runtime and the kernel modules that the guest needs.`,
		newGuestBuildCommand(), newGuestShowCommand())
}
