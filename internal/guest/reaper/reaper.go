// Package reaper starts and waits for processes on behalf of PID 1.
//
// PID 1 is the parent of its own helper programs and becomes the parent of every process whose parent has ended: of
// container processes, which the OCI runtime leaves behind, too. All of them are waited for in one place, since
// wait4(-1) takes the status of whichever process ends; os/exec can't be used beside it.
//
//	SIGCHLD ─► goroutine ─ wait4(-1, WNOHANG) ─► registered child: its Done is closed
//	                                          └► unknown: kept while a Hold is open, else dropped
//
// Two races are closed by one lock, under which both fork and wait4 happen: a child can't be reaped before it is
// registered, and a pid can't be signalled after it was reaped (and perhaps given to another process).
//
// A process that the runtime leaves behind may end before the runtime has told its pid. So whoever starts the runtime
// opens a [Hold] first, and claims the pid from it.
package reaper

import (
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxUnclaimed bounds the statuses that are kept while a Hold is open.
const maxUnclaimed = 4096

// Exit says how a process ended.
type Exit struct {
	Status uint32 // 0-255; 128+n for signal n
	At     time.Time
}

// Reaper waits for every child of this process. There must be one only.
type Reaper struct {
	signals chan os.Signal
	stop    chan struct{}

	mu        sync.Mutex
	children  map[int]*Child // guarded by mu; those that have not ended
	holds     int            // guarded by mu
	unclaimed map[int]Exit   // guarded by mu; ended while a hold was open, and not registered
}

// Child is a process that somebody waits for.
type Child struct {
	r    *Reaper
	pid  int
	done chan struct{}
	exit Exit // set once done is closed
}

// New returns a Reaper at work. Processes that have ended before are reaped at once.
func New() *Reaper {
	r := &Reaper{
		signals:   make(chan os.Signal, 1),
		stop:      make(chan struct{}),
		children:  make(map[int]*Child),
		unclaimed: make(map[int]Exit),
	}
	signal.Notify(r.signals, syscall.SIGCHLD)
	go r.run()
	return r
}

// Close ends the reaping. PID 1 never does it; tests do.
func (r *Reaper) Close() {
	signal.Stop(r.signals)
	close(r.stop)
}

func (r *Reaper) run() {
	for {
		r.reap()
		select {
		case <-r.signals:
		case <-r.stop:
			return
		}
	}
}

// reap takes the statuses of all processes that have ended: signals of the same kind merge, so one may stand for many.
func (r *Reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		exit := Exit{Status: status(ws), At: time.Now()}
		if c := r.children[pid]; c != nil {
			delete(r.children, pid)
			c.exit = exit
			close(c.done)
		} else if r.holds > 0 && len(r.unclaimed) < maxUnclaimed {
			r.unclaimed[pid] = exit
		}
	}
}

func status(ws syscall.WaitStatus) uint32 {
	if ws.Signaled() {
		return 128 + uint32(ws.Signal())
	}
	return uint32(ws.ExitStatus())
}

// Start starts a program and registers it. The files become its descriptors 0, 1, 2 and so on; nil ones are /dev/null.
func (r *Reaper) Start(path string, args, env []string, files ...*os.File) (*Child, error) {
	return r.start(path, args, env, 0, files)
}

// StartIsolated starts a program without environment and files in new namespaces (unix.CLONE_NEW…), and registers it.
func (r *Reaper) StartIsolated(path string, args []string, namespaces uintptr) (*Child, error) {
	return r.start(path, args, nil, namespaces, nil)
}

func (r *Reaper) start(path string, args, env []string, namespaces uintptr, files []*os.File) (*Child, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", path, err)
	}
	defer null.Close()
	fds := make([]uintptr, max(len(files), 3))
	for i := range fds {
		if i < len(files) && files[i] != nil {
			fds[i] = files[i].Fd()
		} else {
			fds[i] = null.Fd()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// When the program can't be executed, ForkExec itself waits for the child; the lock keeps the child for it.
	pid, err := syscall.ForkExec(path, args, &syscall.ProcAttr{Env: env, Files: fds, Sys: &syscall.SysProcAttr{Setsid: true, Cloneflags: namespaces}})
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", path, err)
	}
	c := &Child{r: r, pid: pid, done: make(chan struct{})}
	r.children[pid] = c
	return c, nil
}

// Hold keeps the statuses of unknown processes for a while.
type Hold struct {
	r    *Reaper
	once sync.Once
}

// Hold begins to keep the statuses of processes that end without being registered, until Release.
func (r *Reaper) Hold() *Hold {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holds++
	return &Hold{r: r}
}

// Child registers a process that was left to this process by another one, and that was running when the hold began or
// has begun since.
func (h *Hold) Child(pid int) (*Child, error) {
	r := h.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.children[pid] != nil {
		return nil, fmt.Errorf("registering process %d: %w", pid, errdefs.ErrAlreadyExists)
	}
	c := &Child{r: r, pid: pid, done: make(chan struct{})}
	if exit, ok := r.unclaimed[pid]; ok {
		delete(r.unclaimed, pid)
		c.exit = exit
		close(c.done)
		return c, nil
	}
	if err := unix.Kill(pid, 0); err != nil {
		return nil, fmt.Errorf("registering process %d: %w", pid, err)
	}
	r.children[pid] = c
	return c, nil
}

// Release ends the hold. It is idempotent.
func (h *Hold) Release() {
	h.once.Do(func() {
		h.r.mu.Lock()
		defer h.r.mu.Unlock()
		if h.r.holds--; h.r.holds == 0 {
			clear(h.r.unclaimed)
		}
	})
}

// PID returns the process's id. It is free for reuse once Done is closed.
func (c *Child) PID() int { return c.pid }

// Done is closed when the process has ended and was reaped.
func (c *Child) Done() <-chan struct{} { return c.done }

// Exit waits for the process's end and tells of it.
func (c *Child) Exit() Exit {
	<-c.done
	return c.exit
}

// Signal sends the process a signal. It is ErrNotFound when the process has ended; it can't hit another process.
func (c *Child) Signal(sig syscall.Signal) error {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	select {
	case <-c.done:
		return fmt.Errorf("signalling process %d, which has ended: %w", c.pid, errdefs.ErrNotFound)
	default:
	}
	if err := syscall.Kill(c.pid, sig); err != nil {
		if err == syscall.ESRCH {
			return fmt.Errorf("signalling process %d, which has ended: %w", c.pid, errdefs.ErrNotFound)
		}
		return fmt.Errorf("signalling process %d: %w", c.pid, err)
	}
	return nil
}
