// Package jail starts a program that must not be trusted: a virtual machine monitor that a hostile guest may have taken over.
//
// [Start] runs this very binary again, under the name "bulkhead-jail", with a [Config] on a descriptor. There [Main], the
// first call of every main function (and TestMain) of whoever starts VMs, takes over and never returns: it builds the jail
// around itself and executes the program.
//
//	Start                                    Main, in the new process
//	memfd with the Config     ── fd 3 ──→    reads it
//	pipe                      ←─ fd 4 ──     an error of one of the steps; closed by the exec
//	the program's descriptors ── fd 5… ─→    left as they are for the program
//
// The steps, in this order, because each needs rights that a later one gives up: join the cgroup; join the network namespace
// or make an empty one; new mount, IPC, UTS and cgroup namespaces; a root directory with nothing but the named paths,
// read-only, and a /dev of its own; a new session; resource limits; empty capability bounding set; no supplementary groups;
// the ids; no capabilities; no_new_privs; all other descriptors closed.
//
// # Death of the parent
//
// The program is ended (SIGKILL) when the process that started it dies, however that dies. PR_SET_PDEATHSIG is bound to the
// parent's thread, and a Go program's threads may end at any time. So a goroutine of its own, locked to its thread,
// starts the process and lives until it has ended; it is the one that waits for it too.
package jail

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// FirstFD is the number that the first of Start's files has in the program; the others follow.
const FirstFD = 5

const (
	roleName = "bulkhead-jail"
	configFD = 3
	statusFD = 4
	// maxStatus bounds what Start reads: the jailed process is ours until the exec, but what isn't bounded grows.
	maxStatus = 16 << 10
)

// Config says what to run and how to confine it.
type Config struct {
	// Path is the program as seen from inside the jail; Args begins with its name; Env is its whole environment.
	Path string
	Args []string
	Env  []string
	// UID and GID are its ids, not 0.
	UID, GID uint32
	// Cgroup is the path of an existing cgroup, relative to the root of every hierarchy. Empty: the caller's.
	Cgroup string
	// NetNS is the path of the network namespace. Empty: a new one.
	NetNS string
	// Root lists the paths of the host that exist in the jail too, read-only: files, directories with what is in them
	// (without other mounts), symbolic links as such. Missing ones are left out. An empty list keeps the host's whole tree,
	// in which later unmounts of the host take effect too. Either way /dev has null, zero, full, random and urandom only.
	Root []string
	// KVM puts /dev/kvm into the jail, owned by UID.
	KVM bool
	// NoHugePages keeps the program's memory out of transparent huge pages: a guest that touches one page then costs one.
	NoHugePages bool
}

// message is what the jailed process reads.
type message struct {
	Config Config
	Files  int // number of the program's own descriptors
}

// Process is a program that runs in a jail.
type Process struct {
	pid       int
	startTime uint64
	process   *os.Process
	done      chan struct{}
	state     *os.ProcessState // valid once done is closed; nil if somebody else reaped the process
}

// Start starts the program and returns once it has been executed. Output, if any, becomes its standard output and error, files
// its descriptors from FirstFD on; both stay the caller's. When a step fails, the error names it and nothing is left.
func Start(ctx context.Context, config Config, output *os.File, files []*os.File) (*Process, error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	memfd, err := configFile(message{Config: config, Files: len(files)})
	if err != nil {
		return nil, err
	}
	defer memfd.Close()
	status, statusWriter, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start jail: %w", err)
	}
	defer status.Close()
	defer statusWriter.Close()

	cmd := &exec.Cmd{
		Path:       "/proc/self/exe",
		Args:       []string{roleName},
		Env:        []string{},
		Dir:        "/",
		ExtraFiles: append([]*os.File{memfd, statusWriter}, files...),
	}
	if output != nil {
		cmd.Stdout, cmd.Stderr = output, output
	}
	p, err := launch(cmd)
	if err != nil {
		return nil, fmt.Errorf("start jail: %w", err)
	}
	statusWriter.Close()
	if err := readStatus(ctx, status); err != nil {
		_ = p.Kill()
		<-p.done
		return nil, err
	}
	return p, nil
}

func (c Config) check() error {
	switch {
	case c.Path == "" || len(c.Args) == 0:
		return fmt.Errorf("start jail: no program: %w", errdefs.ErrInvalidArgument)
	case c.UID == 0 || c.GID == 0:
		return fmt.Errorf("start jail: uid %d, gid %d: the program must not run as root: %w", c.UID, c.GID, errdefs.ErrInvalidArgument)
	case os.Geteuid() != 0:
		return fmt.Errorf("start jail: it needs root, and this process runs as uid %d: %w", os.Geteuid(), errdefs.ErrFailedPrecondition)
	}
	return nil
}

// configFile holds the config in memory: a file takes any size at once, a pipe only what its buffer has room for.
func configFile(m message) (*os.File, error) {
	data, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode jail config: %w", err)
	}
	fd, err := unix.MemfdCreate(roleName, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create file of the jail config: %w", err)
	}
	f := os.NewFile(uintptr(fd), roleName)
	if _, err := f.Write(data); err != nil {
		f.Close()
		return nil, fmt.Errorf("write jail config: %w", err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		f.Close()
		return nil, fmt.Errorf("rewind jail config: %w", err)
	}
	return f, nil
}

// launch starts the command in the goroutine that will wait for it; see "Death of the parent".
func launch(cmd *exec.Cmd) (*Process, error) {
	p := &Process{done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		// Unlocked only after the process has ended, so that the thread can't end before.
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.process, p.pid = cmd.Process, cmd.Process.Pid
			p.startTime, err = StartTime(p.pid)
			if err != nil {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}
		}
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait() // the state says it all
		p.state = cmd.ProcessState
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// status is what the jailed process says when a step fails.
type status struct {
	Error string
	Errno int
}

func readStatus(ctx context.Context, pipe *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = pipe.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	data, err := io.ReadAll(io.LimitReader(pipe, maxStatus))
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("start jail: %w", err)
	}
	if len(data) == 0 {
		return nil
	}
	var s status
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("start jail: its process says %q: %w", data, err)
	}
	return fmt.Errorf("start jail: %s: %w", s.Error, class(unix.Errno(s.Errno)))
}

// class sorts a step's error number into the classes that callers know.
func class(errno unix.Errno) error {
	switch errno {
	case unix.ENOENT, unix.ESRCH:
		return errdefs.ErrNotFound
	case unix.EPERM, unix.EACCES, unix.ENOSYS, unix.EOPNOTSUPP:
		return errdefs.ErrFailedPrecondition
	case unix.EINVAL, unix.ENOTDIR, unix.ELOOP, unix.ENAMETOOLONG:
		return errdefs.ErrInvalidArgument
	default:
		return errdefs.ErrUnknown
	}
}

// PID and the start time (field 22 of /proc/PID/stat) name the process for ever.
func (p *Process) PID() (pid int, startTime uint64) { return p.pid, p.startTime }

// Done is closed when the process has ended and has been reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// State says how the process ended, after Done. It is nil if another part of this program reaped it.
func (p *Process) State() *os.ProcessState { return p.state }

// Kill ends the process; it doesn't wait. A process that has ended already is no error.
func (p *Process) Kill() error {
	if err := p.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill process %d: %w", p.pid, err)
	}
	return nil
}

// StartTime returns field 22 of /proc/PID/stat: when the process started, in clock ticks since boot.
func StartTime(pid int) (uint64, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	// The second field is the name in parentheses, with anything in it.
	end := strings.LastIndexByte(string(data), ')')
	fields := strings.Fields(string(data)[end+1:])
	if end < 0 || len(fields) < 20 {
		return 0, fmt.Errorf("read start time of process %d: unexpected stat %q: %w", pid, data, errdefs.ErrUnknown)
	}
	t, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	return t, nil
}

// Kill ends the process of that pid if it is still the one with that start time, and waits until it is gone. It is for
// cleaning up after the process that started it has died; nothing to kill is no error.
func Kill(ctx context.Context, pid int, startTime uint64) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()
	// The pidfd holds on to whoever has the pid now; only then is the start time worth comparing.
	if now, err := StartTime(pid); err != nil || now != startTime {
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	return waitGone(ctx, pid, fd)
}

// waitGone waits until the process has ended: its pidfd becomes readable, also while it is still a zombie of another parent.
func waitGone(ctx context.Context, pid, fd int) error {
	var wake [2]int
	if err := unix.Pipe2(wake[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("wait for the end of process %d: %w", pid, err)
	}
	closeWriter := sync.OnceFunc(func() { unix.Close(wake[1]) })
	defer unix.Close(wake[0])
	defer closeWriter()
	stop := context.AfterFunc(ctx, closeWriter)
	defer stop()
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake[0])}}
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for the end of process %d: %w", pid, err)
		case fds[0].Revents != 0:
			return nil
		case fds[1].Revents != 0:
			return fmt.Errorf("wait for the end of process %d: %w", pid, ctx.Err())
		}
	}
}
