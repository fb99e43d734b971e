package cli

import (
	"io"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/feature"
)

func newFeatureShowCommand() *cobra.Command {
	var p place
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "Say what a preview feature is, and in which state",
		Example: `  bulkhead feature show EmulatedVMIsolation

  # The state, for a program.
  bulkhead feature show EmulatedVMIsolation -o json | jq -r .state`,
		Args: exactArg("the feature's name"),
	}
	out := formatFlag(cmd)
	p.stateFlag(cmd)
	cmd.ValidArgsFunction = p.completeFeatures
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f, err := feature.Open(p.state).Get(args[0])
		if err != nil {
			return err
		}
		return out.write(cmd.OutOrStdout(), f, func(w io.Writer) error { return writeTable(w, featureRows(f)...) })
	}
	return cmd
}
