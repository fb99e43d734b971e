package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	guestapi "bulkhead.dev/bulkhead/api/guest"
	"bulkhead.dev/bulkhead/internal/config"
	"bulkhead.dev/bulkhead/internal/guest/rpc"
	"bulkhead.dev/bulkhead/internal/guestimage"
	"bulkhead.dev/bulkhead/internal/rootfs"
	"bulkhead.dev/bulkhead/internal/sandbox/sizing"
	"bulkhead.dev/bulkhead/internal/vmm"
	"bulkhead.dev/bulkhead/internal/volume"
)

const (
	// graceTimeout is what Stop gives the guest to end its containers and write its disks back.
	graceTimeout = 10 * time.Second
	// undoTimeout bounds what takes side effects back when the caller's own time is up.
	undoTimeout = 30 * time.Second
	// collectTimeout bounds what Stop spends on layers of other pods, long gone.
	collectTimeout = 3 * time.Second
	// endGrace is how long the VMM may take to end with a reason of its own after the guest's channel broke.
	endGrace = 2 * time.Second
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
type Sandbox struct {
	deps Deps
	spec Spec
	host host
	rec  *recorder
	undo undoStack // what start made
	net  *network  // nil without a network namespace
	uid  *uidLock
	// cgroup of the VMM, empty for the caller's, and what removes it.
	cgroup     string
	dropCgroup func() error

	vm      vmm.VM
	booted  time.Time // when the VM was started
	channel *rpc.Host
	agent   guestapi.AgentService
	volumes *volume.Server
	exports *exports
	disks   *disks
	streams atomic.Uint64 // the last id of a data stream that was given away
	info    Info
	events  chan Event

	// life ends with the VM; what waits for the guest waits for it too.
	life context.Context
	end  context.CancelFunc
	// forwarding ends with life or at the beginning of Stop: with the channel end all of its streams at once, and many readers would
	// spin until each is told (yamux).
	forwarding    context.Context
	endForwarding context.CancelFunc
	// done is closed when the VM has ended, after err was set.
	done chan struct{}

	stop sync.Mutex // one Stop at a time

	mu         sync.Mutex
	stopping   bool // Stop was called; no container is made any more
	err        error
	containers map[string]*container
	made       int            // containers that were ever made, to name their mounts
	creating   sync.WaitGroup // constructions under way; added to under mu while not stopping
}

// Done is closed when the VM has ended, for whatever reason.
func (s *Sandbox) Done() <-chan struct{} { return s.done }

// Err says why the VM has ended: nil while it runs and when it was stopped by Stop, else an ErrUnavailable with the
// driver's reason. For a guest that broke its channel that is what was wrong, and the escaped end of its console.
func (s *Sandbox) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

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
func (s *Sandbox) Info(ctx context.Context) (Info, error) {
	info := s.info
	stats, err := s.vm.Stats(ctx)
	if err != nil {
		return Info{}, fmt.Errorf("sandbox %s: %w", s.spec.ID, err)
	}
	info.VM = stats
	return info, nil
}

// Stop ends the pod: it gives the guest up to 10 seconds to end its containers and write its disks back, stops the VM
// and undoes everything Start and CreateContainer made on the host. Then it has the layer cache collect what is over the
// configured limits, for a few seconds at most, and without a say in whether Stop succeeds. It is idempotent, and works when the VM has ended.
// The graceful part ends early with ctx; the rest is done all the same.
func (s *Sandbox) Stop(ctx context.Context) error {
	s.stop.Lock()
	defer s.stop.Unlock()
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()

	s.endForwarding()
	s.shutdown(ctx)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	errs := []error{s.vm.Stop(ctx)}
	// Every construction under way fails at its next step and undoes itself.
	s.end()
	s.creating.Wait()
	for _, c := range s.list() {
		errs = append(errs, c.discard(ctx))
	}
	errs = append(errs, s.undo.unwind(ctx))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop sandbox %s: %w", s.spec.ID, err)
	}
	s.collectLayers(ctx)
	return nil
}

// collectLayers keeps the node's layer cache within its limits. Each Stop does it, since no process lives as long as the cache,
// and now there is more to remove than before: this sandbox's layers are released. [Cleanup] doesn't: it has no logger and
// little time, and the next Stop does the same.
func (s *Sandbox) collectLayers(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, collectTimeout)
	defer cancel()
	c := s.deps.Config.Layers
	got, err := s.host.collect(ctx, rootfs.Limits{MaxBytes: c.MaxSize, MaxAge: c.MaxAge})
	if got.Removed > 0 {
		s.deps.Logger.InfoContext(ctx, "image layers were collected", "removed", got.Removed, "removed_bytes", got.RemovedBytes,
			"kept", got.Kept, "kept_bytes", got.KeptBytes)
	}
	if err != nil {
		s.deps.Logger.WarnContext(ctx, "image layers were not collected", "sandbox", s.spec.ID, "error", err)
	}
}

// shutdown asks the guest to end. That it doesn't is no error: it is ended anyway.
func (s *Sandbox) shutdown(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, graceTimeout)
	defer cancel()
	err := s.call(ctx, "shut down", func(ctx context.Context) error {
		_, err := s.agent.Shutdown(ctx, &guestapi.Empty{})
		return err
	})
	if err != nil && !errdefs.IsUnavailable(err) {
		s.deps.Logger.WarnContext(ctx, "guest did not shut down", "sandbox", s.spec.ID, "error", err)
	}
}

// call runs f, a call to the agent, with a context that ends with the VM too. When the VM has ended its error is the
// reason of that.
func (s *Sandbox) call(ctx context.Context, what string, f func(context.Context) error) error {
	if err := s.ended(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	err := f(inner)
	if err == nil {
		return nil
	}
	// A call that fails because the channel breaks is a moment earlier than the news that the VM has ended, and why.
	select {
	case <-s.channel.Done():
		select {
		case <-s.done:
		case <-ctx.Done():
		}
	default:
	}
	if reason := s.ended(); reason != nil {
		return fmt.Errorf("%s: %w", what, reason)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// ended is nil while the VM runs, and else an ErrUnavailable with the reason.
func (s *Sandbox) ended() error {
	select {
	case <-s.done:
	default:
		return nil
	}
	if err := s.Err(); err != nil {
		return err
	}
	return fmt.Errorf("sandbox %s was stopped: %w", s.spec.ID, errdefs.ErrUnavailable)
}

// watch waits for the VM's end and announces it. A guest that breaks its channel is ended: nothing can be asked of it
// any more.
func (s *Sandbox) watch() {
	ended := make(chan error, 1)
	go func() { ended <- s.vm.Wait(context.Background()) }()
	var reason error
	select {
	case reason = <-ended:
	case <-s.channel.Done():
		reason = s.endBroken(ended)
	}
	s.mu.Lock()
	if reason != nil && !s.stopping {
		s.err = fmt.Errorf("sandbox %s has ended: %w", s.spec.ID, unavailable(reason))
	}
	s.mu.Unlock()
	close(s.done)
	s.end()
	s.channel.Close()
}

// endBroken waits a moment for the VM to end by itself, and else ends it.
func (s *Sandbox) endBroken(ended <-chan error) error {
	select {
	case reason := <-ended:
		return reason
	case <-time.After(endGrace):
	}
	reason := s.channel.Err()
	if reason == nil {
		reason = errors.New("it was closed")
	}
	ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
	defer cancel()
	err := s.vm.Stop(ctx)
	return errors.Join(withConsole(fmt.Errorf("channel to the guest: %w", reason), s.vm), err)
}

// list returns the containers there are.
func (s *Sandbox) list() []*container {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		all = append(all, c)
	}
	return all
}

func unavailable(reason error) error {
	if errdefs.IsUnavailable(reason) {
		return reason
	}
	return fmt.Errorf("%w: %w", reason, errdefs.ErrUnavailable)
}

// withConsole adds to a reason what the guest's kernel said last. That is hostile, so it is cut and quoted.
func withConsole(reason error, vm vmm.VM) error {
	const most = 2 << 10
	console, ok := vm.(vmm.Console)
	if !ok {
		return reason
	}
	tail := console.ConsoleTail()
	if len(tail) > most {
		tail = tail[len(tail)-most:]
	}
	return fmt.Errorf("%w; its console ends with %q", reason, tail)
}
