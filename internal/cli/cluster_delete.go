package cli

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/cluster/pki"
)

func newClusterDeleteCommand(open opener) *cobra.Command {
	p := place{open: open}
	cmd := &cobra.Command{
		Use:   "delete NAME",
		Short: "End and remove a cluster, its data included",
		Long: `Ends everything that the cluster runs and removes its networks, directory, images and volumes, without asking. It also removes what
is half made or half removed. The cluster's context is taken out of the file into which "bulkhead cluster get-credentials"
writes without --file.`,
		Example: `  sudo bulkhead cluster delete demo`,
		Args:    clusterName,
	}
	p.flags(cmd)
	cmd.ValidArgsFunction = p.completeClusters
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return p.change(cmd, func(ctx context.Context, m manager) error { return deleteCluster(ctx, m, args[0]) })
	}
	return cmd
}

// deleteCluster removes a cluster, and then what is in the user's kubeconfig about it.
func deleteCluster(ctx context.Context, m manager, name string) error {
	detail, showErr := m.Show(name) // of a broken cluster there may be nothing to show, and it is deleted all the same
	if errdefs.IsNotFound(showErr) {
		return showErr
	}
	if err := m.Delete(ctx, name); err != nil {
		return err
	}
	if showErr != nil || detail.Server == "" {
		return nil
	}
	file, err := defaultKubeconfig()
	if err != nil {
		return err
	}
	if err := pki.RemoveFromKubeconfig(file, name, detail.Server); err != nil {
		return fmt.Errorf("cluster %s is gone, and its context is left in %s: %w", name, file, err)
	}
	return nil
}
