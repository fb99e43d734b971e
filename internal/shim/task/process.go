package task

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bulkhead.dev/bulkhead/internal/sandbox"
	"bulkhead.dev/bulkhead/internal/shim/stdio"
)

// oomPatience is how long a kill waits for the event that explains it; the two come from the guest on different ways.
const oomPatience = 200 * time.Millisecond

// limits bound the waits for the guest that containerd's order of events, and the end of a pod, depend on. A guest may be hostile.
type limits struct {
	// silence is how long a client may take none of an ended process's output before the exit is told without it.
	silence time.Duration
	// output bounds that wait also when the output of an ended process goes on and on.
	output time.Duration
	// execs is how long the exit of an init waits for those of its execs.
	execs time.Duration
	// answer is how long a guest may take to say that it has sent SIGKILL to a container.
	answer time.Duration
	// end is how long a guest may take to end a container that it was told to kill, and to delete one that has ended.
	end time.Duration
}

func defaultLimits() limits {
	return limits{silence: 10 * time.Second, output: time.Minute, execs: 10 * time.Second, answer: 10 * time.Second, end: time.Minute}
}

const (
	// statusKilled is the exit status of a process whose VM has ended.
	statusKilled = 128 + uint32(unix.SIGKILL)
	// statusUnknown is that of a process of which the guest can't say any more how it ended.
	statusUnknown = 255
)

// process is the init or an exec of a container.
type process struct {
	container *container
	exec      string // empty: the init
	guest     Process
	io        *stdio.Set

	// op is held while the process is started, paused, resumed, deleted, or killed before its start; in front of mu.
	op opLock

	mu     sync.Mutex
	state  state        // guarded by mu
	killed bool         // guarded by mu: SIGKILL was sent through us
	exit   sandbox.Exit // guarded by mu; valid in stopped and deleted
	pid    uint32       // guarded by mu; the guest's, once it runs

	told  chan struct{} // closed when the guest has told the exit of a process that was started
	ended chan struct{} // closed after stopped was reached and the exit published
	gone  chan struct{} // closed when deleted was reached
}

// opLock is a mutex whose wait can be given up: who holds it may wait for the guest.
type opLock chan struct{}

func (l opLock) lock(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l opLock) unlock() { <-l }

func newProcess(c *container, exec string, guest Process, io *stdio.Set) *process {
	p := &process{
		container: c, exec: exec, guest: guest, io: io,
		op: make(opLock, 1), told: make(chan struct{}), ended: make(chan struct{}), gone: make(chan struct{}),
	}
	io.Attach(guest.Stdin(), guest.Stdout(), guest.Stderr())
	return p
}

// String names the process in errors.
func (p *process) String() string {
	if p.exec == "" {
		return "container " + p.container.id
	}
	return "exec " + p.exec + " of container " + p.container.id
}

// id is how containerd's exit event names it.
func (p *process) id() string {
	if p.exec == "" {
		return p.container.id
	}
	return p.exec
}

func (p *process) now() (state, sandbox.Exit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state, p.exit
}

// move changes the state, if that is a legal move.
func (p *process) move(next state) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.state.check(next, p.String()); err != nil {
		return err
	}
	p.state = next
	return nil
}

// lock takes op, unless ctx ends first.
func (p *process) lock(ctx context.Context) error {
	if err := p.op.lock(ctx); err != nil {
		return fmt.Errorf("%s waits for the guest: %w", p, err)
	}
	return nil
}

// start starts the process and, once its start is published, watches for its end. The outcome is always definite: a client
// that goes away doesn't leave a process between created and running.
func (p *process) start(ctx context.Context) error {
	if err := p.lock(ctx); err != nil {
		return err
	}
	defer p.op.unlock()
	if now, _ := p.now(); now != created {
		return fmt.Errorf("%s is %s and can't be started: %w", p, now, errdefs.ErrFailedPrecondition)
	}
	leave, err := p.container.enter(p)
	if err != nil {
		return err
	}
	defer leave()
	inGuest, err := p.guest.Start(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	if err := p.move(running); err != nil {
		return err // can't be: op is held
	}
	p.mu.Lock()
	p.pid = inGuest
	p.mu.Unlock()
	pid := p.container.pod.pid
	if p.exec == "" {
		p.container.events.Publish(&events.TaskStart{ContainerID: p.container.id, Pid: pid})
	} else {
		p.container.events.Publish(&events.TaskExecStarted{ContainerID: p.container.id, ExecID: p.exec, Pid: pid})
	}
	go p.watch()
	return nil
}

// watch waits for the end of a started process and tells it, in containerd's order.
func (p *process) watch() {
	exit, err := p.guest.Wait(context.Background())
	if err != nil {
		exit = p.container.lost(p, err)
	}
	close(p.told)
	limits := p.container.pod.limits
	draining, cancel := context.WithTimeout(context.Background(), limits.output)
	p.io.Drain(draining, limits.silence)
	cancel()
	if p.exec == "" {
		p.mu.Lock()
		explained := p.killed || exit.Status != statusKilled
		p.mu.Unlock()
		p.container.settle(explained)
	}
	p.end(exit)
}

// end publishes the exit and makes the process stopped. A second call does nothing.
func (p *process) end(exit sandbox.Exit) {
	if exit.At.IsZero() {
		exit.At = time.Now()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state.check(stopped, "") != nil {
		return
	}
	p.container.events.Publish(&events.TaskExit{
		ContainerID: p.container.id,
		ID:          p.id(),
		Pid:         p.container.pod.pid,
		ExitStatus:  exit.Status,
		ExitedAt:    timestamppb.New(exit.At),
	})
	p.state, p.exit = stopped, exit
	close(p.ended)
}

// abandon ends a process that was never started, because its VM has ended.
func (p *process) abandon() {
	p.op <- struct{}{} // whatever holds it ends with the VM
	defer p.op.unlock()
	if now, _ := p.now(); now == created {
		p.end(sandbox.Exit{Status: statusKilled})
	}
}

// wait returns the exit of the process.
func (p *process) wait(ctx context.Context) (sandbox.Exit, error) {
	select {
	case <-p.ended:
		_, exit := p.now()
		return exit, nil
	case <-ctx.Done():
		return sandbox.Exit{}, fmt.Errorf("wait for %s: %w", p, ctx.Err())
	}
}

// kill sends a signal. A process that has ended is ErrNotFound, which is what containerd's clients take for success.
func (p *process) kill(ctx context.Context, signal uint32, all bool) error {
	if done, err := p.killCreated(ctx, signal); done || err != nil {
		return err
	}
	if now, _ := p.now(); now == stopped || now == deleted {
		return fmt.Errorf("signal %d to %s, which is %s: process already finished: %w", signal, p, now, errdefs.ErrNotFound)
	}
	if signal == uint32(unix.SIGKILL) {
		p.mu.Lock()
		p.killed = true
		p.mu.Unlock()
	}
	return p.guest.Signal(ctx, signal, all)
}

// killCreated ends an init that was not started. It reports whether that was so.
func (p *process) killCreated(ctx context.Context, signal uint32) (bool, error) {
	if now, _ := p.now(); now != created {
		return false, nil
	}
	if err := p.lock(ctx); err != nil { // a start that is going on comes first
		return false, err
	}
	defer p.op.unlock()
	if now, _ := p.now(); now != created {
		return false, nil
	}
	if p.exec != "" || !ends(signal) {
		return false, fmt.Errorf("signal %d to %s, which is not started: %w", signal, p, errdefs.ErrFailedPrecondition)
	}
	p.end(sandbox.Exit{Status: 128 + signal})
	return true, nil
}

// delete forgets a process that has ended or was never started.
func (p *process) delete(ctx context.Context) (sandbox.Exit, error) {
	if err := p.lock(ctx); err != nil {
		return sandbox.Exit{}, err
	}
	defer p.op.unlock()
	now, exit := p.now()
	if err := now.check(deleted, p.String()); err != nil {
		return exit, err
	}
	if err := p.guest.Delete(ctx); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsUnavailable(err) {
		return exit, err
	}
	p.io.Close()
	if err := p.move(deleted); err != nil {
		return exit, err
	}
	close(p.gone)
	return exit, nil
}

func (p *process) resize(ctx context.Context, width, height uint32) error {
	if !p.io.Names().Terminal {
		return fmt.Errorf("resize %s, which has no terminal: %w", p, errdefs.ErrFailedPrecondition)
	}
	return p.guest.Resize(ctx, width, height)
}
