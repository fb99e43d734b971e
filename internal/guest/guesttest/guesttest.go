// Package guesttest is an in-memory guest: an implementation of the agent's service for tests of host code that need no VM.
//
// An [Agent] keeps the same states as the real agent and answers with the same classes of errors. Its containers have no
// file systems; their processes are goroutines that run the "program" named by args[0]:
//
//	cat          copies stdin to stdout until the end of stdin, then ends with 0
//	echo ARGS    writes the arguments and a newline to stdout, ends with 0
//	err ARGS     the same to stderr
//	bytes N      writes N zero bytes to stdout, ends with 0
//	exit N       ends with N
//	sleep        runs until a signal n that ends processes, then ends with 128+n
//	missing      can't be started: Start answers NotFound
//
// Any other program is NotFound too. Signals below 1 and above 64 are InvalidArgument; SIGCONT, SIGCHLD, SIGURG and
// SIGWINCH end nothing, all others end any program.
//
// Tests read what the host has asked for with [Agent.Calls], and make the guest misbehave with [Agent.Fail] and
// [Agent.Hang].
package guesttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"

	guestapi "bulkhead.dev/bulkhead/api/guest"
	"bulkhead.dev/bulkhead/internal/guest/rpc"
)

// Agent is a guest's agent without a guest. It implements guestapi.AgentService.
type Agent struct {
	events chan *guestapi.Event
	done   chan struct{} // closed by Shutdown

	mu         sync.Mutex
	guest      *rpc.Guest               // guarded by mu
	dialed     map[uint64]chan struct{} // by stream, closed by HangUp; guarded by mu
	calls      []Call                   // guarded by mu
	failures   map[string]error         // guarded by mu
	hanging    map[string]bool          // guarded by mu
	configured bool                     // guarded by mu
	containers map[string]*container    // guarded by mu
	nextPID    uint32                   // guarded by mu
	stopped    bool                     // guarded by mu
}

var _ guestapi.AgentService = (*Agent)(nil)

// Call is one call that the agent got.
type Call struct {
	Method  string // "CreateContainer"
	Request proto.Message
}

type container struct {
	request *guestapi.CreateContainerRequest
	init    *process
	execs   map[string]*process
	paused  bool
	limit   uint64
}

// New returns an agent that has just booted.
func New() *Agent {
	return &Agent{
		events:     make(chan *guestapi.Event, 64),
		done:       make(chan struct{}),
		failures:   make(map[string]error),
		dialed:     make(map[uint64]chan struct{}),
		hanging:    make(map[string]bool),
		containers: make(map[string]*container),
		nextPID:    100,
	}
}

// Serve is the guest's end of conn. It returns when the session ends.
func (a *Agent) Serve(conn io.ReadWriteCloser) error {
	guest, err := rpc.NewGuest(conn)
	if err != nil {
		return err
	}
	defer guest.Close()
	a.mu.Lock()
	a.guest = guest
	a.mu.Unlock()
	return guest.Serve(context.Background(), a)
}

// Calls returns the calls so far, in the order in which they came.
func (a *Agent) Calls() []Call {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]Call(nil), a.calls...)
}

// Requests returns the requests of all calls of one method so far.
func (a *Agent) Requests(method string) []proto.Message {
	var requests []proto.Message
	for _, c := range a.Calls() {
		if c.Method == method {
			requests = append(requests, c.Request)
		}
	}
	return requests
}

// Fail makes every later call of a method fail with err; nil ends that.
func (a *Agent) Fail(method string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failures[method] = err
}

// Hang makes every later call of a method wait until its context ends, as a guest does that is stuck.
func (a *Agent) Hang(method string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hanging[method] = true
}

// OOM plays a kill by the kernel for want of memory: the container's init ends with 137 and an event tells of it.
func (a *Agent) OOM(id string) error {
	c, err := a.container(id)
	if err != nil {
		return err
	}
	a.events <- &guestapi.Event{Kind: &guestapi.Event_Oom{Oom: &guestapi.OOM{Container: id}}}
	return c.init.signal(uint32(syscall.SIGKILL))
}

// Containers returns the ids of the containers that exist.
func (a *Agent) Containers() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var ids []string
	for id := range a.containers {
		ids = append(ids, id)
	}
	return ids
}

// enter logs a call and lets it fail or hang if a test wants that.
func (a *Agent) enter(ctx context.Context, method string, request proto.Message) error {
	a.mu.Lock()
	a.calls = append(a.calls, Call{method, proto.Clone(request)})
	err, hang := a.failures[method], a.hanging[method]
	a.mu.Unlock()
	if hang {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (a *Agent) container(id string) (*container, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.containers[id]
	if c == nil {
		return nil, fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

func (a *Agent) process(id, exec string) (*process, error) {
	c, err := a.container(id)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if exec == "" {
		return c.init, nil
	}
	p := c.execs[exec]
	if p == nil {
		return nil, fmt.Errorf("exec %q of container %q: %w", exec, id, errdefs.ErrNotFound)
	}
	return p, nil
}

// Hello implements the service.
func (a *Agent) Hello(ctx context.Context, r *guestapi.HelloRequest) (*guestapi.HelloResponse, error) {
	if err := a.enter(ctx, "Hello", r); err != nil {
		return nil, err
	}
	return &guestapi.HelloResponse{
		Protocol:             guestapi.Version,
		AgentVersion:         "test",
		KernelRelease:        "6.1.0-test",
		BootNanos:            1e9,
		MemoryTotalBytes:     256 << 20,
		MemoryAvailableBytes: 200 << 20,
	}, nil
}

// Configure implements the service.
func (a *Agent) Configure(ctx context.Context, r *guestapi.ConfigureRequest) (*guestapi.Empty, error) {
	if err := a.enter(ctx, "Configure", r); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.configured {
		return nil, fmt.Errorf("configuring the guest a second time: %w", errdefs.ErrFailedPrecondition)
	}
	a.configured = true
	return &guestapi.Empty{}, nil
}

// CreateContainer implements the service.
func (a *Agent) CreateContainer(ctx context.Context, r *guestapi.CreateContainerRequest) (*guestapi.CreateResponse, error) {
	if err := a.enter(ctx, "CreateContainer", r); err != nil {
		return nil, err
	}
	args, err := specArgs(r.Spec)
	if err != nil {
		return nil, fmt.Errorf("container %q: %w", r.Id, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.containers[r.Id] != nil {
		return nil, fmt.Errorf("container %q: %w", r.Id, errdefs.ErrAlreadyExists)
	}
	p := newProcess(args, r.Stdio)
	p.pid = a.pid()
	a.containers[r.Id] = &container{request: r, init: p, execs: make(map[string]*process), limit: 1<<64 - 1}
	return &guestapi.CreateResponse{Pid: p.pid}, nil
}

// pid returns the next one. The caller holds mu.
func (a *Agent) pid() uint32 {
	a.nextPID++
	return a.nextPID
}

// CreateExec implements the service.
func (a *Agent) CreateExec(ctx context.Context, r *guestapi.CreateExecRequest) (*guestapi.Empty, error) {
	if err := a.enter(ctx, "CreateExec", r); err != nil {
		return nil, err
	}
	args, err := processArgs(r.Process)
	if err != nil {
		return nil, fmt.Errorf("exec %q: %w", r.Exec, err)
	}
	c, err := a.container(r.Container)
	if err != nil {
		return nil, err
	}
	if state := c.init.current(); state != running {
		return nil, fmt.Errorf("exec in container %q, which is %s: %w", r.Container, state, errdefs.ErrFailedPrecondition)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if c.execs[r.Exec] != nil {
		return nil, fmt.Errorf("exec %q of container %q: %w", r.Exec, r.Container, errdefs.ErrAlreadyExists)
	}
	p := newProcess(args, r.Stdio)
	p.pid = a.pid()
	c.execs[r.Exec] = p
	return &guestapi.Empty{}, nil
}

// Start implements the service.
func (a *Agent) Start(ctx context.Context, r *guestapi.ProcessRequest) (*guestapi.StartResponse, error) {
	if err := a.enter(ctx, "Start", r); err != nil {
		return nil, err
	}
	p, err := a.process(r.Container, r.Exec)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	guest := a.guest
	a.mu.Unlock()
	if err := p.start(ctx, guest); err != nil {
		return nil, fmt.Errorf("starting process %q of container %q: %w", r.Exec, r.Container, err)
	}
	return &guestapi.StartResponse{Pid: p.pid}, nil
}

// Wait implements the service.
func (a *Agent) Wait(ctx context.Context, r *guestapi.ProcessRequest) (*guestapi.WaitResponse, error) {
	if err := a.enter(ctx, "Wait", r); err != nil {
		return nil, err
	}
	p, err := a.process(r.Container, r.Exec)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.ended:
		return &guestapi.WaitResponse{Status: p.status, ExitedNanos: p.at.UnixNano()}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Signal implements the service.
func (a *Agent) Signal(ctx context.Context, r *guestapi.SignalRequest) (*guestapi.Empty, error) {
	if err := a.enter(ctx, "Signal", r); err != nil {
		return nil, err
	}
	if r.Signal < 1 || r.Signal > 64 {
		return nil, fmt.Errorf("signal %d: %w", r.Signal, errdefs.ErrInvalidArgument)
	}
	p, err := a.process(r.Container, r.Exec)
	if err != nil {
		return nil, err
	}
	if r.All {
		c, err := a.container(r.Container)
		if err != nil {
			return nil, err
		}
		a.mu.Lock()
		execs := make([]*process, 0, len(c.execs))
		for _, e := range c.execs {
			execs = append(execs, e)
		}
		a.mu.Unlock()
		for _, e := range execs {
			_ = e.signal(r.Signal) // it may have ended
		}
		p = c.init
	}
	if err := p.signal(r.Signal); err != nil && !r.All {
		return nil, fmt.Errorf("signal %d to process %q of container %q: %w", r.Signal, r.Exec, r.Container, err)
	}
	return &guestapi.Empty{}, nil
}

// ResizePty implements the service.
func (a *Agent) ResizePty(ctx context.Context, r *guestapi.ResizePtyRequest) (*guestapi.Empty, error) {
	if err := a.enter(ctx, "ResizePty", r); err != nil {
		return nil, err
	}
	p, err := a.process(r.Container, r.Exec)
	if err != nil {
		return nil, err
	}
	if !p.stdio.GetTerminal() {
		return nil, fmt.Errorf("process %q of container %q has no terminal: %w", r.Exec, r.Container, errdefs.ErrFailedPrecondition)
	}
	return &guestapi.Empty{}, nil
}

// Delete implements the service.
func (a *Agent) Delete(ctx context.Context, r *guestapi.ProcessRequest) (*guestapi.Empty, error) {
	if err := a.enter(ctx, "Delete", r); err != nil {
		return nil, err
	}
	p, err := a.process(r.Container, r.Exec)
	if err != nil {
		return nil, err
	}
	if p.current() == running {
		return nil, fmt.Errorf("deleting process %q of container %q, which is running: %w", r.Exec, r.Container, errdefs.ErrFailedPrecondition)
	}
	p.abandon()
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.Exec == "" {
		for _, e := range a.containers[r.Container].execs {
			_ = e.signal(uint32(syscall.SIGKILL)) // it may have ended
		}
		delete(a.containers, r.Container)
	} else {
		delete(a.containers[r.Container].execs, r.Exec)
	}
	return &guestapi.Empty{}, nil
}

// Pids implements the service.
func (a *Agent) Pids(ctx context.Context, r *guestapi.ContainerRequest) (*guestapi.PidsResponse, error) {
	if err := a.enter(ctx, "Pids", r); err != nil {
		return nil, err
	}
	c, err := a.container(r.Container)
	if err != nil {
		return nil, err
	}
	resp := &guestapi.PidsResponse{}
	if c.init.current() != ended {
		resp.Processes = append(resp.Processes, &guestapi.PidInfo{Pid: c.init.pid})
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, e := range c.execs {
		if e.current() == running {
			resp.Processes = append(resp.Processes, &guestapi.PidInfo{Pid: e.pid, Exec: id})
		}
	}
	return resp, nil
}

// Pause implements the service.
func (a *Agent) Pause(ctx context.Context, r *guestapi.ContainerRequest) (*guestapi.Empty, error) {
	return a.freeze(ctx, "Pause", r, true)
}

// Resume implements the service.
func (a *Agent) Resume(ctx context.Context, r *guestapi.ContainerRequest) (*guestapi.Empty, error) {
	return a.freeze(ctx, "Resume", r, false)
}

func (a *Agent) freeze(ctx context.Context, method string, r *guestapi.ContainerRequest, paused bool) (*guestapi.Empty, error) {
	if err := a.enter(ctx, method, r); err != nil {
		return nil, err
	}
	c, err := a.container(r.Container)
	if err != nil {
		return nil, err
	}
	if state := c.init.current(); state != running {
		return nil, fmt.Errorf("%s of container %q, which is %s: %w", strings.ToLower(method), r.Container, state, errdefs.ErrFailedPrecondition)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	c.paused = paused
	return &guestapi.Empty{}, nil
}

// Update implements the service. It knows the memory limit, which Stats then shows.
func (a *Agent) Update(ctx context.Context, r *guestapi.UpdateRequest) (*guestapi.Empty, error) {
	if err := a.enter(ctx, "Update", r); err != nil {
		return nil, err
	}
	limit, err := memoryLimit(r.Resources)
	if err != nil {
		return nil, fmt.Errorf("updating container %q: %w", r.Container, err)
	}
	c, err := a.container(r.Container)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if limit != 0 {
		c.limit = limit
	}
	return &guestapi.Empty{}, nil
}

// Stats implements the service.
func (a *Agent) Stats(ctx context.Context, r *guestapi.ContainerRequest) (*guestapi.StatsResponse, error) {
	if err := a.enter(ctx, "Stats", r); err != nil {
		return nil, err
	}
	c, err := a.container(r.Container)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return &guestapi.StatsResponse{
		CpuUsageUsec: 3000, CpuUserUsec: 2000, CpuSystemUsec: 1000,
		MemoryUsage: 1 << 20, MemoryAnon: 512 << 10, MemoryFile: 512 << 10, MemoryLimit: c.limit,
		PidsCurrent: 1, PidsLimit: 1<<64 - 1, RootfsUsedBytes: 4096, RootfsUsedInodes: 1,
	}, nil
}

// Ports of the guest. At all others is an echo.
const (
	RefusedPort = 1 // nobody listens
	FloodPort   = 2 // sends without end, until it is hung up
)

func (a *Agent) streams() *rpc.Guest {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.guest
}

// Dial implements the service.
func (a *Agent) Dial(ctx context.Context, r *guestapi.DialRequest) (*guestapi.Empty, error) {
	if err := a.enter(ctx, "Dial", r); err != nil {
		return nil, err
	}
	if r.Port == RefusedPort {
		a.streams().Drop(r.Stream)
		return nil, fmt.Errorf("port %d: %w", r.Port, errdefs.ErrNotFound)
	}
	stream, err := a.streams().Take(ctx, r.Stream)
	if err != nil {
		return nil, err
	}
	hungUp := make(chan struct{})
	a.mu.Lock()
	a.dialed[r.Stream] = hungUp
	a.mu.Unlock()
	go func() {
		defer stream.Close()
		if r.Port != FloodPort {
			_, _ = io.Copy(stream, stream)
			return
		}
		for {
			select {
			case <-hungUp:
				return
			default:
			}
			if _, err := stream.Write(make([]byte, 1<<10)); err != nil {
				return
			}
		}
	}()
	return &guestapi.Empty{}, nil
}

// HangUp implements the service.
func (a *Agent) HangUp(ctx context.Context, r *guestapi.HangUpRequest) (*guestapi.Empty, error) {
	if err := a.enter(ctx, "HangUp", r); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if hungUp := a.dialed[r.Stream]; hungUp != nil {
		delete(a.dialed, r.Stream)
		close(hungUp)
	}
	return &guestapi.Empty{}, nil
}

// NextEvent implements the service.
func (a *Agent) NextEvent(ctx context.Context, r *guestapi.Empty) (*guestapi.Event, error) {
	if err := a.enter(ctx, "NextEvent", r); err != nil {
		return nil, err
	}
	select {
	case e := <-a.events:
		return e, nil
	case <-a.done:
		return nil, fmt.Errorf("no more events: the guest shuts down: %w", errdefs.ErrUnavailable)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Shutdown implements the service. It is idempotent.
func (a *Agent) Shutdown(ctx context.Context, r *guestapi.Empty) (*guestapi.Empty, error) {
	if err := a.enter(ctx, "Shutdown", r); err != nil {
		return nil, err
	}
	a.mu.Lock()
	var all []*process
	for _, c := range a.containers {
		all = append(all, c.init)
		for _, e := range c.execs {
			all = append(all, e)
		}
	}
	if !a.stopped {
		a.stopped = true
		close(a.done)
	}
	a.mu.Unlock()
	var errs []error
	for _, p := range all {
		if err := p.signal(uint32(syscall.SIGKILL)); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	return &guestapi.Empty{}, errors.Join(errs...)
}
