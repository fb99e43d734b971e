package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/feature"
)

func newFeatureUnregisterCommand() *cobra.Command {
	var p place
	cmd := &cobra.Command{
		Use:     "unregister NAME",
		Short:   "Turn a preview feature off",
		Long:    `Turns the feature off for what is made from now on. A node pool that was made with its help goes on; delete it where that must not be.`,
		Example: `  sudo bulkhead feature unregister EmulatedVMIsolation`,
		Args:    exactArg("the feature's name"),
	}
	p.stateFlag(cmd)
	cmd.ValidArgsFunction = p.completeFeatures
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		store := feature.Open(p.state)
		f, err := store.Get(args[0])
		if err != nil {
			return err
		}
		if err := store.Unregister(f.Name); err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "%s is not registered\n", f.Name)
		return nil
	}
	return cmd
}
