package cli

import (
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/cluster/supervise"
)

// newSuperviseCommand is what a cluster's supervisors run as; nobody types it.
func newSuperviseCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "supervise DIR",
		Short:  "Keep the processes of a directory's specification running",
		Hidden: true,
		Args:   exactArg("the supervisor's directory"),
		RunE: func(cmd *cobra.Command, args []string) error {
			// The first signal ends the context. Another one must not kill the supervisor before its children ended.
			again := make(chan os.Signal, 1)
			signal.Notify(again, syscall.SIGINT, syscall.SIGTERM)
			defer signal.Stop(again)
			log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			if status := supervise.Run(cmd.Context(), args[0], log); status != exitDone {
				return statusError(status)
			}
			return nil
		},
	}
}
