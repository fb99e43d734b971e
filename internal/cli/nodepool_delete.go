package cli

import (
	"context"

	"github.com/spf13/cobra"
)

func newNodepoolDeleteCommand(open opener) *cobra.Command {
	m := member{place: place{open: open}}
	var name string
	cmd := &cobra.Command{
		Use:     "delete",
		Short:   "Remove a pool and its nodes from a cluster",
		Long:    `Evicts the pods of the pool's nodes, ends the nodes and removes them, without asking. What is in volumes on them is lost.`,
		Example: `  sudo bulkhead nodepool delete --cluster-name demo --name sandbox`,
		Args:    noArgs,
	}
	m.flags(cmd)
	poolName(cmd, &m, &name)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := required(cmd, "cluster-name", "name"); err != nil {
			return err
		}
		return m.change(cmd, func(ctx context.Context, all manager) error { return all.DeletePool(ctx, m.cluster, name) })
	}
	return cmd
}
