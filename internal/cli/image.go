package cli

import "github.com/spf13/cobra"

func newImageCommand(open opener) *cobra.Command {
	return newNoun("image", "Make container images without a container engine, and load them into a cluster",
		`"build" and "busybox" make an OCI image out of files, for tests, demos and machines without a registry; a Dockerfile is not read.
Equal files give equal bytes. The image is written as an archive for "ctr image import", "docker load" or a registry's tools, or
goes to a cluster's nodes. "load" puts archives there that somebody else made.`,
		newImageBuildCommand(open), newImageBusyboxCommand(open), newImageLoadCommand(open), newImageListCommand(open))
}
