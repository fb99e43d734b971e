package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	guestapi "bulkhead.dev/bulkhead/api/guest"
)

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

// Exit is the end of a process.
type Exit struct {
	// Status is 0 to 255; 128+n for signal n.
	Status uint32
	At     time.Time
}

// state of a process. It goes forward only, but for a Start that failed.
//
//	created ─Start─► starting ─► running ─► exited ─Delete─► deleted
//	   │ ▲──── failed ────┘                                     ▲
//	   └────────────────────── Delete ──────────────────────────┘
type state int

const (
	created state = iota
	starting
	running
	exited
	deleted
)

func (s state) String() string {
	return [...]string{"created", "starting", "running", "exited", "deleted"}[s]
}

// streams says which standard streams a process has.
type streams struct {
	terminal, stdin, stdout, stderr bool
}

// Process is a process in the guest: a container's init or an exec. Its methods may be called from several goroutines.
type Process struct {
	container *container
	exec      string // empty: the init
	streams   streams
	width     uint32
	height    uint32

	// ids of the streams, 0 where there is none; set with the connections before the process is handed out.
	stdinID, stdoutID, stderrID uint64
	stdin, stdout, stderr       net.Conn

	// ended is closed when exit and err are set.
	ended chan struct{}

	mu      sync.Mutex
	state   state
	since   time.Time // when it was started, by the host's clock
	waiting bool      // the guest was asked to tell its end
	exit    Exit
	err     error
}

func newProcess(c *container, exec string, s streams) *Process {
	return &Process{container: c, exec: exec, streams: s, ended: make(chan struct{})}
}

// size takes the first size of the terminal from the OCI process.
func (p *Process) size(process *specs.Process) {
	if box := process.ConsoleSize; box != nil && p.streams.terminal {
		p.width, p.height = uint32(min(box.Width, 65535)), uint32(min(box.Height, 65535))
	}
}

func (p *Process) sandbox() *Sandbox { return p.container.sandbox }

// String names the process in errors.
func (p *Process) String() string {
	if p.exec == "" {
		return "container " + p.container.spec.ID
	}
	return "exec " + p.exec + " of container " + p.container.spec.ID
}

func (p *Process) request() *guestapi.ProcessRequest {
	return &guestapi.ProcessRequest{Container: p.container.spec.ID, Exec: p.exec}
}

// CreateExec makes a further process of a running container known, not started. ErrNotFound for an unknown container,
// ErrFailedPrecondition for one that doesn't run.
func (s *Sandbox) CreateExec(ctx context.Context, spec ExecSpec) (*Process, error) {
	p, err := s.createExec(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("create exec %.140q in container %.140q: %w", spec.ID, spec.Container, err)
	}
	return p, nil
}

func (s *Sandbox) createExec(ctx context.Context, spec ExecSpec) (*Process, error) {
	if err := checkID("exec", spec.ID); err != nil {
		return nil, err
	}
	c, err := s.find(spec.Container)
	if err != nil {
		return nil, err
	}
	if spec.Process == nil {
		return nil, fmt.Errorf("no process: %w", errdefs.ErrInvalidArgument)
	}
	terminal := spec.Process.Terminal
	if terminal && spec.Stderr {
		return nil, fmt.Errorf("a terminal has no separate stderr: %w", errdefs.ErrInvalidArgument)
	}
	process, err := translateProcess(spec.Process, terminal)
	if err != nil {
		return nil, err
	}
	if now := c.init.now(); now != running {
		return nil, fmt.Errorf("the container is %s, not running: %w", now, errdefs.ErrFailedPrecondition)
	}
	if err := c.takeExec(spec.ID); err != nil {
		return nil, err
	}
	p := newProcess(c, spec.ID, streams{terminal: terminal, stdin: spec.Stdin, stdout: spec.Stdout, stderr: spec.Stderr})
	p.size(process)
	var undo undoStack
	err = undo.run(ctx, s.host.after, []step{
		{"streams", p.openStreams, p.undoStreams, false},
		{"guest", func(ctx context.Context) error { return p.createInGuest(ctx, process) }, p.deleteInGuest, false},
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		delete(c.execs, spec.ID)
		return nil, err
	}
	c.execs[spec.ID] = p
	return p, nil
}

func (c *container) takeExec(id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, taken := c.execs[id]; taken {
		return errdefs.ErrAlreadyExists
	}
	c.execs[id] = nil
	return nil
}

func (p *Process) createInGuest(ctx context.Context, process *specs.Process) error {
	data, err := json.Marshal(process)
	if err != nil {
		return fmt.Errorf("encode OCI process: %w", err)
	}
	s := p.sandbox()
	return s.call(ctx, "create it in the guest", func(ctx context.Context) error {
		_, err := s.agent.CreateExec(ctx, &guestapi.CreateExecRequest{
			Container: p.container.spec.ID, Exec: p.exec, Process: data, Stdio: p.stdio(),
		})
		return err
	})
}

func (p *Process) deleteInGuest(ctx context.Context) error {
	return p.sandbox().deleteProcess(ctx, p.container.spec.ID, p.exec)
}

func (p *Process) now() state {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// Start starts the created process; pid is the guest's. A second call is ErrFailedPrecondition. A missing executable
// is ErrNotFound, as the guest tells it; the process is still created then, and can be deleted.
func (p *Process) Start(ctx context.Context) (pid uint32, err error) {
	if err := p.move(created, starting); err != nil {
		return 0, fmt.Errorf("start %s: %w", p, err)
	}
	s := p.sandbox()
	err = s.call(ctx, "start "+p.String(), func(ctx context.Context) error {
		answer, err := s.agent.Start(ctx, p.request())
		if err != nil {
			return err
		}
		pid, err = checkPID(answer.Pid)
		return err
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		if p.state == starting {
			p.state = created
		}
		return 0, err
	}
	if p.state == starting { // and hasn't ended with the VM meanwhile
		p.state = running
	}
	p.wait()
	return pid, nil
}

// move is an error that names both states when the process isn't in from.
func (p *Process) move(from, to state) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != from {
		return fmt.Errorf("it is %s, not %s: %w", p.state, from, errdefs.ErrFailedPrecondition)
	}
	p.state = to
	if to == starting {
		p.since = time.Now()
	}
	return nil
}

// wait asks the guest, once, to tell when the process ends. p.mu is held.
func (p *Process) wait() {
	if p.waiting {
		return
	}
	p.waiting = true
	go func() {
		var exit Exit
		s := p.sandbox()
		err := s.call(context.Background(), "wait for "+p.String(), func(ctx context.Context) error {
			answer, err := s.agent.Wait(ctx, p.request())
			if err != nil {
				return err
			}
			exit = p.checkExit(answer)
			return nil
		})
		p.finish(exit, err)
	}()
}

// finish sets the process's end, once.
func (p *Process) finish(exit Exit, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.ended:
		return
	default:
	}
	p.exit, p.err = exit, err
	if p.state < exited {
		p.state = exited
	}
	close(p.ended)
}

// Wait returns when the process has ended and the guest has sent all of its output. It may be called before Start, any
// number of times. When the VM ends first it returns ErrUnavailable with the reason, and ErrNotFound when the process
// is deleted without having been started.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	s := p.sandbox()
	select {
	case <-p.ended:
	case <-s.done:
		p.endWithVM()
	case <-ctx.Done():
		return Exit{}, fmt.Errorf("wait for %s: %w", p, ctx.Err())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit, p.err
}

// endWithVM sets the end of a process whose VM has ended. What the guest has told before goes before that.
func (p *Process) endWithVM() {
	p.mu.Lock()
	waiting := p.waiting
	p.mu.Unlock()
	if waiting {
		<-p.ended // soon: the call ends with the VM too
		return
	}
	p.finish(Exit{}, p.sandbox().ended())
}

// Signal sends a signal to the process, or with all to every process of its container. ErrNotFound when it has ended.
func (p *Process) Signal(ctx context.Context, sig uint32, all bool) error {
	if sig == 0 || sig > 64 {
		return fmt.Errorf("signal %d to %s: no such signal: %w", sig, p, errdefs.ErrInvalidArgument)
	}
	p.mu.Lock()
	if p.state >= exited {
		defer p.mu.Unlock()
		return fmt.Errorf("signal %d to %s: it is %s: %w", sig, p, p.state, errdefs.ErrNotFound)
	}
	if p.state == created && p.exec == "" {
		p.wait() // an init that waits to be started can be killed, and that is its end
	}
	p.mu.Unlock()
	s := p.sandbox()
	return s.call(ctx, fmt.Sprintf("signal %d to %s", sig, p), func(ctx context.Context) error {
		_, err := s.agent.Signal(ctx, &guestapi.SignalRequest{Container: p.container.spec.ID, Exec: p.exec, Signal: sig, All: all})
		return err
	})
}

// Resize sets the size of the process's terminal. ErrFailedPrecondition when it has none.
func (p *Process) Resize(ctx context.Context, width, height uint32) error {
	switch {
	case !p.streams.terminal:
		return fmt.Errorf("resize terminal of %s: it has none: %w", p, errdefs.ErrFailedPrecondition)
	case width > 65535 || height > 65535:
		return fmt.Errorf("resize terminal of %s to %d×%d: at most 65535: %w", p, width, height, errdefs.ErrInvalidArgument)
	}
	s := p.sandbox()
	return s.call(ctx, "resize terminal of "+p.String(), func(ctx context.Context) error {
		_, err := s.agent.ResizePty(ctx, &guestapi.ResizePtyRequest{
			Container: p.container.spec.ID, Exec: p.exec, Width: width, Height: height,
		})
		return err
	})
}

// Delete forgets a process that has ended or was never started, and closes its streams; ErrFailedPrecondition while it
// runs. For a container's init it also takes back its execs, disks, volumes and scratch file. It is idempotent, can be
// called again when it failed, and works when the VM has ended.
func (p *Process) Delete(ctx context.Context) error {
	if now := p.now(); (now == starting || now == running) && p.sandbox().ended() == nil {
		return fmt.Errorf("delete %s: it is %s: %w", p, now, errdefs.ErrFailedPrecondition)
	}
	var err error
	if p.exec == "" {
		err = p.deleteContainer(ctx)
	} else {
		err = p.deleteExec(ctx)
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", p, err)
	}
	p.finish(Exit{}, fmt.Errorf("%s was deleted before it was started: %w", p, errdefs.ErrNotFound))
	p.mu.Lock()
	p.state = deleted
	p.mu.Unlock()
	return nil
}

func (p *Process) deleteContainer(ctx context.Context) error {
	c := p.container
	for _, exec := range c.processes() {
		exec.finish(Exit{}, fmt.Errorf("%s ended with its container: %w", exec, errdefs.ErrNotFound))
		if err := exec.deleteExec(ctx); err != nil {
			return err
		}
	}
	// As long as the guest may use the disks none of the rest can be undone.
	if err := c.deleteInGuest(ctx); err != nil {
		return err
	}
	if err := c.undo.unwind(ctx); err != nil {
		return err
	}
	p.sandbox().forget(c)
	return nil
}

func (p *Process) deleteExec(ctx context.Context) error {
	c := p.container
	c.mu.Lock()
	known := c.execs[p.exec] == p
	c.mu.Unlock()
	if !known {
		return nil
	}
	if err := p.deleteInGuest(ctx); err != nil {
		return err
	}
	p.closeStreams()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[p.exec] == p {
		delete(c.execs, p.exec)
	}
	return nil
}

// openStreams opens the data streams that the process's creation names.
func (p *Process) openStreams(ctx context.Context) error {
	s := p.sandbox()
	for _, wanted := range []struct {
		yes  bool
		id   *uint64
		conn *net.Conn
	}{
		{p.streams.stdin, &p.stdinID, &p.stdin},
		{p.streams.stdout, &p.stdoutID, &p.stdout},
		{p.streams.stderr, &p.stderrID, &p.stderr},
	} {
		if !wanted.yes {
			continue
		}
		id := s.streams.Add(1)
		conn, err := s.channel.Open(ctx, id)
		if err != nil {
			p.closeStreams()
			return err
		}
		*wanted.id, *wanted.conn = id, conn
	}
	return nil
}

// undoStreams never fails: a stream that can't be closed has ended.
func (p *Process) undoStreams(context.Context) error {
	p.closeStreams()
	return nil
}

func (p *Process) closeStreams() {
	for _, conn := range []net.Conn{p.stdin, p.stdout, p.stderr} {
		if conn != nil {
			conn.Close()
		}
	}
}

func (p *Process) stdio() *guestapi.Stdio {
	return &guestapi.Stdio{
		Terminal: p.streams.terminal, Stdin: p.stdinID, Stdout: p.stdoutID, Stderr: p.stderrID, Width: p.width, Height: p.height,
	}
}

// Stdin carries what is written to the process; Close is its end of file. nil where it was not asked for.
func (p *Process) Stdin() io.WriteCloser {
	if p.stdin == nil {
		return nil
	}
	return p.stdin
}

// Stdout carries the process's output to its end of file. nil where it was not asked for.
func (p *Process) Stdout() io.ReadCloser {
	if p.stdout == nil {
		return nil
	}
	return p.stdout
}

// Stderr is like Stdout. nil where it was not asked for, and always for a terminal.
func (p *Process) Stderr() io.ReadCloser {
	if p.stderr == nil {
		return nil
	}
	return p.stderr
}
