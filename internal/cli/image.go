package cli

import "github.com/spf13/cobra"

func newImageCommand() *cobra.Command {
	return newNoun("image", "Make container images without a container engine",
		`Makes an OCI image out of files and writes it as an archive for "ctr image import", "docker load" or a registry's tools.
Equal files give equal bytes. For tests, demos and machines without a registry; a Dockerfile is not read.`,
		newImageBuildCommand(), newImageBusyboxCommand())
}
