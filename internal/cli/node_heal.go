package cli

import (
	"context"

	"github.com/spf13/cobra"
)

func newNodeHealCommand(open opener) *cobra.Command {
	return newNodeChange(open, &cobra.Command{
		Use:     "heal NODE",
		Short:   "Give a node that was cut off its network back",
		Long:    `Undoes "bulkhead node partition". Of a node that isn't cut off, nothing is changed.`,
		Example: `  sudo bulkhead node heal --cluster-name demo demo-nodepool1-0`,
	}, "back on the network", func(ctx context.Context, all manager, cluster, node string) error {
		return all.NodePartition(ctx, cluster, node, false)
	})
}
