package cli

import (
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

func newClusterListCommand(open opener) *cobra.Command {
	p := place{open: open}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the clusters of this machine",
		Long:  `Lists what is in the state directory, clusters that are stopped or half made included.`,
		Example: `  sudo bulkhead cluster list

  # The names of those that run.
  sudo bulkhead cluster list -o json | jq -r '.[] | select(.phase == "running") | .name'`,
		Args: noArgs,
	}
	out := formatFlag(cmd)
	p.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		m, err := p.manager(cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		found, err := m.List()
		if err != nil {
			return err
		}
		return out.write(cmd.OutOrStdout(), list(found), func(w io.Writer) error {
			rows := [][]string{{"NAME", "PHASE", "KUBERNETES", "NODES", "CREATED", "PROBLEM"}}
			for _, s := range found {
				rows = append(rows, []string{s.Name, string(s.Phase), s.KubernetesVersion, strconv.Itoa(s.NodeCount), moment(s.Created), s.Problem})
			}
			return writeTable(w, rows...)
		})
	}
	return cmd
}

// moment writes a time for people.
func moment(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format(time.DateTime)
}
