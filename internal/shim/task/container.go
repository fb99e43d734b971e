package task

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"bulkhead.dev/bulkhead/internal/sandbox"
	"bulkhead.dev/bulkhead/internal/shim/stdio"
)

// Publisher takes events for containerd. Publish doesn't wait, and keeps the order.
type Publisher interface {
	Publish(event proto.Message)
}

// kind is what a container is to its pod.
type kind int

const (
	member kind = iota // an ordinary container of a pod
	lone               // the only one, whose VM is its own
	pauser             // CRI's sandbox container, which has no process
)

// container is one task of containerd's.
type container struct {
	id, bundle string
	kind       kind
	pod        *pod
	events     Publisher
	log        *slog.Logger

	init *process // set before the container is known to others

	mu       sync.Mutex
	execs    map[string]*process   // guarded by mu; nil: being created
	starting map[*process]struct{} // guarded by mu: execs between created and running
	ending   bool                  // guarded by mu: the init has ended, no exec starts any more
	oom      chan struct{}         // closed by the first OOM
	oomOnce  sync.Once

	killing, deleting sync.Once // the guest is being watched at it
}

func newContainer(id, bundle string, k kind, pod *pod, events Publisher, log *slog.Logger) *container {
	return &container{
		id: id, bundle: bundle, kind: k, pod: pod, events: events, log: log.With("container", id),
		execs:    make(map[string]*process),
		starting: make(map[*process]struct{}),
		oom:      make(chan struct{}),
	}
}

// process finds the init, or an exec by its id.
func (c *container) process(exec string) (*process, error) {
	if exec == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.execs[exec]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("exec %.128q of container %s: %w", exec, c.id, errdefs.ErrNotFound)
}

// addExec makes an exec known.
func (c *container) addExec(ctx context.Context, id string, spec *specs.Process, names stdio.Names) error {
	if c.kind == pauser {
		return fmt.Errorf("exec in sandbox container %s, which has no process: %w", c.id, errdefs.ErrNotImplemented)
	}
	if now, _ := c.init.now(); now != running {
		return fmt.Errorf("container %s is %s; an exec needs it running: %w", c.id, now, errdefs.ErrFailedPrecondition)
	}
	c.mu.Lock()
	if _, taken := c.execs[id]; taken || id == "" {
		c.mu.Unlock()
		return fmt.Errorf("exec %.128q of container %s: %w", id, c.id, errdefs.ErrAlreadyExists)
	}
	c.execs[id] = nil
	c.mu.Unlock()

	p, err := c.createExec(ctx, id, spec, names)
	c.mu.Lock()
	if err != nil {
		delete(c.execs, id)
	} else {
		c.execs[id] = p
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	c.events.Publish(&events.TaskExecAdded{ContainerID: c.id, ExecID: id})
	return nil
}

func (c *container) createExec(ctx context.Context, id string, spec *specs.Process, names stdio.Names) (*process, error) {
	io, err := stdio.Open(ctx, names)
	if err != nil {
		return nil, fmt.Errorf("exec %s of container %s: %w", id, c.id, err)
	}
	guest, err := c.pod.machine.CreateExec(ctx, sandbox.ExecSpec{
		Container: c.id, ID: id, Process: spec,
		Stdin: io.HasStdin(), Stdout: io.HasStdout(), Stderr: io.HasStderr(),
	})
	if err != nil {
		io.Close()
		return nil, err
	}
	return newProcess(c, id, guest, io), nil
}

// enter says whether a process may start now. An exec that may has to leave when it is running, or is not.
func (c *container) enter(p *process) (leave func(), err error) {
	if p.exec == "" {
		return func() {}, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return nil, fmt.Errorf("start %s: its init has ended: %w", p, errdefs.ErrFailedPrecondition)
	}
	c.starting[p] = struct{}{}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.starting, p)
	}, nil
}

// settle is called when the init has ended, before its exit is published: it waits for the exits of the execs, which end
// with it, and for the OOM event, if the exit wants an explanation.
func (c *container) settle(explained bool) {
	c.mu.Lock()
	c.ending = true
	c.mu.Unlock()
	patience, cancel := context.WithTimeout(context.Background(), c.pod.limits.execs)
	defer cancel()
	for patience.Err() == nil {
		p, started := c.liveExec()
		if p == nil {
			break
		}
		if !started { // its start is going on; it will be running, or created again
			if p.op.lock(patience) == nil {
				p.op.unlock()
			}
		} else {
			select {
			case <-p.ended:
			case <-patience.Done():
			}
		}
		if patience.Err() != nil {
			c.log.Warn("an exec outlives its container", "exec", p.exec)
		}
	}
	if explained {
		return
	}
	select {
	case <-c.oom:
	case <-c.pod.machine.Done():
	case <-time.After(oomPatience):
	}
}

// liveExec returns an exec that was started and has not ended, or is just being started.
func (c *container) liveExec() (p *process, started bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.starting {
		return p, false
	}
	for _, p := range c.execs {
		if p == nil {
			continue
		}
		if now, _ := p.now(); now == running || now == paused {
			return p, true
		}
	}
	return nil, false
}

// lost is the exit of a process of which the guest gave none.
func (c *container) lost(p *process, err error) sandbox.Exit {
	select {
	case <-c.pod.machine.Done():
		return sandbox.Exit{Status: statusKilled, At: time.Now()}
	default:
	}
	c.log.Error("the exit of a process is unknown", "process", p.String(), "error", err)
	return sandbox.Exit{Status: statusUnknown, At: time.Now()}
}

// abandon ends what was created and not started, because the VM has ended.
func (c *container) abandon() {
	for _, p := range c.allExecs() {
		p.abandon()
	}
	c.init.abandon()
}

func (c *container) allExecs() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*process, 0, len(c.execs))
	for _, p := range c.execs {
		if p != nil {
			all = append(all, p)
		}
	}
	return all
}

// kill signals a process. A guest that doesn't do what SIGKILL demands of it loses its VM: in a pod too, for containerd stops no
// sandbox before its containers have ended.
func (c *container) kill(ctx context.Context, exec string, signal uint32, all bool) error {
	p, err := c.process(exec)
	if err != nil {
		return err
	}
	if c.kind == pauser || exec != "" || signal != uint32(unix.SIGKILL) {
		return p.kill(ctx, signal, all)
	}
	c.killing.Do(func() { go c.insist("kill", p.told, p.ended) })
	bounded, cancel := context.WithTimeout(ctx, c.pod.limits.answer)
	defer cancel()
	err = p.kill(bounded, signal, all)
	if err == nil || ctx.Err() != nil || bounded.Err() == nil {
		return err
	}
	c.log.Error("the guest does not answer; its VM is stopped", "error", err)
	return c.pod.machine.Stop(ctx)
}

// insist waits until the guest has done what it was told, which closing one of the channels says, and stops its VM when it
// takes too long. Everything that waits for the guest ends then.
func (c *container) insist(told string, done, also <-chan struct{}) {
	timer := time.NewTimer(c.pod.limits.end)
	defer timer.Stop()
	select {
	case <-done:
	case <-also:
	case <-c.pod.machine.Done():
	case <-timer.C:
		c.log.Error("the guest does not do what it was told; its VM is stopped", "told", told, "limit", c.pod.limits.end)
		c.pod.stop()
	}
}

// pauseInit freezes the container.
func (c *container) pauseInit(ctx context.Context) error {
	return c.freeze(ctx, paused, c.pod.machine.Pause, &events.TaskPaused{ContainerID: c.id})
}

// resumeInit thaws it.
func (c *container) resumeInit(ctx context.Context) error {
	return c.freeze(ctx, running, c.pod.machine.Resume, &events.TaskResumed{ContainerID: c.id})
}

func (c *container) freeze(ctx context.Context, to state, call func(context.Context, string) error, event proto.Message) error {
	if c.kind == pauser {
		return fmt.Errorf("sandbox container %s has no process that could be %s: %w", c.id, to, errdefs.ErrNotImplemented)
	}
	if err := c.init.lock(ctx); err != nil {
		return err
	}
	defer c.init.op.unlock()
	now, _ := c.init.now()
	if now == created { // from there running is for start alone
		return fmt.Errorf("%s is %s and can't become %s: %w", c.init, now, to, errdefs.ErrFailedPrecondition)
	}
	if err := now.check(to, c.init.String()); err != nil {
		return err
	}
	if err := call(ctx, c.id); err != nil {
		return err
	}
	if err := c.init.move(to); err != nil {
		return err // it ended meanwhile
	}
	c.events.Publish(event)
	return nil
}

// delete forgets a process. With the init go its execs.
func (c *container) delete(ctx context.Context, exec string) (sandbox.Exit, error) {
	p, err := c.process(exec)
	if err != nil {
		return sandbox.Exit{}, err
	}
	if exec != "" {
		return c.deleteExec(ctx, p)
	}
	now, exit := p.now()
	if err := now.check(deleted, p.String()); err != nil {
		return exit, err
	}
	if c.kind != pauser {
		c.deleting.Do(func() { go c.insist("delete", p.gone, nil) })
	}
	for _, e := range c.allExecs() {
		if _, err := c.deleteExec(ctx, e); err != nil {
			return sandbox.Exit{}, err
		}
	}
	return p.delete(ctx)
}

func (c *container) deleteExec(ctx context.Context, p *process) (sandbox.Exit, error) {
	exit, err := p.delete(ctx)
	if err != nil {
		return exit, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, p.exec)
	return exit, nil
}

// outOfMemory tells containerd that the guest's kernel killed a process of the container.
func (c *container) outOfMemory() {
	c.events.Publish(&events.TaskOOM{ContainerID: c.id})
	c.oomOnce.Do(func() { close(c.oom) })
}
