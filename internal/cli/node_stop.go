package cli

import (
	"context"

	"github.com/spf13/cobra"
)

func newNodeStopCommand(open opener) *cobra.Command {
	return newNodeChange(open, &cobra.Command{
		Use:   "stop NODE",
		Short: "End a node's pods and processes, as when a machine is shut down",
		Long: `Ends the node's containers, virtual machines and processes, without evicting pods first; its disk stays. The node stays stopped, also
when the cluster is stopped and started, until "bulkhead node start".`,
		Example: `  sudo bulkhead node stop --cluster-name demo demo-nodepool1-0`,
	}, "stopped", func(ctx context.Context, all manager, cluster, node string) error {
		return all.NodeStop(ctx, cluster, node)
	})
}
