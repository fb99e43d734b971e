package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/cgroup"
)

const (
	firstBackoff = 200 * time.Millisecond
	maxBackoff   = 10 * time.Second
	// steady is how long a process has to live for its next end to count as the first.
	steady = 30 * time.Second
	// rotateEvery is how often the logs of running processes are looked at.
	rotateEvery = time.Hour
	// day is how often the daily command is run, dailyPatience how long it may take.
	day           = 24 * time.Hour
	dailyPatience = 10 * time.Minute
)

// supervisor is the state of Run.
type supervisor struct {
	dir string
	log *slog.Logger
	// lock is held as long as the process lives. Closed, even by the garbage collector, it would be released.
	lock *os.File

	mu     sync.Mutex
	spec   Spec
	record record
	// runners has those that are in the spec, by the name of their process.
	runners map[string]*runner
	// changed is closed, and made anew, whenever a process becomes ready or the spec changes.
	changed chan struct{}
}

// runner keeps one process running.
type runner struct {
	s    *supervisor
	name string
	// process is guarded by supervisor.mu: what doesn't make it another process may change while it runs.
	process Process
	// hash is that of the process as it was started last. It is guarded by supervisor.mu.
	hash    string
	adopted *handle
	// again has something in it when process has changed.
	again chan struct{}
	// stop is closed to end the process, ended when it has. Settled is closed when the first start has been tried, or has to
	// wait for other processes.
	stop, ended, settled chan struct{}
}

// Run is the supervisor itself. It returns the exit code when the context ends, or after SIGTERM, once its processes have
// ended: 0, or 1 if it couldn't begin.
func Run(ctx context.Context, dir string, log *slog.Logger) int {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	defer signal.Stop(reload)
	s := &supervisor{dir: dir, log: log, runners: map[string]*runner{}, changed: make(chan struct{})}
	if err := s.begin(); err != nil {
		log.Error("can't supervise", "dir", dir, "error", err)
		return 1
	}
	rotation := time.NewTicker(rotateEvery)
	defer rotation.Stop()
	daily := time.NewTicker(day)
	defer daily.Stop()
	for {
		select {
		case <-reload:
			s.reload()
		case <-rotation.C:
			s.rotate()
		case <-daily.C:
			go s.daily(ctx) // it may wait for a command that changes this spec
		case <-ctx.Done():
			s.end()
			return 0
		}
	}
}

// begin takes the directory over: what an earlier supervisor left running is adopted or ended.
func (s *supervisor) begin() error {
	var err error
	if s.dir, err = filepath.Abs(s.dir); err != nil {
		return err
	}
	if s.lock, err = acquire(s.dir); err != nil {
		return err
	}
	spec, hash, err := readSpec(s.dir)
	if err != nil {
		return err
	}
	if spec.Cgroup != "" {
		group, err := cgroup.Create(spec.Cgroup)
		if err == nil {
			err = group.Enter(os.Getpid())
		}
		if err != nil {
			return fmt.Errorf("enter control group %s: %w", spec.Cgroup, err)
		}
	}
	last, err := readRecord(s.dir)
	if err != nil {
		s.log.Warn("the last record can't be read: processes are found by their environment alone", "error", err)
	}
	adopted, err := s.inherit(spec, last)
	if err != nil {
		return err
	}
	s.record = record{Version: recordVersion, Boot: bootID(), Supervisor: os.Getpid()}
	for _, h := range adopted {
		before := last.process(*h) // its restarts count on, but whether it is ready has to be asked
		before.Ready = false
		s.record.Processes = append(s.record.Processes, before)
	}
	s.log.Info("supervising", "name", spec.Name, "pid", os.Getpid(), "processes", len(spec.Processes), "adopted", len(adopted))
	s.apply(spec, hash, adopted)
	return nil
}

// inherit returns, by name, the processes of an earlier supervisor that are as the spec has them, and ends the others.
func (s *supervisor) inherit(spec Spec, last record) (map[string]*handle, error) {
	left, err := own(s.dir, last)
	if err != nil {
		return nil, err
	}
	adopted := map[string]*handle{}
	var others []handle
	for _, h := range left {
		p, ok := spec.find(h.name)
		if ok && spec.hash(p) == h.hash && inNetNS(h.pid, spec.NetNS) && adopted[h.name] == nil {
			adopted[h.name] = &h
			continue
		}
		s.log.Info("ending a process that an earlier supervisor left", "process", h.name, "pid", h.pid)
		others = append(others, h)
	}
	if err := endAll(context.Background(), others, spec.patience, true); err != nil {
		s.log.Error("can't end what an earlier supervisor left", "error", err)
	}
	return adopted, nil
}

// reload takes the new spec, or keeps the old one and says why.
func (s *supervisor) reload() {
	spec, hash, err := readSpec(s.dir)
	if err != nil {
		s.log.Error("the new spec can't be taken", "error", err)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.record.Refused, s.record.Problem = hash, err.Error()
		s.save()
		return
	}
	s.mu.Lock()
	var gone []*runner
	for name, r := range s.runners {
		p, ok := spec.find(name)
		if !ok || spec.hash(p) != r.hash {
			gone = append(gone, r)
		}
	}
	s.mu.Unlock()
	s.stopAll(gone)
	s.mu.Lock()
	for _, r := range gone {
		delete(s.runners, r.name)
	}
	s.mu.Unlock()
	s.log.Info("took the new spec", "stopped", len(gone))
	s.apply(spec, hash, nil)
}

// apply starts what the spec has and doesn't run. It returns when the start of all that need not wait has been tried.
func (s *supervisor) apply(spec Spec, hash string, adopted map[string]*handle) {
	for _, r := range s.take(spec, adopted) {
		<-r.settled
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.record.Spec, s.record.Refused, s.record.Problem = hash, "", ""
	s.save()
}

// take makes the spec the supervisor's, and returns the runners that are new.
func (s *supervisor) take(spec Spec, adopted map[string]*handle) []*runner {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spec = spec
	old := s.record.Processes
	s.record.Processes = nil
	var fresh []*runner
	for _, p := range spec.Processes {
		entry := recordedProcess{ProcessStatus: ProcessStatus{Name: p.Name, Phase: Waiting, Since: time.Now()}}
		r := s.runners[p.Name]
		if r != nil || adopted[p.Name] != nil {
			if i := slices.IndexFunc(old, func(o recordedProcess) bool { return o.Name == p.Name }); i >= 0 {
				entry = old[i]
			}
		}
		entry.Log = p.Log
		s.record.Processes = append(s.record.Processes, entry)
		if r != nil {
			r.process = p
			select {
			case r.again <- struct{}{}:
			default:
			}
			continue
		}
		r = &runner{
			s: s, name: p.Name, process: p, hash: spec.hash(p), adopted: adopted[p.Name], again: make(chan struct{}, 1),
			stop: make(chan struct{}), ended: make(chan struct{}), settled: make(chan struct{}),
		}
		s.runners[p.Name] = r
		fresh = append(fresh, r)
	}
	s.save()
	s.tell()
	for _, r := range fresh {
		go r.run(spec.env(r.process))
	}
	return fresh
}

// end stops everything.
func (s *supervisor) end() {
	s.log.Info("stopping")
	s.mu.Lock()
	var all []*runner
	for _, r := range s.runners {
		all = append(all, r)
	}
	s.mu.Unlock()
	s.stopAll(all)
}

// stopAll stops processes, those that come after others before them.
func (s *supervisor) stopAll(runners []*runner) {
	s.mu.Lock()
	order, err := levels(s.spec.Processes)
	s.mu.Unlock()
	if err != nil { // of a spec that was validated
		s.log.Error("no order to stop in", "error", err)
	}
	for _, level := range slices.Backward(order) {
		var now []*runner
		for _, r := range runners {
			if slices.Contains(level, r.name) {
				close(r.stop)
				now = append(now, r)
			}
		}
		for _, r := range now {
			<-r.ended
		}
	}
}

// rotate moves the logs of running processes that have become long.
func (s *supervisor) rotate() {
	s.mu.Lock()
	spec := s.spec
	s.mu.Unlock()
	for _, p := range spec.Processes {
		if err := rotate(p.Log, logSize); err != nil {
			s.log.Warn("can't rotate log", "process", p.Name, "error", err)
		}
	}
	if err := rotate(filepath.Join(s.dir, logFile), logSize); err != nil {
		s.log.Warn("can't rotate log", "error", err)
	}
}

// daily runs the daily command.
func (s *supervisor) daily(ctx context.Context) {
	s.mu.Lock()
	args := s.spec.Daily
	s.mu.Unlock()
	if len(args) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, dailyPatience)
	defer cancel()
	output, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	s.log.Info("ran the daily command", "command", args, "error", err, "output", strings.TrimSpace(string(output)))
}

// save writes the record. The caller holds the lock.
func (s *supervisor) save() {
	if err := s.record.write(s.dir); err != nil {
		s.log.Error("can't write status", "error", err) // a full disk: the processes are more important
	}
}

// update changes what is recorded of a process.
func (s *supervisor) update(name string, change func(*recordedProcess)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.record.Processes {
		if p := &s.record.Processes[i]; p.Name == name {
			before := *p
			change(p)
			if p.Phase != before.Phase {
				p.Since = time.Now()
			}
			if p.Ready && !before.Ready {
				s.log.Info("process is ready", "process", name)
				s.tell()
			}
			if *p != before {
				s.save()
			}
			return
		}
	}
}

// tell wakes those that wait for a change. The caller holds the lock.
func (s *supervisor) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// runs says whether a process is of the program that is at the path now, which an upgrade may have replaced.
func runs(pid int, path string) bool {
	now, err := os.Stat(path)
	if err != nil {
		return true // there is none to start instead
	}
	running, err := os.Stat(procFile(pid, "exe"))
	return err == nil && os.SameFile(now, running)
}

// inNetNS says whether a process is in the network namespace of a path; in the one of no path all are. One that was removed
// and made again is another one.
func inNetNS(pid int, path string) bool {
	if path == "" {
		return true
	}
	wanted, err := os.Stat(path)
	if err != nil {
		return false
	}
	is, err := os.Stat(procFile(pid, "ns/net"))
	return err == nil && os.SameFile(wanted, is)
}

// ready says whether all of the named are, and returns what is closed when that may have changed.
func (s *supervisor) ready(names []string) (bool, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.record.Processes {
		if slices.Contains(names, p.Name) && !p.Ready {
			return false, s.changed
		}
	}
	return true, s.changed
}

// run keeps the process running until it is to stop.
func (r *runner) run(env []string) {
	defer close(r.ended)
	defer r.s.update(r.name, func(p *recordedProcess) { p.Phase, p.PID, p.Ticks, p.Ready = Stopped, 0, 0, false })
	settle := sync.OnceFunc(func() { close(r.settled) })
	defer settle()
	if !r.awaitOthers(settle) {
		return
	}
	var pause time.Duration
	for {
		began := time.Now()
		exit, stopped := r.once(env, settle)
		if stopped {
			return
		}
		pause = backoff(pause, time.Since(began))
		r.s.log.Warn("process ended", "process", r.name, "exit", exit, "again-in", pause)
		r.s.update(r.name, func(p *recordedProcess) {
			p.Phase, p.PID, p.Ticks, p.Ready, p.LastExit = Backoff, 0, 0, false, exit
			p.Restarts++
		})
		settle()
		select {
		case <-r.stop:
			return
		case <-time.After(pause):
		}
	}
}

// backoff is the pause before a process is started again that lived so long after the last pause.
func backoff(last, lived time.Duration) time.Duration {
	if last == 0 || lived > steady {
		return firstBackoff
	}
	return min(2*last, maxBackoff)
}

// spec returns what the process is to be now.
func (r *runner) spec() Process {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	return r.process
}

// awaitOthers waits for the processes that this one comes after. One that was adopted doesn't wait.
func (r *runner) awaitOthers(settle func()) bool {
	if r.adopted != nil {
		return true
	}
	for {
		ok, changed := r.s.ready(r.spec().After)
		if ok {
			return true
		}
		settle()
		select {
		case <-changed:
		case <-r.stop:
			return false
		}
	}
}

// once starts the process, or takes the adopted one, and returns when it has ended, with how, or was stopped.
func (r *runner) once(env []string, settle func()) (exit string, stopped bool) {
	var wait func() string
	h := r.adopted
	r.adopted = nil
	if h != nil {
		r.s.log.Info("adopted process", "process", r.name, "pid", h.pid)
		wait = func() string { h.waitForever(); return "no one was there to see how" }
	} else {
		cmd, started, err := r.start(env)
		r.s.update(r.name, func(p *recordedProcess) { p.Unstartable = err != nil })
		if err != nil {
			return err.Error(), false
		}
		if started == nil {
			return describe(cmd.Wait()), false
		}
		h = started
		r.s.log.Info("started process", "process", r.name, "pid", h.pid)
		wait = func() string { return describe(cmd.Wait()) }
	}
	defer h.close()
	r.s.update(r.name, func(p *recordedProcess) {
		p.Phase, p.PID, p.Ticks, p.Problem = Running, h.pid, h.ticks, ""
	})
	settle()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var probing sync.WaitGroup
	probing.Go(func() { r.probe(ctx) })
	done := make(chan string, 1)
	go func() { done <- wait() }()
	select {
	case exit = <-done:
	case <-r.stop:
		stopped = true
		if err := h.end(context.Background(), r.spec().stopTimeout()); err != nil {
			r.s.log.Error("can't end process", "process", r.name, "error", err)
		} else {
			r.s.log.Info("stopped process", "process", r.name, "exit", <-done)
		}
	}
	cancel()
	probing.Wait()
	return exit, stopped
}

// start returns no handle if the process has ended already; it is to be waited for all the same.
func (r *runner) start(env []string) (*exec.Cmd, *handle, error) {
	r.s.mu.Lock()
	process := r.process
	r.hash = r.s.spec.hash(process) // the program may be another than last time
	mark := hashMark + "=" + r.hash
	r.s.mu.Unlock()
	log, err := openLog(process.Log)
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	cmd := exec.Command(process.Args[0], process.Args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(r.environment(env), mark)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("start: %w", err)
	}
	h, err := openHandle(cmd.Process.Pid)
	if errors.Is(err, errdefs.ErrNotFound) {
		return cmd, nil, nil
	}
	if err != nil {
		return nil, nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	return cmd, &h, nil
}

// environment has the marks last: nothing overrides them.
func (r *runner) environment(env []string) []string {
	var all []string
	for _, key := range []string{"PATH", "HOME"} {
		if value, ok := os.LookupEnv(key); ok {
			all = append(all, key+"="+value)
		}
	}
	all = append(all, env...)
	return append(all, ownerMark+"="+r.s.dir, processMark+"="+r.name)
}

// probe keeps asking whether the process is ready.
func (r *runner) probe(ctx context.Context) {
	for tries := 0; ; tries++ {
		probe := r.spec().Ready
		err := probe.check(ctx)
		if ctx.Err() != nil {
			return
		}
		r.s.update(r.name, func(p *recordedProcess) {
			p.Ready, p.Problem = err == nil, ""
			if err != nil {
				p.Problem = err.Error()
			}
		})
		if err == nil {
			tries = 0
		}
		var next <-chan time.Time // never, without a probe: it is ready as long as it runs
		if probe != nil {
			next = time.After(pause(tries, err == nil))
		}
		select {
		case <-ctx.Done():
			return
		case <-r.again:
			tries = 0
		case <-next:
		}
	}
}

// describe says how a process ended.
func describe(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return strings.TrimSpace(err.Error())
}
