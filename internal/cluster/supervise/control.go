package supervise

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/cluster/fabric"
)

const (
	// startPatience is how long a supervisor may take to take its spec: it ends what an earlier one left first, and waits
	// for what a new spec ends.
	startPatience = 2 * time.Minute
	// stopPatience is how long a supervisor may take to end all its processes.
	stopPatience = time.Minute
)

// Start starts a supervisor by running `self supervise DIR` in the spec's network namespace, in a session of its own; or makes
// the one that runs take the new spec. It returns when the supervisor has taken it; WaitReady waits for the processes.
func Start(ctx context.Context, self, dir string, s Spec) error {
	if err := start(ctx, self, dir, s); err != nil {
		return fmt.Errorf("supervise %s: %w", s.Name, err)
	}
	return nil
}

func start(ctx context.Context, self, dir string, s Spec) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := errors.Join(s.validate(), s.checkPrograms()); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make its directory: %w", err)
	}
	hash, err := writeSpec(dir, s)
	if err != nil {
		return err
	}
	pid, err := holder(dir)
	if err != nil {
		return err
	}
	if pid != 0 {
		if pid, err = reload(ctx, self, pid); err != nil {
			return err
		}
	}
	ended := make(chan struct{})
	if pid == 0 {
		if err := launch(self, dir, s, ended); err != nil {
			return err
		}
	}
	return awaitSpec(ctx, dir, hash, ended)
}

// reload makes a supervisor read its spec, and returns its number. One that is of another program than self, as after an
// upgrade, may not understand it: it is killed, which its processes don't notice, and 0 is returned.
func reload(ctx context.Context, self string, pid int) (int, error) {
	h, err := openHandle(pid)
	if errors.Is(err, errdefs.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer h.close()
	if runs(pid, self) {
		return pid, h.signal(unix.SIGHUP)
	}
	if err := h.signal(unix.SIGKILL); err != nil {
		return 0, err
	}
	if !h.wait(ctx, killPatience) {
		return 0, fmt.Errorf("the earlier supervisor, process %d, doesn't end: %w", pid, errdefs.ErrUnavailable)
	}
	return 0, nil
}

// launch starts a supervisor. Ended is closed when it ends.
func launch(self, dir string, s Spec, ended chan<- struct{}) error {
	log, err := openLog(filepath.Join(dir, logFile))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(self, "supervise", dir)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.Env = []string{supervisorMark + "=" + dir}
	for _, key := range []string{"PATH", "HOME"} {
		if value, ok := os.LookupEnv(key); ok {
			cmd.Env = append(cmd.Env, key+"="+value)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	begin := cmd.Start
	if s.NetNS != "" {
		begin = func() error { return fabric.In(s.NetNS, cmd.Start) }
	}
	if err := begin(); err != nil {
		return fmt.Errorf("start the supervisor: %w", err)
	}
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(ended)
	}()
	return nil
}

// awaitSpec returns when the supervisor has taken the spec with the hash, or refused it.
func awaitSpec(ctx context.Context, dir, hash string, ended <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	tick := time.NewTicker(pollStatus)
	defer tick.Stop()
	for {
		r, err := readRecord(dir)
		if err != nil && ctx.Err() != nil {
			return err
		}
		if pid, held := holder(dir); err == nil && held == nil && pid != 0 && r.Supervisor == pid {
			if r.Refused == hash {
				return fmt.Errorf("%s: %w", r.Problem, errdefs.ErrInvalidArgument)
			}
			if r.Spec == hash {
				return nil
			}
		}
		select {
		case <-ended:
			return fmt.Errorf("the supervisor ended at once; its log ends with:\n%s: %w", tail(filepath.Join(dir, logFile)), errdefs.ErrUnavailable)
		case <-ctx.Done():
			return fmt.Errorf("wait for the supervisor: %w; its log ends with:\n%s", ctx.Err(), tail(filepath.Join(dir, logFile)))
		case <-tick.C:
		}
	}
}

// Stop ends the supervisor and its processes, each as its Process says, those that come after others first. It does so too
// when the supervisor is dead. It is idempotent; a directory that isn't there is one where nothing runs.
func Stop(ctx context.Context, dir string) error { return finish(ctx, dir, true) }

// Kill is Stop without asking: for processes whose data are removed next.
func Kill(ctx context.Context, dir string) error { return finish(ctx, dir, false) }

func finish(ctx context.Context, dir string, gently bool) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := endSupervisors(ctx, dir, gently); err != nil {
		return fmt.Errorf("end the supervisor of %s: %w", dir, err)
	}
	last, err := readRecord(dir)
	if err != nil {
		last = record{} // processes are found by their environment alone
	}
	left, err := own(dir, last)
	if err != nil {
		return err
	}
	spec, _, specErr := readSpec(dir)
	return endAll(ctx, left, func(h handle) time.Duration {
		if p, ok := spec.find(h.name); gently && specErr == nil && ok {
			return p.stopTimeout()
		}
		return DefaultStopTimeout
	}, gently)
}

// endSupervisors ends the one that holds the lock, and one that hasn't got as far.
func endSupervisors(ctx context.Context, dir string, gently bool) error {
	all, err := marked(supervisorMark, dir)
	if err != nil {
		return err
	}
	return endAll(ctx, all, func(handle) time.Duration { return stopPatience }, gently)
}

// endAll signals all before it waits for any.
func endAll(ctx context.Context, all []handle, patience func(handle) time.Duration, gently bool) error {
	var errs []error
	for _, h := range all {
		if gently {
			errs = append(errs, h.signal(unix.SIGTERM))
		} else {
			errs = append(errs, h.signal(unix.SIGKILL))
		}
	}
	for _, h := range all {
		if gently {
			errs = append(errs, h.end(ctx, patience(h)))
		} else if !h.wait(ctx, killPatience) {
			errs = append(errs, fmt.Errorf("process %d doesn't end when it is killed: %w", h.pid, errdefs.ErrUnavailable))
		}
		h.close()
	}
	return errors.Join(errs...)
}
