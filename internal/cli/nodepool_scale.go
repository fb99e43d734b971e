package cli

import (
	"context"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/cluster/spec"
)

func newNodepoolScaleCommand(open opener) *cobra.Command {
	m := member{place: place{open: open}}
	var name string
	var count int
	cmd := &cobra.Command{
		Use:   "scale",
		Short: "Change how many nodes a pool has",
		Long: `Adds nodes and returns when they are ready, or removes those with the highest numbers: their pods are evicted first, and what is in
volumes on them is lost.`,
		Example: `  sudo bulkhead nodepool scale --cluster-name demo --name sandbox --node-count 3`,
		Args:    noArgs,
	}
	m.flags(cmd)
	poolName(cmd, &m, &name)
	cmd.Flags().IntVarP(&count, "node-count", "c", 0, "how many nodes the pool is to have (required)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := required(cmd, "cluster-name", "name"); err != nil {
			return err
		}
		if !cmd.Flags().Changed("node-count") {
			return missing("node-count")
		}
		if err := spec.ValidateNodeCount(count); err != nil {
			return usageError{err}
		}
		return m.change(cmd, func(ctx context.Context, all manager) error { return all.ScalePool(ctx, m.cluster, name, count) })
	}
	return cmd
}
