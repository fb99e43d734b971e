package cli

import (
	"io"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/feature"
)

func newFeatureListCommand() *cobra.Command {
	var p place
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the preview features and their states",
		Example: `  bulkhead feature list`,
		Args:    noArgs,
	}
	out := formatFlag(cmd)
	p.stateFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		all, err := feature.Open(p.state).List()
		if err != nil {
			return err
		}
		return out.write(cmd.OutOrStdout(), list(all), func(w io.Writer) error { return writeTable(w, featureRows(all...)...) })
	}
	return cmd
}
