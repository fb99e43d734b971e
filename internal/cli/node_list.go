package cli

import (
	"io"

	"github.com/spf13/cobra"
)

func newNodeListCommand(open opener) *cobra.Command {
	m := member{place: place{open: open}}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the nodes of a cluster, as this machine sees them",
		Long: `Says of each node whether it runs, was stopped, or failed: it should run and something of it doesn't. What Kubernetes makes of it
is in "kubectl get nodes". With -o json also its processes.`,
		Example: `  sudo bulkhead node list --cluster-name demo`,
		Args:    noArgs,
	}
	out := formatFlag(cmd)
	m.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		detail, err := m.show(cmd)
		if err != nil {
			return err
		}
		return out.write(cmd.OutOrStdout(), list(detail.Nodes), func(w io.Writer) error { return writeTable(w, nodeRows(detail)...) })
	}
	return cmd
}
