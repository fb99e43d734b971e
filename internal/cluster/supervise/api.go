package supervise

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/containerd/errdefs"
)

// Start starts a supervisor by running `self supervise DIR`, or makes the one that runs take the new spec.
func Start(_ context.Context, _, dir string, _ Spec) error { return pending(dir) }

// Run is the supervisor itself. It returns the exit code.
func Run(_ context.Context, dir string, log *slog.Logger) int {
	log.Error("can't supervise", "error", pending(dir))
	return 1
}

// Stop ends the supervisor and its processes.
func Stop(_ context.Context, dir string) error { return pending(dir) }

// Status says what the processes do.
func Status(dir string) (State, error) { return State{}, pending(dir) }

// WaitReady returns when the named processes are ready, or all if no name is given.
func WaitReady(_ context.Context, dir string, _ ...string) error { return pending(dir) }

func pending(dir string) error {
	return fmt.Errorf("supervisor in %s: %w", dir, errdefs.ErrNotImplemented)
}
