package cli

import (
	"context"

	"github.com/spf13/cobra"
)

func newClusterUpdateCommand(open opener) *cobra.Command {
	return newClusterChange(open, &cobra.Command{
		Use:   "update NAME",
		Short: "Bring a running cluster up to date with this program and its features",
		Long: `Renews the certificates that have less than 90 days left, writes the components' configuration anew and restarts those for which it
changed, applies the objects that every cluster has, and takes note of preview features that were registered or unregistered. What is
up to date is let alone; pods live on.`,
		Example: `  # After "bulkhead feature register".
  sudo bulkhead cluster update demo`,
	}, func(ctx context.Context, m manager, name string) error { return m.Update(ctx, name) })
}
