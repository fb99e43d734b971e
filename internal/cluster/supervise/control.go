package supervise

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
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
	// stopSlack is what a supervisor may take to end beyond what its processes may.
	stopSlack = 10 * time.Second
)

// errGone says that a supervisor that was to be told something has ended.
var errGone = errors.New("the supervisor has ended")

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
	old, _, err := readSpec(dir)
	fits := err == nil && old.NetNS == s.NetNS && old.Cgroup == s.Cgroup
	hash, err := writeSpec(dir, s)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for {
		// Again if the supervisor that was told ends instead, as one does that is being stopped.
		if err := hand(ctx, self, dir, s, fits, hash); !errors.Is(err, errGone) {
			return err
		}
	}
}

// hand has the supervisor that runs take the spec, or a new one. It returns errGone if the former has ended meanwhile.
func hand(ctx context.Context, self, dir string, s Spec, fits bool, hash string) error {
	pid, err := holder(dir)
	if err != nil {
		return err
	}
	if pid != 0 {
		if pid, err = reload(ctx, self, pid, fits && inNetNS(pid, s.NetNS)); err != nil {
			return err
		}
	}
	ended := make(chan struct{})
	if pid == 0 {
		if err := launch(self, dir, s, ended); err != nil {
			return err
		}
	}
	return awaitSpec(ctx, dir, hash, pid, ended)
}

// reload makes a supervisor read its spec, and returns its number. One that is of another program than self, as after an
// upgrade, may not understand it, and one in another place than the spec says can't go there: it is killed, which its
// processes don't notice, and 0 is returned.
func reload(ctx context.Context, self string, pid int, fits bool) (int, error) {
	h, err := openHandle(pid)
	if errors.Is(err, errdefs.ErrNotFound) {
		return 0, errGone
	}
	if err != nil {
		return 0, err
	}
	defer h.close()
	if fits && runs(pid, self) {
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

// awaitSpec returns when the supervisor has taken the spec with the hash, or refused it. Told is the supervisor that was sent
// a signal; if it is 0, one was started, and ended is closed when that ends.
func awaitSpec(ctx context.Context, dir, hash string, told int, ended <-chan struct{}) error {
	tick := time.NewTicker(pollStatus)
	defer tick.Stop()
	for {
		over := false
		select {
		case <-ended:
			over = true
		default:
		}
		pid, err := holder(dir)
		if err != nil {
			return err
		}
		// A record that can't be read is of an earlier supervisor.
		if r, err := readRecord(dir); err == nil && pid != 0 && r.Supervisor == pid {
			if r.Refused == hash {
				return fmt.Errorf("%s: %w", r.Problem, errdefs.ErrInvalidArgument)
			}
			if r.Spec == hash {
				return r.unstartable()
			}
		}
		if _, now, err := readSpec(dir); now != hash {
			return errors.Join(fmt.Errorf("another spec was written meanwhile: %w", errdefs.ErrAborted), err)
		}
		switch {
		case told != 0 && pid != told, over && pid != 0:
			return errGone
		case over:
			return fmt.Errorf("the supervisor ended at once; its log ends with:\n%s: %w", tail(filepath.Join(dir, logFile)), errdefs.ErrUnavailable)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the supervisor: %w; its log ends with:\n%s", ctx.Err(), tail(filepath.Join(dir, logFile)))
		case <-tick.C:
		}
	}
}

// unstartable is the error of the first process that couldn't be run.
func (r record) unstartable() error {
	for _, p := range r.Processes {
		if p.Unstartable {
			return fmt.Errorf("process %s can't be run: %s: %w; its log ends with:\n%s", p.Name, p.LastExit, errdefs.ErrFailedPrecondition, tail(p.Log))
		}
	}
	return nil
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
	spec, _, _ := readSpec(dir) // without it there is no order
	var errs []error
	for _, group := range stopOrder(spec, left) {
		errs = append(errs, endAll(ctx, group, spec.patience, gently))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("end the processes of %s: %w", dir, err)
	}
	return nil
}

// stopOrder groups processes: those of each group may be ended when those before have ended.
func stopOrder(s Spec, all []handle) [][]handle {
	order, err := levels(s.Processes)
	if err != nil {
		order = nil
	}
	rank := map[string]int{} // 0: not in the spec, goes first
	for i, level := range order {
		for _, name := range level {
			rank[name] = len(order) - i
		}
	}
	groups := make([][]handle, len(order)+1)
	for _, h := range all {
		groups[rank[h.name]] = append(groups[rank[h.name]], h)
	}
	return groups
}

// endSupervisors ends the one that holds the lock, and one that hasn't got as far.
func endSupervisors(ctx context.Context, dir string, gently bool) error {
	all, err := marked(supervisorMark, dir)
	if err != nil {
		return err
	}
	pid, err := holder(dir)
	if err != nil {
		return err
	}
	if pid != 0 && !slices.ContainsFunc(all, func(h handle) bool { return h.pid == pid }) {
		if h, err := openHandle(pid); err == nil {
			all = append(all, h)
		} else if !errors.Is(err, errdefs.ErrNotFound) {
			return err
		}
	}
	patience := stopSlack
	spec, _, _ := readSpec(dir) // what can't be read has no processes that take time
	for _, p := range spec.Processes {
		patience += p.stopTimeout()
	}
	return endAll(ctx, all, func(handle) time.Duration { return patience }, gently)
}

// endAll ends processes side by side.
func endAll(ctx context.Context, all []handle, patience func(handle) time.Duration, gently bool) error {
	errs := make([]error, len(all))
	var group sync.WaitGroup
	for i, h := range all {
		group.Go(func() {
			defer h.close()
			if gently {
				errs[i] = h.end(ctx, patience(h))
			} else if errs[i] = h.signal(unix.SIGKILL); errs[i] == nil && !h.wait(ctx, killPatience) {
				errs[i] = fmt.Errorf("process %d doesn't end when it is killed: %w", h.pid, errdefs.ErrUnavailable)
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}
