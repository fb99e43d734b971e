package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/guest/reaper"
)

const (
	runtimePath = "/usr/bin/crun"
	// runtimeTimeout bounds one run of the OCI runtime, which takes far below a second; under emulation on a loaded host
	// a few.
	runtimeTimeout = 2 * time.Minute
	// maxLog is how much of the runtime's log is looked at.
	maxLog = 64 << 10
)

// oci starts the OCI runtime.
type oci struct {
	reaper *reaper.Reaper
	binary string
	root   string // the runtime's state, a directory for each container
	dir    string // for files of single runs
}

// run is one run of the runtime.
type run struct {
	args  []string
	stdio *stdio
	log   string // path of the file for its messages
}

// start runs the runtime, which leaves a process behind, and returns that.
func (o *oci) start(ctx context.Context, r run) (*reaper.Child, error) {
	pidFile := r.log + ".pid"
	defer os.Remove(pidFile)
	defer os.Remove(r.log)
	args := append([]string{o.binary, "--root", o.root, "--cgroup-manager", "cgroupfs", "--log", r.log, "--log-format", "json"}, r.args[0])
	args = append(args, "--pid-file", pidFile)
	var tty *console
	if r.stdio.terminal {
		var err error
		if tty, err = newConsole(o.dir); err != nil {
			return nil, err
		}
		defer tty.close()
		args = append(args, "--console-socket", tty.path)
	}
	args = append(args, r.args[1:]...)

	// The process may have ended by the time its pid is known.
	hold := o.reaper.Hold()
	defer hold.Release()
	child, err := o.reaper.Start(o.binary, args, []string{"PATH=/usr/bin:/bin", "HOME=/root"}, r.stdio.child[:]...)
	if err != nil {
		return nil, err
	}
	var master *os.File
	var masterErr error
	received := make(chan struct{})
	go func() {
		defer close(received)
		if tty != nil {
			master, masterErr = tty.receive()
		}
	}()
	err = wait(ctx, child)
	if err != nil && tty != nil {
		tty.close() // ends receive
	}
	<-received
	if err != nil {
		if master != nil {
			master.Close()
		}
		return nil, o.explain(r.log, err)
	}
	if masterErr != nil {
		return nil, masterErr
	}
	if master != nil {
		if err := r.stdio.attach(master); err != nil {
			return nil, err
		}
	}
	pid, err := readPID(pidFile)
	if err != nil {
		return nil, err
	}
	return hold.Child(pid)
}

// wait returns nil when a run of the runtime has succeeded.
func wait(ctx context.Context, child *reaper.Child) error {
	timeout := time.NewTimer(runtimeTimeout)
	defer timeout.Stop()
	select {
	case <-child.Done():
		if status := child.Exit().Status; status != 0 {
			return fmt.Errorf("OCI runtime ended with status %d: %w", status, errdefs.ErrUnknown)
		}
		return nil
	case <-ctx.Done():
		_ = child.Signal(unix.SIGKILL) // it may have ended meanwhile
		<-child.Done()
		return ctx.Err()
	case <-timeout.C:
		_ = child.Signal(unix.SIGKILL) // it may have ended meanwhile
		<-child.Done()
		return fmt.Errorf("OCI runtime did not end in %v: %w", runtimeTimeout, errdefs.ErrInternal)
	}
}

func readPID(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("reading the process's id: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("reading the process's id: %q", b)
	}
	return pid, nil
}

// explain puts the runtime's last message in the place of an exit status.
func (o *oci) explain(log string, err error) error {
	if !errors.Is(err, errdefs.ErrUnknown) {
		return err
	}
	f, openErr := os.Open(log)
	if openErr != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, maxLog)
	n, _ := f.Read(b)
	if message := lastMessage(b[:n]); message != "" {
		return fmt.Errorf("%s: %w", message, classOf(message))
	}
	return err
}

// lastMessage finds the last error, and else the last message, in the runtime's log.
func lastMessage(log []byte) string {
	var last, lastError string
	for line := range bytes.Lines(log) {
		var entry struct{ Msg, Level string }
		if json.Unmarshal(line, &entry) != nil || entry.Msg == "" {
			continue
		}
		last = entry.Msg
		if entry.Level == "error" {
			lastError = entry.Msg
		}
	}
	if lastError != "" {
		return lastError
	}
	return last
}

// classOf tells the class of the runtime's error by its text: crun has no other way to tell.
func classOf(message string) error {
	m := strings.ToLower(message)
	missing := strings.Contains(m, "no such file or directory") || strings.Contains(m, "not found")
	switch {
	case strings.Contains(m, "executable") && missing:
		return errdefs.ErrNotFound
	case strings.Contains(m, "executable") && strings.Contains(m, "permission denied"), strings.Contains(m, "open executable"):
		return errdefs.ErrPermissionDenied
	case strings.Contains(m, "chdir"), strings.Contains(m, "setuid"), strings.Contains(m, "setgid"), strings.Contains(m, "setresuid"),
		strings.Contains(m, "setresgid"), strings.Contains(m, "user"), strings.Contains(m, "capabilit"), strings.Contains(m, "invalid"), strings.Contains(m, "unknown"):
		return errdefs.ErrInvalidArgument
	case strings.Contains(m, "does not exist"):
		return errdefs.ErrNotFound
	case strings.Contains(m, "not running"):
		return errdefs.ErrFailedPrecondition
	}
	return errdefs.ErrUnknown
}

// create makes a container, whose init waits for release.
func (o *oci) create(ctx context.Context, id, bundle string, io *stdio) (*reaper.Child, error) {
	return o.start(ctx, run{args: []string{"create", "--bundle", bundle, id}, stdio: io, log: filepath.Join(o.dir, "create-"+id)})
}

// exec starts a further process in a container.
func (o *oci) exec(ctx context.Context, id, exec, processFile string, io *stdio) (*reaper.Child, error) {
	return o.start(ctx, run{args: []string{"exec", "--process", processFile, "--detach", id}, stdio: io, log: filepath.Join(o.dir, "exec-"+id+"-"+exec)})
}

// release lets a created container's init execute its program, as "crun start" does: the init waits for a byte in this
// FIFO.
func (o *oci) release(id string) error {
	path := filepath.Join(o.root, id, "exec.fifo")
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, unix.ENXIO) || errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("its init has ended: %w", errdefs.ErrFailedPrecondition)
		}
		return err
	}
	defer f.Close()
	if err := os.Remove(path); err != nil {
		return err
	}
	_, err = f.Write([]byte{0})
	return err
}

// forget removes what the runtime remembers of a container.
func (o *oci) forget(id string) error { return os.RemoveAll(filepath.Join(o.root, id)) }

// seccomp returns the filter that the runtime has compiled for a container.
func (o *oci) seccomp(id string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(o.root, id, "seccomp.bpf"))
	if err != nil {
		return nil, fmt.Errorf("reading the seccomp filter of container %q: %w", id, err)
	}
	if len(b) == 0 {
		return nil, fmt.Errorf("the seccomp filter of container %q is empty: %w", id, errdefs.ErrInternal)
	}
	return b, nil
}
