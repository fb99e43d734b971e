package task

import (
	"context"
	"io"

	"github.com/opencontainers/runtime-spec/specs-go"

	guestapi "bulkhead.dev/bulkhead/api/guest"
	"bulkhead.dev/bulkhead/internal/sandbox"
)

// Machine is a running pod VM: *sandbox.Sandbox, whose methods carry the contract, behind an adapter. Its errors say what was
// being done to which container, so they are passed on as they are.
type Machine interface {
	CreateContainer(ctx context.Context, spec sandbox.ContainerSpec) (Process, error)
	CreateExec(ctx context.Context, spec sandbox.ExecSpec) (Process, error)
	Events() <-chan sandbox.Event
	Done() <-chan struct{}
	Err() error
	// Stop ends the VM and leaves nothing of the pod on the host. It is idempotent.
	Stop(ctx context.Context) error
	Controls
}

// Controls are what can be asked of a machine about its containers, and itself.
type Controls interface {
	Pids(ctx context.Context, container string) ([]sandbox.Pid, error)
	Pause(ctx context.Context, container string) error
	Resume(ctx context.Context, container string) error
	Update(ctx context.Context, container string, resources *specs.LinuxResources) error
	Stats(ctx context.Context, container string) (*guestapi.StatsResponse, error)
	Info(ctx context.Context) (sandbox.Info, error)
}

// Process is a process in the guest: *sandbox.Process.
type Process interface {
	Start(ctx context.Context) (pid uint32, err error)
	Wait(ctx context.Context) (sandbox.Exit, error)
	Signal(ctx context.Context, signal uint32, all bool) error
	Resize(ctx context.Context, width, height uint32) error
	Delete(ctx context.Context) error
	Stdin() io.WriteCloser
	Stdout() io.ReadCloser
	Stderr() io.ReadCloser
}

// Launch describes a pod whose VM is to be started.
type Launch struct {
	// ID of the sandbox, or of the only container.
	ID string
	// Bundle is the directory that containerd made for it.
	Bundle string
	// ConfigPath is the runtime's configuration file; empty: the default.
	ConfigPath string
	// Spec is the OCI spec of the sandbox container, or of the only container.
	Spec *specs.Spec
}

// Launcher starts pods' VMs.
type Launcher interface {
	// Launch starts a VM. On an error nothing is left of it.
	Launch(ctx context.Context, launch Launch) (Machine, error)
}

// Adapt makes a Machine of a sandbox.
func Adapt(s *sandbox.Sandbox) Machine { return machine{s} }

type machine struct{ *sandbox.Sandbox }

func (m machine) CreateContainer(ctx context.Context, spec sandbox.ContainerSpec) (Process, error) {
	p, err := m.Sandbox.CreateContainer(ctx, spec)
	if err != nil {
		return nil, err // not a Process that holds a nil pointer
	}
	return p, nil
}

func (m machine) CreateExec(ctx context.Context, spec sandbox.ExecSpec) (Process, error) {
	p, err := m.Sandbox.CreateExec(ctx, spec)
	if err != nil {
		return nil, err
	}
	return p, nil
}
