package cli

import (
	"context"

	"github.com/spf13/cobra"
)

// newClusterRenewCommand is what a cluster's supervisor runs daily; nobody needs to type it.
func newClusterRenewCommand(open opener) *cobra.Command {
	cmd := newClusterChange(open, &cobra.Command{
		Use:   "renew NAME",
		Short: "Renew the certificates of a running cluster that are about to expire",
	}, func(_ context.Context, m manager, name string) error { return m.Renew(name) })
	cmd.Hidden = true
	return cmd
}
