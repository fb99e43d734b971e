package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/cluster"
)

// member is the place of commands about something in a cluster.
type member struct {
	place
	cluster string
}

// flags adds --cluster-name, --state-dir and --bin-dir.
func (m *member) flags(cmd *cobra.Command) {
	m.place.flags(cmd)
	cmd.Flags().StringVar(&m.cluster, "cluster-name", "", "the cluster's `name` (required)")
	complete(cmd, "cluster-name", func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return m.completeClusters(cmd, nil, prefix)
	})
}

// completePools offers the names of the cluster's pools.
func (m *member) completePools(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	detail, err := m.show(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names := make([]string, len(detail.Pools))
	for i, p := range detail.Pools {
		names[i] = p.Name
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeNodes offers the names of the cluster's nodes for the first argument.
func (m *member) completeNodes(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	detail, err := m.show(cmd)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names := make([]string, len(detail.Nodes))
	for i, n := range detail.Nodes {
		names[i] = n.Name
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// complete makes the shell complete a flag's value.
func complete(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(fmt.Sprintf("complete --%s of %q: %v", flag, cmd.Name(), err)) // the flag isn't there: a mistake in the constructor
	}
}

// show describes the cluster.
func (m *member) show(cmd *cobra.Command) (cluster.Detail, error) {
	if err := required(cmd, "cluster-name"); err != nil {
		return cluster.Detail{}, err
	}
	all, err := m.manager(cmd.ErrOrStderr())
	if err != nil {
		return cluster.Detail{}, err
	}
	return all.Show(m.cluster)
}
