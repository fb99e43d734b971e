package cli

import (
	"context"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/cluster/spec"
)

func newNodepoolAddCommand(open opener) *cobra.Command {
	m := member{place: place{open: open}}
	pool := spec.Pool{}
	cmd := &cobra.Command{
		Use:   "add",
		Short: "Add a pool of nodes to a cluster",
		Long: `Makes the pool's nodes and returns when they are ready. With the workload runtime vm-isolation, pods on these nodes may ask for a
virtual machine of their own by their runtimeClassName. Where KVM doesn't work, that needs the preview feature EmulatedVMIsolation,
and is no isolation. Of the labels with a prefix kubernetes.io, k8s.io or bulkhead.dev, only topology.kubernetes.io/zone and region
and those of node.kubernetes.io are yours.`,
		Example: `  # An ordinary cluster gains a pool for sandboxed pods.
  sudo bulkhead nodepool add --cluster-name demo --name sandbox --workload-runtime vm-isolation

  # Two nodes for pods that tolerate it.
  sudo bulkhead nodepool add --cluster-name demo --name batch --node-count 2 --labels tier=batch --node-taints tier=batch:NoSchedule`,
		Args: noArgs,
	}
	m.flags(cmd)
	cmd.Flags().StringVarP(&pool.Name, "name", "n", "", "the pool's `name`: 1 to 12 lower-case letters and digits, the first a letter (required)")
	cmd.Flags().IntVarP(&pool.Count, "node-count", "c", 1, "how many nodes the pool has")
	runtimeOf(cmd, &pool.Runtime)
	cmd.Flags().StringToStringVar(&pool.Labels, "labels", nil, "labels of the nodes, `key=value,...`")
	cmd.Flags().Lookup("labels").DefValue = "" // its zero value is written []
	cmd.Flags().StringSliceVar(&pool.Taints, "node-taints", nil, "taints of the nodes, `key=value:effect,...`")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := required(cmd, "cluster-name", "name"); err != nil {
			return err
		}
		if err := checkPool("name", pool); err != nil {
			return err
		}
		return m.change(cmd, func(ctx context.Context, all manager) error { return all.AddPool(ctx, m.cluster, pool) })
	}
	return cmd
}
