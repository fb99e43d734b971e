package cli

import (
	"context"

	"github.com/spf13/cobra"
)

func newNodeStartCommand(open opener) *cobra.Command {
	return newNodeChange(open, &cobra.Command{
		Use:     "start NODE",
		Short:   "Start a node that was stopped",
		Long:    `Starts the node's processes and returns when they are ready. Pods that still belong to it start again.`,
		Example: `  sudo bulkhead node start --cluster-name demo demo-nodepool1-0`,
	}, "", func(ctx context.Context, all manager, cluster, node string) error {
		return all.NodeStart(ctx, cluster, node)
	})
}
