package task

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/sandbox"
)

// pause is the process of a CRI sandbox container. There is none: the VM itself holds what a pause process would hold
// on the host. It runs until it is killed, or the VM ends, and then takes the VM along.
type pause struct {
	machine Machine
	// stop ends the VM, so that nothing of the pod is in the network namespace any more when the exit is told: containerd
	// removes the namespace next.
	stop func()

	once   sync.Once
	killed chan struct{} // closed when the end was asked for
	exit   sandbox.Exit  // written before ended is closed
	ended  chan struct{}
}

var _ Process = (*pause)(nil)

func newPause(machine Machine, stop func()) *pause {
	return &pause{machine: machine, stop: stop, killed: make(chan struct{}), ended: make(chan struct{})}
}

func (p *pause) Start(context.Context) (uint32, error) { return 0, nil }

func (p *pause) Wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-p.killed:
	case <-p.machine.Done():
		select {
		case <-p.killed: // the VM ends because of it
		default:
			return sandbox.Exit{}, fmt.Errorf("the VM has ended: %w", errdefs.ErrUnavailable)
		}
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
	select {
	case <-p.ended:
		return p.exit, nil
	case <-ctx.Done():
		return sandbox.Exit{}, ctx.Err()
	}
}

// Signal ends the pod for the signals that end a pause process; others it ignores, as that one does.
func (p *pause) Signal(_ context.Context, signal uint32, _ bool) error {
	if !ends(signal) {
		return nil
	}
	p.once.Do(func() {
		close(p.killed)
		go func() {
			p.stop()
			p.exit = sandbox.Exit{Status: 128 + signal, At: time.Now()}
			close(p.ended)
		}()
	})
	return nil
}

// ends says whether a signal ends a process that does nothing about it, and of those that containerd's clients send.
func ends(signal uint32) bool {
	switch unix.Signal(signal) {
	case unix.SIGKILL, unix.SIGTERM, unix.SIGINT, unix.SIGQUIT:
		return true
	}
	return false
}

func (p *pause) Resize(context.Context, uint32, uint32) error {
	return fmt.Errorf("a sandbox container has no terminal: %w", errdefs.ErrFailedPrecondition)
}

func (p *pause) Delete(context.Context) error { return nil }
func (p *pause) Stdin() io.WriteCloser        { return nil }
func (p *pause) Stdout() io.ReadCloser        { return nil }
func (p *pause) Stderr() io.ReadCloser        { return nil }
