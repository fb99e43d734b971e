package cli

import (
	"context"

	"github.com/spf13/cobra"
)

func newClusterStartCommand(open opener) *cobra.Command {
	return newClusterChange(open, &cobra.Command{
		Use:   "start NAME",
		Short: "Start a cluster that was stopped, or that the machine's reboot ended",
		Long: `Makes the cluster's networks anew, starts its processes, and returns when the nodes are ready. Objects, volumes and images are
those from before. Of a cluster that runs, what doesn't run is started. Certificates that expire soon are renewed.`,
		Example: `  sudo bulkhead cluster start demo`,
	}, func(ctx context.Context, m manager, name string) error { return m.Start(ctx, name) })
}

// newClusterChange completes a command that changes the cluster that it names, and has no flags of its own.
func newClusterChange(open opener, cmd *cobra.Command, f func(context.Context, manager, string) error) *cobra.Command {
	p := place{open: open}
	p.flags(cmd)
	cmd.Args = clusterName
	cmd.ValidArgsFunction = p.completeClusters
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return p.change(cmd, func(ctx context.Context, m manager) error { return f(ctx, m, args[0]) })
	}
	return cmd
}
