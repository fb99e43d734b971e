package cli

import (
	"context"

	"github.com/spf13/cobra"
)

func newClusterStopCommand(open opener) *cobra.Command {
	return newClusterChange(open, &cobra.Command{
		Use:   "stop NAME",
		Short: "End a cluster's pods and processes, and keep its data",
		Long: `Ends all containers, virtual machines and processes of the cluster and gives their memory back. Objects, volumes and images stay
on disk; "bulkhead cluster start" brings the cluster back with them.`,
		Example: `  sudo bulkhead cluster stop demo`,
	}, func(ctx context.Context, m manager, name string) error { return m.Stop(ctx, name) })
}
