package cli

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/cluster"
	"bulkhead.dev/bulkhead/internal/cluster/supervise"
)

func newClusterShowCommand(open opener) *cobra.Command {
	p := place{open: open}
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "Say what a cluster is made of, and whether all of it runs",
		Long: `Writes the cluster's pools and nodes, and each process of the control plane and of the nodes: whether it is ready and how often it
was started anew. The table leaves out what "-o json" has: the restarts of the processes of nodes, and why a process ended last.`,
		Example: `  sudo bulkhead cluster show demo

  # The address of the API server.
  sudo bulkhead cluster show demo -o json | jq -r .server`,
		Args:              clusterName,
		ValidArgsFunction: p.completeClusters,
	}
	out := formatFlag(cmd)
	p.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		m, err := p.manager(cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		detail, err := m.Show(args[0])
		if err != nil {
			return err
		}
		return out.write(cmd.OutOrStdout(), detail, func(w io.Writer) error { return writeCluster(w, detail) })
	}
	return cmd
}

// writeCluster writes what a person wants to know first: the cluster, its pools, its nodes, what runs.
func writeCluster(w io.Writer, c cluster.Detail) error {
	about := [][]string{
		{"name", c.Name},
		{"phase", string(c.Phase)},
		{"kubernetes", c.KubernetesVersion},
		{"server", c.Server},
		{"registry", c.Registry},
		{"subnets", strings.Join(c.Subnets, ", ")},
		{"created", moment(c.Created)},
		{"directory", c.Dir},
	}
	if c.Problem != "" {
		about = append(about, []string{"problem", c.Problem})
	}
	components := [][]string{{"COMPONENT", "PID", "READY", "RESTARTS", "SINCE"}}
	for _, p := range c.Components {
		components = append(components, processRow(p))
	}
	for i, table := range [][][]string{about, poolRows(c), nodeRows(c), components} {
		if len(table) < 2 {
			continue
		}
		if i > 0 {
			fmt.Fprintln(w)
		}
		if err := writeTable(w, table...); err != nil {
			return err
		}
	}
	return nil
}

func processRow(p supervise.ProcessStatus) []string {
	pid, ready := "-", "no"
	if p.PID != 0 {
		pid = strconv.Itoa(p.PID)
	}
	if p.Ready {
		ready = "yes"
	}
	return []string{p.Name, pid, ready, strconv.Itoa(p.Restarts), moment(p.Since)}
}
