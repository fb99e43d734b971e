package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

func newImageLoadCommand(open opener) *cobra.Command {
	m := member{place: place{open: open}}
	cmd := &cobra.Command{
		Use:   "load FILE...",
		Short: "Load images from archives into a cluster",
		Long: `Puts the images of the archives onto all nodes of the cluster that run; a node that is added or started later gets them from another one.
A pod that uses one needs imagePullPolicy IfNotPresent or Never. An archive is what "docker save" or "bulkhead image build" writes:
a Docker archive or an OCI layout, as a tar file.`,
		Example: `  docker save example.org/app:1 -o app.tar
  sudo bulkhead image load --cluster-name demo app.tar`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("%q takes one or more archives, and got none", cmd.CommandPath())}
			}
			return nil
		},
	}
	m.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := required(cmd, "cluster-name"); err != nil {
			return err
		}
		return m.change(cmd, func(ctx context.Context, all manager) error { return all.LoadImages(ctx, m.cluster, args) })
	}
	return cmd
}
