package guest

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"

	"bulkhead.dev/bulkhead/internal/guest/reaper"
	"bulkhead.dev/bulkhead/internal/guest/rpc"
)

// gcPercent has the garbage collector run more often than usual: the agent's memory is the pod's.
const gcPercent = 50

// Run is the whole life of PID 1: it sets the machine up and serves the host until the channel ends. It returns why; there
// is nothing left to do then but to power off.
func Run(ctx context.Context, log *slog.Logger, mountVolumes func(target string, conn io.ReadWriteCloser) error) error {
	debug.SetGCPercent(gcPercent)
	devices, err := WatchDevices() // before drivers are loaded, so that none of their devices is missed
	if err != nil {
		return err
	}
	if err := Boot(log); err != nil {
		return fmt.Errorf("setting up the machine: %w", err)
	}
	conn, err := OpenChannel(devices)
	if err != nil {
		return fmt.Errorf("opening the channel to the host: %w", err)
	}
	channel, err := rpc.NewGuest(conn)
	if err != nil {
		return err
	}
	defer channel.Close()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ready := make(chan struct{})
	go func() {
		if err := LoadModules(log); err != nil {
			cancel(err) // without its drivers the guest is of no use
			return
		}
		close(ready)
	}()
	agent, err := New(Options{
		Streams: channel, Reaper: reaper.New(), Devices: devices, MountVolumes: mountVolumes, Ready: ready, Log: log,
	})
	if err != nil {
		return err
	}
	err = channel.Serve(ctx, agent)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}
