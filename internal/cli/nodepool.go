package cli

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/cluster"
)

func newNodepoolCommand(open opener) *cobra.Command {
	return newNoun("nodepool", "Add, scale and remove the node pools of a cluster",
		`The nodes of a pool are alike: they have one workload runtime, and the pool's labels and taints. Nodes are named
<cluster>-<pool>-<number>, where no two nodes of a cluster have the same number, and have the label bulkhead.dev/pool; on pools with
the workload runtime vm-isolation also bulkhead.dev/isolation, hardware or emulated.`,
		newNodepoolAddCommand(open), newNodepoolListCommand(open), newNodepoolShowCommand(open), newNodepoolScaleCommand(open), newNodepoolDeleteCommand(open))
}

// poolName adds --name, of a pool that exists.
func poolName(cmd *cobra.Command, m *member, name *string) {
	cmd.Flags().StringVarP(name, "name", "n", "", "the pool's `name` (required)")
	complete(cmd, "name", m.completePools)
}

// poolRows are the table of a cluster's pools.
func poolRows(c cluster.Detail) [][]string {
	rows := [][]string{{"POOL", "RUNTIME", "NODES", "LABELS", "TAINTS"}}
	for _, p := range c.Pools {
		labels := make([]string, 0, len(p.Labels))
		for _, key := range slices.Sorted(maps.Keys(p.Labels)) {
			labels = append(labels, key+"="+p.Labels[key])
		}
		rows = append(rows, []string{p.Name, string(p.Runtime), strconv.Itoa(p.Count), none(labels), none(p.Taints)})
	}
	return rows
}

// none writes a list for people.
func none(list []string) string {
	if len(list) == 0 {
		return "-"
	}
	return strings.Join(list, ",")
}
