package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	guestapi "bulkhead.dev/bulkhead/api/guest"
	"bulkhead.dev/bulkhead/internal/guest/cgroup2"
	"bulkhead.dev/bulkhead/internal/guest/reaper"
	"bulkhead.dev/bulkhead/internal/guest/rpc"
)

// Bounds of what the agent remembers.
const (
	maxContainers = 128
	maxExecs      = 512 // in one container
	maxEvents     = 256
	maxSpec       = 1 << 20 // bytes
	maxMounts     = 256     // of one container
)

// shutdownGrace is how long Shutdown waits for killed containers.
const shutdownGrace = 10 * time.Second

// Options are what an Agent works with.
type Options struct {
	// Streams hands out the data streams of the channel.
	Streams *rpc.Guest
	// Reaper waits for processes.
	Reaper *reaper.Reaper
	// Devices tells of disks and network devices.
	Devices *Devices
	// MountVolumes mounts the file system that the host serves on conn at target.
	MountVolumes func(target string, conn io.ReadWriteCloser) error
	// Ready is closed when all kernel modules are loaded.
	Ready <-chan struct{}
	Log   *slog.Logger
}

// Agent implements guestapi.AgentService.
type Agent struct {
	streams      streams
	devices      *Devices
	mountVolumes func(target string, conn io.ReadWriteCloser) error
	ready        <-chan struct{}
	log          *slog.Logger

	dirs      dirs
	oci       *oci
	assembler *assembler
	mounts    *mounts
	oom       *cgroup2.Watcher
	events    *eventQueue
	pids      *pidNamespace
	ports     *ports

	mu          sync.Mutex
	configuring bool                  // guarded by mu
	configured  bool                  // guarded by mu
	stopping    bool                  // guarded by mu
	containers  map[string]*container // guarded by mu
}

var _ guestapi.AgentService = (*Agent)(nil)

// dirs are where the agent keeps things. All are on tmpfs but the mount points of disks.
type dirs struct {
	containers string // the bundles
	mounts     string // sources of bind mounts
	volumes    string // what the host serves
	runs       string // files of single runs of the runtime
	disks      string // mount points; short (see disks)
}

// New returns an agent. There must be one only, in PID 1 of a machine that Boot has set up.
func New(o Options) (*Agent, error) {
	a := &Agent{
		streams: o.Streams, devices: o.Devices, mountVolumes: o.MountVolumes, ready: o.Ready, log: o.Log,
		dirs: dirs{
			containers: "/run/bulkhead/containers", mounts: "/run/bulkhead/mounts", volumes: "/run/bulkhead/volumes",
			runs: "/run/bulkhead/runs", disks: "/l",
		},
		events: newEventQueue(), pids: &pidNamespace{reaper: o.Reaper}, ports: &ports{streams: o.Streams, dialed: make(map[uint64]net.Conn)},
		containers: make(map[string]*container),
	}
	for _, dir := range []string{a.dirs.containers, a.dirs.mounts, a.dirs.volumes, a.dirs.runs, a.dirs.disks} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("preparing the agent: %w", err)
		}
	}
	a.oci = &oci{reaper: o.Reaper, binary: runtimePath, root: "/run/crun", dir: a.dirs.runs}
	a.mounts = newMounts(a.dirs.mounts, a.dirs.volumes)
	a.assembler = &assembler{disks: newDisks(o.Devices, a.dirs.disks), volumes: a.dirs.volumes}
	var err error
	a.oom, err = cgroup2.NewWatcher(func(container string) {
		a.events.add(&guestapi.Event{Kind: &guestapi.Event_Oom{Oom: &guestapi.OOM{Container: container}}})
	})
	return a, err
}

// Hello implements the service.
func (a *Agent) Hello(_ context.Context, r *guestapi.HelloRequest) (*guestapi.HelloResponse, error) {
	if r.Protocol < 1 {
		return nil, fmt.Errorf("the host speaks protocol version %d: %w", r.Protocol, errdefs.ErrInvalidArgument)
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("asking for the kernel's name: %w", err)
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return nil, fmt.Errorf("reading the clock: %w", err)
	}
	total, available, err := memory()
	if err != nil {
		return nil, err
	}
	return &guestapi.HelloResponse{
		Protocol: min(r.Protocol, guestapi.Version), AgentVersion: Version(), KernelRelease: unix.ByteSliceToString(uts.Release[:]),
		BootNanos: uint64(now.Nano()), MemoryTotalBytes: total, MemoryAvailableBytes: available,
	}, nil
}

// awaitReady returns when all modules are loaded.
func (a *Agent) awaitReady(ctx context.Context) error {
	select {
	case <-a.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// CreateContainer implements the service.
func (a *Agent) CreateContainer(ctx context.Context, r *guestapi.CreateContainerRequest) (_ *guestapi.CreateResponse, err error) {
	defer func() {
		if err != nil {
			dropStdio(a.streams, r.Stdio)
		}
	}()
	if err := checkID("container", r.Id); err != nil {
		return nil, err
	}
	if len(r.Spec) > maxSpec || len(r.Mounts) > maxMounts {
		return nil, fmt.Errorf("container %q: spec of %d bytes, %d mounts: %w", r.Id, len(r.Spec), len(r.Mounts), errdefs.ErrInvalidArgument)
	}
	if err := a.awaitReady(ctx); err != nil {
		return nil, err
	}
	c, err := a.createContainer(ctx, r)
	if err != nil {
		return nil, err
	}
	return &guestapi.CreateResponse{Pid: uint32(c.init.pid())}, nil
}

// CreateExec implements the service. The runtime is started by Start, once for both.
func (a *Agent) CreateExec(_ context.Context, r *guestapi.CreateExecRequest) (_ *guestapi.Empty, err error) {
	defer func() {
		if err != nil {
			dropStdio(a.streams, r.Stdio)
		}
	}()
	if err := checkID("exec", r.Exec); err != nil {
		return nil, err
	}
	if len(r.Process) > maxSpec {
		return nil, fmt.Errorf("exec %q: process of %d bytes: %w", r.Exec, len(r.Process), errdefs.ErrInvalidArgument)
	}
	c, err := a.container(r.Container)
	if err != nil {
		return nil, err
	}
	config, oomScoreAdj, err := prepareExec(r.Process, r.Stdio.GetTerminal())
	if err != nil {
		return nil, fmt.Errorf("exec %q of container %q: %w", r.Exec, r.Container, err)
	}
	io, err := newStdio(a.streams, r.Stdio)
	if err != nil {
		return nil, fmt.Errorf("exec %q of container %q: %w", r.Exec, r.Container, err)
	}
	p := newProcess(r.Container, r.Exec, io)
	p.config, p.oomScoreAdj = config, oomScoreAdj
	if err := c.addExec(p); err != nil {
		io.close()
		return nil, err
	}
	return &guestapi.Empty{}, nil
}

// Start implements the service.
func (a *Agent) Start(ctx context.Context, r *guestapi.ProcessRequest) (*guestapi.StartResponse, error) {
	c, p, err := a.process(r.Container, r.Exec)
	if err != nil {
		return nil, err
	}
	if p == c.init {
		err = a.startInit(c)
	} else {
		err = a.startExec(ctx, c, p)
	}
	if err != nil {
		return nil, err
	}
	return &guestapi.StartResponse{Pid: uint32(p.pid())}, nil
}

// Wait implements the service.
func (a *Agent) Wait(ctx context.Context, r *guestapi.ProcessRequest) (*guestapi.WaitResponse, error) {
	_, p, err := a.process(r.Container, r.Exec)
	if err != nil {
		return nil, err
	}
	exit, err := p.wait(ctx)
	if err != nil {
		return nil, fmt.Errorf("waiting for %s: %w", p, err)
	}
	return &guestapi.WaitResponse{Status: exit.Status, ExitedNanos: exit.At.UnixNano()}, nil
}

// Signal implements the service.
func (a *Agent) Signal(_ context.Context, r *guestapi.SignalRequest) (*guestapi.Empty, error) {
	if r.Signal < 1 || r.Signal > 64 {
		return nil, fmt.Errorf("signal %d: %w", r.Signal, errdefs.ErrInvalidArgument)
	}
	c, p, err := a.process(r.Container, r.Exec)
	if err != nil {
		return nil, err
	}
	if r.All {
		if err := c.cgroup.Signal(unix.Signal(r.Signal)); err != nil {
			return nil, fmt.Errorf("signalling all of container %q: %w", r.Container, err)
		}
		return &guestapi.Empty{}, nil
	}
	if err := p.signal(syscall.Signal(r.Signal)); err != nil {
		return nil, err
	}
	return &guestapi.Empty{}, nil
}

// ResizePty implements the service.
func (a *Agent) ResizePty(_ context.Context, r *guestapi.ResizePtyRequest) (*guestapi.Empty, error) {
	_, p, err := a.process(r.Container, r.Exec)
	if err != nil {
		return nil, err
	}
	if err := p.io.resize(r.Width, r.Height); err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	return &guestapi.Empty{}, nil
}

// Delete implements the service.
func (a *Agent) Delete(_ context.Context, r *guestapi.ProcessRequest) (*guestapi.Empty, error) {
	c, p, err := a.process(r.Container, r.Exec)
	if err != nil {
		return nil, err
	}
	if p == c.init {
		err = a.deleteContainer(c)
	} else {
		err = c.deleteExec(p)
	}
	if err != nil {
		return nil, err
	}
	return &guestapi.Empty{}, nil
}

// Pids implements the service.
func (a *Agent) Pids(_ context.Context, r *guestapi.ContainerRequest) (*guestapi.PidsResponse, error) {
	c, err := a.container(r.Container)
	if err != nil {
		return nil, err
	}
	pids, err := c.cgroup.Processes()
	if err != nil {
		return nil, fmt.Errorf("processes of container %q: %w", r.Container, err)
	}
	execs := make(map[int]string)
	c.mu.Lock()
	for id, p := range c.execs {
		if p.current() == stateRunning {
			execs[p.pid()] = id
		}
	}
	c.mu.Unlock()
	resp := &guestapi.PidsResponse{}
	for _, pid := range pids {
		resp.Processes = append(resp.Processes, &guestapi.PidInfo{Pid: uint32(pid), Exec: execs[pid]})
	}
	return resp, nil
}

// Pause implements the service.
func (a *Agent) Pause(_ context.Context, r *guestapi.ContainerRequest) (*guestapi.Empty, error) {
	return a.freeze(r.Container, true)
}

// Resume implements the service.
func (a *Agent) Resume(_ context.Context, r *guestapi.ContainerRequest) (*guestapi.Empty, error) {
	return a.freeze(r.Container, false)
}

func (a *Agent) freeze(id string, frozen bool) (*guestapi.Empty, error) {
	c, err := a.container(id)
	if err != nil {
		return nil, err
	}
	c.changing.Lock()
	defer c.changing.Unlock()
	doing := "resuming"
	if frozen {
		doing = "pausing"
	}
	if err := c.init.expect(doing, stateRunning); err != nil {
		return nil, err
	}
	if err := c.cgroup.Freeze(frozen); err != nil {
		return nil, fmt.Errorf("%s %s: %w", doing, c.init, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = frozen
	return &guestapi.Empty{}, nil
}

// Update implements the service.
func (a *Agent) Update(_ context.Context, r *guestapi.UpdateRequest) (*guestapi.Empty, error) {
	if len(r.Resources) > maxSpec {
		return nil, fmt.Errorf("resources of %d bytes: %w", len(r.Resources), errdefs.ErrInvalidArgument)
	}
	c, err := a.container(r.Container)
	if err != nil {
		return nil, err
	}
	c.changing.Lock()
	defer c.changing.Unlock()
	if c.init.current() == stateStopped {
		return nil, fmt.Errorf("updating %s, which has ended: %w", c.init, errdefs.ErrFailedPrecondition)
	}
	if err := c.cgroup.Update(r.Resources); err != nil {
		return nil, fmt.Errorf("updating %s: %w", c.init, err)
	}
	return &guestapi.Empty{}, nil
}

// Stats implements the service.
func (a *Agent) Stats(_ context.Context, r *guestapi.ContainerRequest) (*guestapi.StatsResponse, error) {
	c, err := a.container(r.Container)
	if err != nil {
		return nil, err
	}
	stats, err := c.cgroup.Stats()
	if err != nil {
		return nil, fmt.Errorf("statistics of container %q: %w", r.Container, err)
	}
	if c.rootfs.scratch != "" && !c.rootfs.readonly {
		bytes, inodes, err := usage(c.rootfs.scratch)
		if err != nil {
			return nil, fmt.Errorf("statistics of container %q: %w", r.Container, err)
		}
		stats.RootfsUsedBytes = bytes - min(bytes, c.rootfs.baseBytes)
		stats.RootfsUsedInodes = inodes - min(inodes, c.rootfs.baseInodes)
	}
	return stats, nil
}

// NextEvent implements the service.
func (a *Agent) NextEvent(ctx context.Context, _ *guestapi.Empty) (*guestapi.Event, error) {
	return a.events.next(ctx)
}

// Shutdown implements the service. It is idempotent.
func (a *Agent) Shutdown(ctx context.Context, _ *guestapi.Empty) (*guestapi.Empty, error) {
	a.mu.Lock()
	a.stopping = true
	a.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, shutdownGrace)
	defer cancel()
	all := a.all()
	var errs []error
	for _, c := range all {
		errs = append(errs, c.cgroup.Kill())
	}
	for _, c := range all {
		if _, err := c.init.wait(ctx); err != nil {
			errs = append(errs, fmt.Errorf("ending container %q: %w", c.id, err))
			continue
		}
		errs = append(errs, a.deleteContainer(c))
	}
	unix.Sync()
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("shutting down: %w", err)
	}
	return &guestapi.Empty{}, nil
}

// memory returns the guest's memory, in bytes.
func memory() (total, available uint64, err error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, fmt.Errorf("reading the memory's size: %w", err)
	}
	total, available = parseMeminfo(b)
	return total, available, nil
}

// parseMeminfo reads lines such as "MemTotal:  196000 kB".
func parseMeminfo(b []byte) (total, available uint64) {
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		n, _ := strconv.ParseUint(fields[1], 10, 64)
		switch fields[0] {
		case "MemTotal:":
			total = n << 10
		case "MemAvailable:":
			available = n << 10
		}
	}
	return total, available
}
