package cli

import (
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/cluster"
	"bulkhead.dev/bulkhead/internal/cluster/spec"
)

// shownPool is what "nodepool show" writes.
type shownPool struct {
	spec.Pool
	Nodes []cluster.NodeDetail `json:"nodes"`
}

func newNodepoolShowCommand(open opener) *cobra.Command {
	m := member{place: place{open: open}}
	var name string
	cmd := &cobra.Command{
		Use:     "show",
		Short:   "Say what a node pool is, and which nodes it has",
		Example: `  sudo bulkhead nodepool show --cluster-name demo --name sandbox`,
		Args:    noArgs,
	}
	out := formatFlag(cmd)
	m.flags(cmd)
	poolName(cmd, &m, &name)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := required(cmd, "cluster-name", "name"); err != nil {
			return err
		}
		detail, err := m.show(cmd)
		if err != nil {
			return err
		}
		var names []string
		for _, p := range detail.Pools {
			names = append(names, p.Name)
		}
		detail.Pools = slices.DeleteFunc(detail.Pools, func(p spec.Pool) bool { return p.Name != name })
		if len(detail.Pools) == 0 {
			return fmt.Errorf("cluster %s has no pool %s; it has %s", m.cluster, name, none(names))
		}
		detail.Nodes = slices.DeleteFunc(detail.Nodes, func(n cluster.NodeDetail) bool { return n.Pool != name })
		return out.write(cmd.OutOrStdout(), shownPool{detail.Pools[0], list(detail.Nodes)}, func(w io.Writer) error {
			if err := writeTable(w, poolRows(detail)...); err != nil {
				return err
			}
			fmt.Fprintln(w)
			return writeTable(w, nodeRows(detail)...)
		})
	}
	return cmd
}
