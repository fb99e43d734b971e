package cli

import (
	"context"

	"github.com/spf13/cobra"
)

func newNodePartitionCommand(open opener) *cobra.Command {
	return newNodeChange(open, &cobra.Command{
		Use:   "partition NODE",
		Short: "Cut a node off from the network",
		Long: `Takes the node's cable out: its pods live on, and reach nothing outside the node. Within a minute Kubernetes calls the node NotReady,
and five minutes later it evicts its pods. "bulkhead node heal" puts the cable back.`,
		Example: `  sudo bulkhead node partition --cluster-name demo demo-nodepool1-0`,
	}, "cut off from the network, until bulkhead node heal", func(ctx context.Context, all manager, cluster, node string) error {
		return all.NodePartition(ctx, cluster, node, true)
	})
}
