// Command bulkhead-guest is PID 1 and the agent in a pod's VM.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"

	"bulkhead.dev/bulkhead/internal/guest"
	"bulkhead.dev/bulkhead/internal/volume/relay"
)

func main() {
	guest.Pause() // first: the same program holds the pod's pid namespace

	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "bulkhead-guest", guest.Version(), "runs as the first process of a pod's VM only")
		os.Exit(1)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	err := guest.Run(context.Background(), log, func(target string, conn io.ReadWriteCloser) error {
		_, err := relay.Mount(target, conn)
		return err
	})
	log.Error("the agent ends", "error", err)
	guest.PowerOff()
}
