package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/cluster"
)

func newNodeCommand(open opener) *cobra.Command {
	return newNoun("node", "Stop, start and cut off the nodes of a cluster",
		`What happens to machines, for a try or a test: a node can be stopped and started, and cut off from the network. The rest of the
cluster is told nothing, and notices as it would of a machine. To have fewer nodes, scale the pool.`,
		newNodeListCommand(open), newNodeStopCommand(open), newNodeStartCommand(open), newNodePartitionCommand(open), newNodeHealCommand(open))
}

// nodeRows are the table of a cluster's nodes.
func nodeRows(c cluster.Detail) [][]string {
	rows := [][]string{{"NODE", "POOL", "STATE", "ADDRESSES"}}
	for _, n := range c.Nodes {
		rows = append(rows, []string{n.Name, n.Pool, n.State, none(n.Addresses)})
	}
	return rows
}

// newNodeChange completes a command that changes the node that it names, and then says what was done, where the manager doesn't.
func newNodeChange(open opener, cmd *cobra.Command, done string, f func(ctx context.Context, all manager, cluster, node string) error) *cobra.Command {
	m := member{place: place{open: open}}
	m.flags(cmd)
	cmd.Args = exactArg("the node's name")
	cmd.ValidArgsFunction = m.completeNodes
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := required(cmd, "cluster-name"); err != nil {
			return err
		}
		if err := m.change(cmd, func(ctx context.Context, all manager) error { return f(ctx, all, m.cluster, args[0]) }); err != nil {
			return err
		}
		if done != "" {
			fmt.Fprintf(cmd.ErrOrStderr(), "node %s: %s\n", args[0], done)
		}
		return nil
	}
	return cmd
}
