package cli

import (
	"io"

	"github.com/spf13/cobra"
)

func newNodepoolListCommand(open opener) *cobra.Command {
	m := member{place: place{open: open}}
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the node pools of a cluster",
		Example: `  sudo bulkhead nodepool list --cluster-name demo`,
		Args:    noArgs,
	}
	out := formatFlag(cmd)
	m.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		detail, err := m.show(cmd)
		if err != nil {
			return err
		}
		return out.write(cmd.OutOrStdout(), list(detail.Pools), func(w io.Writer) error { return writeTable(w, poolRows(detail)...) })
	}
	return cmd
}
