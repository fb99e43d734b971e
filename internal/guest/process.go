package guest

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/guest/reaper"
)

// process is a container's init or an exec.
type process struct {
	container string
	exec      string // empty: the init
	io        *stdio
	// config is the OCI process of an exec, until it is started.
	config      []byte
	oomScoreAdj int
	// onExit is called between the end of the process and its becoming known.
	onExit func()

	starting sync.Mutex // held while it is started

	mu    sync.Mutex
	state state         // guarded by mu
	child *reaper.Child // guarded by mu; nil before there is a process
	exit  reaper.Exit   // guarded by mu; valid in stateStopped

	ended chan struct{} // closed when it is stopped and all its output was sent
}

func newProcess(container, exec string, io *stdio) *process {
	return &process{container: container, exec: exec, io: io, state: stateCreated, ended: make(chan struct{})}
}

func (p *process) String() string {
	if p.exec == "" {
		return fmt.Sprintf("container %q", p.container)
	}
	return fmt.Sprintf("exec %q of container %q", p.exec, p.container)
}

func (p *process) current() state {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

func (p *process) pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.child == nil {
		return 0
	}
	return p.child.PID()
}

// expect is an error unless the process is in a state.
func (p *process) expect(doing string, want state) error {
	if got := p.current(); got != want {
		return fmt.Errorf("%s %s: it is %s, not %s: %w", doing, p, got, want, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// has makes a child the process, in a new state, and follows it to its end.
func (p *process) has(child *reaper.Child, s state) {
	p.mu.Lock()
	p.child, p.state = child, s
	p.mu.Unlock()
	go func() {
		exit := child.Exit()
		if p.onExit != nil {
			p.onExit()
		}
		p.stop(exit)
	}()
}

// stop records the process's end.
func (p *process) stop(exit reaper.Exit) {
	p.mu.Lock()
	if p.state == stateStopped {
		p.mu.Unlock()
		return
	}
	p.state, p.exit = stateStopped, exit
	if p.exit.At.IsZero() {
		p.exit.At = time.Now()
	}
	p.mu.Unlock()
	p.io.started()
	p.io.finish()
	close(p.ended)
}

// running moves a created process to running, unless it has ended meanwhile.
func (p *process) running() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == stateCreated {
		p.state = stateRunning
	}
}

// wait returns how the process has ended, once all its output was sent.
func (p *process) wait(ctx context.Context) (reaper.Exit, error) {
	select {
	case <-p.ended:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.exit, nil
	case <-ctx.Done():
		return reaper.Exit{}, ctx.Err()
	}
}

// signal sends a signal to the process. One that was never started ends by any that would end it.
func (p *process) signal(sig syscall.Signal) error {
	p.mu.Lock()
	child, s := p.child, p.state
	p.mu.Unlock()
	if s == stateStopped {
		return fmt.Errorf("signalling %s, which has ended: %w", p, errdefs.ErrNotFound)
	}
	if child == nil { // an exec before its start
		switch sig {
		case syscall.SIGCONT, syscall.SIGCHLD, syscall.SIGURG, syscall.SIGWINCH:
		default:
			p.stop(reaper.Exit{Status: 128 + uint32(sig)})
		}
		return nil
	}
	return child.Signal(sig)
}

// setOOMScore gives the process the score of its container. The runtime sets it for a container's init only; a further
// process has the agent's own until then.
func setOOMScore(pid, score int) error {
	err := os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte(strconv.Itoa(score)), 0)
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("setting the OOM score of process %d: %w", pid, err)
	}
	return nil
}
