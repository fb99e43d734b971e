package sandbox

import (
	"context"
	"io"
	"time"

	"github.com/containerd/errdefs"
)

// Exit is the end of a process.
type Exit struct {
	// Status is 0 to 255; 128+n for signal n. A process whose VM died has 255.
	Status uint32
	At     time.Time
}

// Process is a process in the guest: a container's init or an exec. Its methods may be called from several goroutines.
type Process struct{}

// Start starts the created process; pid is the guest's. A second call is ErrFailedPrecondition. A missing executable
// is ErrNotFound, as the guest tells it.
func (p *Process) Start(ctx context.Context) (pid uint32, err error) {
	return 0, errdefs.ErrNotImplemented
}

// Wait returns when the process has ended and the guest has sent all of its output. It may be called before Start, any
// number of times. When the VM dies first it returns ErrUnavailable with the reason.
func (p *Process) Wait(ctx context.Context) (Exit, error) { return Exit{}, errdefs.ErrNotImplemented }

// Signal sends a signal to the process, or with all to every process of its container. ErrNotFound when it has ended.
func (p *Process) Signal(ctx context.Context, sig uint32, all bool) error {
	return errdefs.ErrNotImplemented
}

// Resize sets the size of the process's terminal.
func (p *Process) Resize(ctx context.Context, width, height uint32) error {
	return errdefs.ErrNotImplemented
}

// Delete forgets a process that has ended or was never started, and closes its streams. For a container's init it also
// takes back its disks, volumes and scratch file; its execs must be deleted first. It is idempotent, and works
// when the VM has ended.
func (p *Process) Delete(ctx context.Context) error { return errdefs.ErrNotImplemented }

// Stdin carries what is written to the process; Close is its end of file. nil where it was not asked for.
func (p *Process) Stdin() io.WriteCloser { return nil }

// Stdout carries the process's output to its end of file. nil where it was not asked for.
func (p *Process) Stdout() io.ReadCloser { return nil }

// Stderr is like Stdout. nil where it was not asked for, and always for a terminal.
func (p *Process) Stderr() io.ReadCloser { return nil }
