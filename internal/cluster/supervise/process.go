package supervise

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	ownerMark   = "BULKHEAD_SUPERVISOR"   // the directory, in the environment of processes
	processMark = "BULKHEAD_PROCESS"      // the name
	hashMark    = "BULKHEAD_PROCESS_HASH" // Spec.hash

	// supervisorMark is in the environment of supervisors themselves. It finds one that hasn't got as far as the lock.
	supervisorMark = "BULKHEAD_SUPERVISE"

	// killPatience is how long a killed process may take to be gone.
	killPatience = 20 * time.Second
)

// handle is a process held by a descriptor, so that its number can't come to mean another one.
type handle struct {
	pid, fd int
	ticks   uint64 // when it started, since boot
	name    string // of the Spec's process
	hash    string
}

// openHandle returns an error of class ErrNotFound if there is no such process, or it has ended and wasn't waited for.
func openHandle(pid int) (handle, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return handle{}, fmt.Errorf("process %d: %w", pid, errdefs.ErrNotFound)
	}
	if err != nil {
		return handle{}, fmt.Errorf("open process %d: %w", pid, err)
	}
	ticks, err := startTicks(pid)
	if err != nil {
		unix.Close(fd)
		return handle{}, err
	}
	return handle{pid: pid, fd: fd, ticks: ticks}, nil
}

func (h handle) close() { unix.Close(h.fd) }

// signal of a process that has ended is no error.
func (h handle) signal(s unix.Signal) error {
	err := unix.PidfdSendSignal(h.fd, s, nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("send %v to process %d: %w", s, h.pid, err)
	}
	return nil
}

// wait returns whether the process ended within the time and before the context.
func (h handle) wait(ctx context.Context, d time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for {
		fds := []unix.PollFd{{Fd: int32(h.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 50); err == nil && n == 1 {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
	}
}

// waitForever takes a thread until the process ends.
func (h handle) waitForever() {
	for {
		fds := []unix.PollFd{{Fd: int32(h.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, -1); err == nil && n == 1 {
			return
		}
	}
}

// end ends the process: SIGTERM, and SIGKILL after the time.
func (h handle) end(ctx context.Context, d time.Duration) error {
	if err := h.signal(unix.SIGTERM); err != nil {
		return err
	}
	if h.wait(ctx, d) {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("wait for process %d to end: %w", h.pid, ctx.Err())
	}
	if err := h.signal(unix.SIGKILL); err != nil {
		return err
	}
	if !h.wait(ctx, killPatience) {
		return fmt.Errorf("process %d doesn't end when it is killed: %w", h.pid, errdefs.ErrUnavailable)
	}
	return nil
}

// startTicks is field 22 of proc_pid_stat(5). A zombie counts as ended.
func startTicks(pid int) (uint64, error) {
	data, err := os.ReadFile(procFile(pid, "stat"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, fmt.Errorf("process %d: %w", pid, errdefs.ErrNotFound)
	}
	if err != nil {
		return 0, fmt.Errorf("read when process %d started: %w", pid, err)
	}
	// The second field is the program's name, which may contain anything.
	_, rest, _ := strings.Cut(string(data[bytes.LastIndexByte(data, ')')+1:]), " ")
	fields := strings.Fields(rest) // from field 3, the state
	if len(fields) < 20 {
		return 0, fmt.Errorf("read when process %d started: %q has too few fields: %w", pid, data, errdefs.ErrDataLoss)
	}
	if fields[0] == "Z" || fields[0] == "X" {
		return 0, fmt.Errorf("process %d has ended: %w", pid, errdefs.ErrNotFound)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// alive says whether the process is the one that started then.
func alive(pid int, ticks uint64) bool {
	now, err := startTicks(pid)
	return pid > 0 && err == nil && now == ticks
}

func procFile(pid int, name string) string { return filepath.Join("/proc", strconv.Itoa(pid), name) }

// marked finds the processes whose environment has the mark, except the caller.
func marked(mark, value string) ([]handle, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []handle
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		// The handle is first, so that what is read is of the process that it holds.
		h, err := openHandle(pid)
		if err != nil {
			continue // it ended
		}
		env, err := os.ReadFile(procFile(pid, "environ"))
		if err != nil || variable(env, mark) != value { // or isn't the caller's to look at, and so not its own
			h.close()
			continue
		}
		h.name, h.hash = variable(env, processMark), variable(env, hashMark)
		found = append(found, h)
	}
	return found, nil
}

// variable returns the value of a variable in the form of proc_pid_environ(5).
func variable(env []byte, key string) string {
	for entry := range bytes.SplitSeq(env, []byte{0}) {
		if value, ok := bytes.CutPrefix(entry, []byte(key+"=")); ok {
			return string(value)
		}
	}
	return ""
}

// own finds the processes that a supervisor of the directory started itself, see the package's comment.
func own(dir string, last record) ([]handle, error) {
	all, err := marked(ownerMark, dir)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(h handle) bool {
		if last.has(h) || h.certified() {
			return false
		}
		h.close()
		return true
	}), nil
}

// certified says whether a process is, by what it itself is, the one that the marks in its environment were made for.
func (h handle) certified() bool {
	session, err := unix.Getsid(h.pid)
	if err != nil || session != h.pid {
		return false
	}
	line, err := os.ReadFile(procFile(h.pid, "cmdline"))
	if err != nil {
		return false
	}
	args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
	of, _, _ := strings.Cut(h.hash, "-")
	return hashOf(args) == of
}
