package sandbox

import (
	"context"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	guestapi "bulkhead.dev/bulkhead/api/guest"
	"bulkhead.dev/bulkhead/internal/config"
	"bulkhead.dev/bulkhead/internal/guestimage"
	"bulkhead.dev/bulkhead/internal/rootfs"
	"bulkhead.dev/bulkhead/internal/sandbox/sizing"
	"bulkhead.dev/bulkhead/internal/vmm"
)

// Deps is what a sandbox is built from. It is the node's, not the pod's.
type Deps struct {
	Driver vmm.Driver
	Cache  *rootfs.Cache
	Config config.Config
	Guest  guestimage.Image
	// Acceleration is decided by the caller, never empty.
	Acceleration vmm.Acceleration
	// Logger gets what has no caller to return an error to; nil: slog.Default().
	Logger *slog.Logger
}

// Spec describes the sandbox of one pod.
type Spec struct {
	// ID of the pod's sandbox (or, without a pod, of its only container): 1 to 128 characters of [a-zA-Z0-9_.-].
	ID string
	// Namespace is containerd's, not Kubernetes'.
	Namespace string
	// Dir is the private state directory of this sandbox. It exists, is root's alone, and outlives a crash.
	Dir string
	// Hostname of the pod; empty: the ID's first 63 characters.
	Hostname string
	// NetNS is the path of the pod's network namespace; empty: loopback only.
	NetNS string
	// CgroupsPath as in the OCI spec (either form); empty: the VMM stays in the caller's cgroup.
	CgroupsPath string
	Size        sizing.Size
	// Sysctls of the pod's shared namespaces, dotted names.
	Sysctls map[string]string
	// ShmBytes is the size of the pod's /dev/shm; 0: 64 MiB.
	ShmBytes uint64
}

// Sandbox is a running pod VM. Its methods may be called from several goroutines.
type Sandbox struct{}

// Start starts the pod's VM and returns when its agent has configured it. On an error nothing is left on the host.
// Cancelling ctx afterwards does not end the sandbox.
//
// Errors: ErrInvalidArgument for a Spec that can't be, ErrAlreadyExists when Dir holds another sandbox's record,
// ErrFailedPrecondition for what the host lacks, ErrUnavailable when the guest died or did not answer in the configured
// boot timeout (with the escaped end of its console), ErrResourceExhausted when no uid is free.
func Start(ctx context.Context, deps Deps, spec Spec) (*Sandbox, error) {
	return nil, errdefs.ErrNotImplemented
}

// Cleanup undoes what Start and CreateContainer made for the sandbox whose record is in dir, after a crash of the
// process that made it: it ends the VMM and removes taps, cgroup, uid lock, scratch files. It is idempotent; without a
// record there is nothing to do. It must not be called while the process that started the sandbox lives.
func Cleanup(ctx context.Context, cfg config.Config, dir string) error {
	return errdefs.ErrNotImplemented
}

// ContainerSpec describes a container of the pod.
type ContainerSpec struct {
	// ID is unique in the pod: 1 to 128 characters of [a-zA-Z0-9_.-].
	ID string
	// Spec is the OCI spec as written for the host. It is not changed.
	Spec *specs.Spec
	// RootFS are the mounts that containerd handed over for the root file system.
	RootFS []rootfs.Mount
	// Terminal: stdin and stdout are the two directions of a pty, and Stderr must be false.
	Terminal bool
	// Stdin, Stdout, Stderr say which streams are wanted; the others are /dev/null.
	Stdin, Stdout, Stderr bool
}

// ExecSpec describes a further process of a container.
type ExecSpec struct {
	// Container is the ID of a container whose init was started.
	Container string
	// ID is unique in the container, of the same form as a container's.
	ID string
	// Process is the OCI process; its Terminal field decides whether there is a pty.
	Process *specs.Process
	// Stdin, Stdout, Stderr say which streams are wanted; the others are /dev/null.
	Stdin, Stdout, Stderr bool
}

// CreateContainer prepares the container's root file system, attaches its disks, serves its bind mounts and has the
// guest create its init process, not started. On an error nothing is left of it.
//
// Errors: ErrAlreadyExists for an ID in use, ErrInvalidArgument for a spec that can't be, ErrNotImplemented for one that
// asks for what a sandbox can't give (the text says what and why), ErrUnavailable once the VM has ended.
func (s *Sandbox) CreateContainer(ctx context.Context, spec ContainerSpec) (*Process, error) {
	return nil, errdefs.ErrNotImplemented
}

// CreateExec makes a further process of a running container known, not started. ErrNotFound for an unknown container.
func (s *Sandbox) CreateExec(ctx context.Context, spec ExecSpec) (*Process, error) {
	return nil, errdefs.ErrNotImplemented
}

// Pid is a process in the guest.
type Pid struct {
	// PID in the guest, not on the host.
	PID uint32
	// Exec is the ID of the exec this process is, where it is one.
	Exec string
}

// Pids lists the container's processes, at most 65536 of them.
func (s *Sandbox) Pids(ctx context.Context, container string) ([]Pid, error) {
	return nil, errdefs.ErrNotImplemented
}

// Pause freezes the container's processes.
func (s *Sandbox) Pause(ctx context.Context, container string) error { return errdefs.ErrNotImplemented }

// Resume thaws them.
func (s *Sandbox) Resume(ctx context.Context, container string) error {
	return errdefs.ErrNotImplemented
}

// Update changes the container's limits inside the guest. The VM itself does not grow: a limit above the VM's memory is
// accepted and can't be used up.
func (s *Sandbox) Update(ctx context.Context, container string, resources *specs.LinuxResources) error {
	return errdefs.ErrNotImplemented
}

// Stats reads the container's figures.
func (s *Sandbox) Stats(ctx context.Context, container string) (*guestapi.StatsResponse, error) {
	return nil, errdefs.ErrNotImplemented
}

// Event is something that happened in the guest. Exactly one field is set.
type Event struct {
	OOM *OOM
}

// OOM tells that the guest's kernel killed a process of the container for want of memory.
type OOM struct {
	Container string
}

// Events delivers what happens in the guest, in order. The channel is closed when the sandbox has ended. A reader that
// falls far behind loses events, oldest first.
func (s *Sandbox) Events() <-chan Event { return nil }

// Done is closed when the VM has ended, for whatever reason.
func (s *Sandbox) Done() <-chan struct{} { return nil }

// Err says why the VM has ended: nil while it runs and when it was stopped by Stop, else an ErrUnavailable with the
// reason and, where the guest died, the escaped end of its console.
func (s *Sandbox) Err() error { return nil }

// Info is what is known about a running sandbox.
type Info struct {
	// KernelRelease and AgentVersion are the guest's own words, bounded and printable.
	KernelRelease, AgentVersion string
	// BootTime is from the start of the VMM to the agent's first answer, by the host's clock.
	BootTime time.Duration
	// MemoryTotalBytes and MemoryAvailableBytes are the guest's own figures after boot.
	MemoryTotalBytes, MemoryAvailableBytes uint64
	Acceleration                           vmm.Acceleration
	Size                                   sizing.Size
	// VM are the host's figures of the VMM process.
	VM vmm.Stats
}

// Info tells what runs.
func (s *Sandbox) Info(ctx context.Context) (Info, error) { return Info{}, errdefs.ErrNotImplemented }

// Stop ends the pod: it gives the guest up to 10 seconds to end its containers and write its disks back, stops the VM
// and undoes everything Start and CreateContainer made on the host. It is idempotent, and works when the VM has ended.
func (s *Sandbox) Stop(ctx context.Context) error { return errdefs.ErrNotImplemented }
