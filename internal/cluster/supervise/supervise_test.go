package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The test program is its own supervisor: Start runs it as "PROGRAM supervise DIR".
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "supervise" {
		os.Exit(Run(context.Background(), os.Args[2], slog.New(slog.NewTextHandler(os.Stderr, nil))))
	}
	os.Exit(m.Run())
}

// patience is for what happens at once unless the machine is very busy.
const patience = time.Minute

// bed is a supervisor's directory. What is left in it is killed at the end.
type bed struct {
	t    *testing.T
	dir  string
	self string
}

func newBed(t *testing.T) *bed {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{t: t, dir: t.TempDir(), self: self}
	t.Cleanup(func() {
		if err := Kill(context.Background(), b.dir); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *bed) process(name string, args ...string) Process {
	return Process{Name: name, Args: args, Log: filepath.Join(b.dir, "logs", name+".log")}
}

// sleeper is a process that does nothing, and is another one for each number.
func (b *bed) sleeper(name string, number int) Process {
	return b.process(name, "/bin/sleep", strconv.Itoa(100000+number))
}

func (b *bed) start(processes ...Process) error {
	return Start(b.t.Context(), b.self, b.dir, Spec{Name: "test", Processes: processes})
}

// run starts the processes and returns their numbers once they are ready.
func (b *bed) run(processes ...Process) map[string]int {
	b.t.Helper()
	if err := b.start(processes...); err != nil {
		b.t.Fatal(err)
	}
	return b.ready()
}

func (b *bed) ready() map[string]int {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	if err := WaitReady(ctx, b.dir); err != nil {
		b.t.Fatal(err)
	}
	pids := map[string]int{}
	for _, p := range b.status().Processes {
		pids[p.Name] = p.PID
	}
	return pids
}

func (b *bed) status() State {
	b.t.Helper()
	s, err := Status(b.dir)
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *bed) find(name string) ProcessStatus {
	b.t.Helper()
	all := b.status().Processes
	i := slices.IndexFunc(all, func(p ProcessStatus) bool { return p.Name == name })
	if i < 0 {
		b.t.Fatalf("no process %s in %+v", name, all)
	}
	return all[i]
}

func (b *bed) eventually(what string, is func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(b.dir, logFile))
			b.t.Fatalf("still not: %s; status %+v; supervisor's log:\n%s", what, b.status(), log)
		}
	}
}

// killSupervisor leaves the processes alone.
func (b *bed) killSupervisor() {
	b.t.Helper()
	if err := syscall.Kill(b.status().Supervisor, syscall.SIGKILL); err != nil {
		b.t.Fatal(err)
	}
	b.eventually("the supervisor is dead", func() bool { return b.status().Supervisor == 0 })
}

func running(pid int) bool { _, err := startTicks(pid); return err == nil }

func TestStartAndStop(t *testing.T) {
	b := newBed(t)
	pids := b.run(b.sleeper("a", 1), b.sleeper("b", 2))
	if pids["a"] == 0 || pids["b"] == 0 || pids["a"] == pids["b"] || !running(pids["a"]) {
		t.Fatalf("processes %v", pids)
	}
	if err := Stop(t.Context(), b.dir); err != nil {
		t.Fatal(err)
	}
	if running(pids["a"]) || running(pids["b"]) || b.status().Supervisor != 0 {
		t.Errorf("after Stop: %+v", b.status())
	}
	if p := b.find("a"); p.Phase != Stopped || p.PID != 0 || p.Ready {
		t.Errorf("after Stop: %+v", p)
	}
	if err := Stop(t.Context(), b.dir); err != nil {
		t.Errorf("a second Stop: %v", err)
	}
	if err := Stop(t.Context(), filepath.Join(b.dir, "nothing")); err != nil {
		t.Errorf("Stop of nothing: %v", err)
	}
	again := b.run(b.sleeper("a", 1))
	if again["a"] == 0 || again["a"] == pids["a"] {
		t.Errorf("started again: %v", again)
	}
}

func TestKilledProcessIsStartedAgain(t *testing.T) {
	b := newBed(t)
	pids := b.run(b.sleeper("a", 1), b.sleeper("b", 2))
	if err := syscall.Kill(pids["a"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.eventually("a is back", func() bool { p := b.find("a"); return p.Ready && p.PID != pids["a"] })
	if p := b.find("a"); p.Restarts != 1 || !strings.Contains(p.LastExit, "killed") {
		t.Errorf("a: %+v", p)
	}
	if p := b.find("b"); p.PID != pids["b"] || p.Restarts != 0 {
		t.Errorf("b was touched: %+v", p)
	}
}

func TestSupervisorIsKilled(t *testing.T) {
	b := newBed(t)
	pids := b.run(b.sleeper("same", 1), b.sleeper("changed", 2), b.sleeper("gone", 3))
	b.killSupervisor()
	if p := b.find("same"); !running(pids["same"]) || p.PID != pids["same"] || p.Ready {
		t.Errorf("without a supervisor: %+v", p)
	}
	now := b.run(b.sleeper("same", 1), b.sleeper("changed", 4))
	if now["same"] != pids["same"] {
		t.Errorf("what should run as it does was started anew: %d, then %d", pids["same"], now["same"])
	}
	if now["changed"] == pids["changed"] || running(pids["changed"]) || running(pids["gone"]) {
		t.Errorf("what should not run still does: %v, then %v", pids, now)
	}
	// An adopted process is watched like any other.
	if err := syscall.Kill(now["same"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.eventually("it is back", func() bool { p := b.find("same"); return p.Ready && p.PID != now["same"] })
}

func TestSupervisorIsKilledAndTheRecordLost(t *testing.T) {
	b := newBed(t)
	pids := b.run(b.sleeper("a", 1))
	b.killSupervisor()
	if err := os.WriteFile(filepath.Join(b.dir, statusFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if now := b.run(b.sleeper("a", 1)); now["a"] != pids["a"] {
		t.Errorf("not adopted: %d, then %d", pids["a"], now["a"])
	}
}

func TestStopWithoutSupervisor(t *testing.T) {
	for name, end := range map[string]func(context.Context, string) error{"stop": Stop, "kill": Kill} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			pids := b.run(b.sleeper("a", 1), b.sleeper("b", 2))
			b.killSupervisor()
			if err := end(t.Context(), b.dir); err != nil {
				t.Fatal(err)
			}
			if running(pids["a"]) || running(pids["b"]) {
				t.Errorf("still running: %v", pids)
			}
		})
	}
}

func TestKill(t *testing.T) {
	b := newBed(t)
	stubborn := b.process("stubborn", "/bin/sh", "-c", "trap '' TERM; while :; do /bin/sleep 0.1; done")
	stubborn.StopTimeout = time.Hour
	pids := b.run(stubborn)
	if err := Kill(t.Context(), b.dir); err != nil {
		t.Fatal(err)
	}
	if running(pids["stubborn"]) || b.status().Supervisor != 0 {
		t.Errorf("still there: %+v", b.status())
	}
}

func TestStubbornProcessIsKilledAfterItsTime(t *testing.T) {
	b := newBed(t)
	stubborn := b.process("stubborn", "/bin/sh", "-c", "trap '' TERM; while :; do /bin/sleep 0.1; done")
	stubborn.StopTimeout = 100 * time.Millisecond
	pids := b.run(stubborn)
	if err := Stop(t.Context(), b.dir); err != nil || running(pids["stubborn"]) {
		t.Errorf("Stop: %v; it runs: %v", err, running(pids["stubborn"]))
	}
}

func TestNewSpec(t *testing.T) {
	b := newBed(t)
	pids := b.run(b.sleeper("same", 1), b.sleeper("changed", 2), b.sleeper("gone", 3))
	supervisor := b.status().Supervisor
	now := b.run(b.sleeper("same", 1), b.sleeper("changed", 4), b.sleeper("new", 5))
	if b.status().Supervisor != supervisor {
		t.Error("there is another supervisor")
	}
	if now["same"] != pids["same"] || now["changed"] == pids["changed"] || now["new"] == 0 || running(pids["gone"]) || running(pids["changed"]) {
		t.Errorf("before %v, after %v", pids, now)
	}
	if len(now) != 3 {
		t.Errorf("status has %v", now)
	}
}

// An upgrade puts another file where the program was.
func TestReplacedProgram(t *testing.T) {
	b := newBed(t)
	path := filepath.Join(t.TempDir(), "program")
	install := func() {
		data, err := os.ReadFile("/bin/sleep")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.WriteFile(path+".new", data, 0o755), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	install()
	replaced, other := b.process("replaced", path, "100000"), b.sleeper("other", 1)
	pids := b.run(replaced, other)
	install()
	now := b.run(replaced, other)
	if now["replaced"] == pids["replaced"] || now["other"] != pids["other"] {
		t.Errorf("before %v, after %v", pids, now)
	}
	// The supervisor itself is replaced too, and its processes don't notice.
	supervisor := b.status().Supervisor
	data, err := os.ReadFile(b.self)
	if err != nil {
		t.Fatal(err)
	}
	b.self = filepath.Join(t.TempDir(), "supervisor")
	if err := os.WriteFile(b.self, data, 0o755); err != nil {
		t.Fatal(err)
	}
	last := b.run(replaced, other)
	if b.status().Supervisor == supervisor || last["other"] != now["other"] || last["replaced"] != now["replaced"] {
		t.Errorf("supervisor %d, then %d; before %v, after %v", supervisor, b.status().Supervisor, now, last)
	}
}

func TestRefusedSpec(t *testing.T) {
	b := newBed(t)
	pids := b.run(b.sleeper("a", 1))
	for name, bad := range map[string][]Process{
		"no program": {b.process("a", "/does/not/exist")},
		"relative":   {b.process("a", "sleep", "1")},
		"twice":      {b.sleeper("a", 1), b.sleeper("a", 2)},
		"circle":     {func() Process { p := b.sleeper("a", 1); p.After = []string{"a"}; return p }()},
		"after none": {func() Process { p := b.sleeper("a", 1); p.After = []string{"x"}; return p }()},
		"bad probe":  {func() Process { p := b.sleeper("a", 1); p.Ready = &Probe{URL: "ftp://x"}; return p }()},
		"own mark":   {func() Process { p := b.sleeper("a", 1); p.Env = []string{processMark + "=x"}; return p }()},
	} {
		if err := b.start(bad...); !errors.Is(err, errdefs.ErrInvalidArgument) && !errors.Is(err, errdefs.ErrFailedPrecondition) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What is written behind our back is refused by the supervisor itself.
	if err := os.WriteFile(filepath.Join(b.dir, specFile), []byte(`{"processes": [{"name": "a"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(b.status().Supervisor, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	b.eventually("it says that it refuses", func() bool { r, err := readRecord(b.dir); return err == nil && r.Problem != "" })
	if now := b.ready(); now["a"] != pids["a"] {
		t.Errorf("the process was touched: %d, then %d", pids["a"], now["a"])
	}
}

// A shim that containerd started has containerd's environment, and outlives it.
func TestGrandchildrenAreLeftAlone(t *testing.T) {
	b := newBed(t)
	file := filepath.Join(b.dir, "grandchild")
	parent := b.process("parent", "/bin/sh", "-c", "setsid /bin/sleep 100000 & echo $! > "+file+".new; mv "+file+".new "+file+"; exec /bin/sleep 100001")
	b.run(parent)
	var grandchild int
	b.eventually("the grandchild is there", func() bool {
		data, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		grandchild, err = strconv.Atoi(strings.TrimSpace(string(data)))
		return err == nil
	})
	t.Cleanup(func() { _ = syscall.Kill(grandchild, syscall.SIGKILL) })
	env, err := os.ReadFile(procFile(grandchild, "environ"))
	if err != nil || variable(env, ownerMark) != b.dir {
		t.Fatalf("the grandchild doesn't have the mark: the test shows nothing (%v)", err)
	}
	pid := b.find("parent").PID
	b.killSupervisor()
	if again := b.run(parent)["parent"]; again != pid {
		t.Errorf("a process that replaced itself by another program wasn't adopted: %d, then %d", pid, again)
	}
	if err := Stop(t.Context(), b.dir); err != nil {
		t.Fatal(err)
	}
	if err := Kill(t.Context(), b.dir); err != nil {
		t.Fatal(err)
	}
	if !running(grandchild) {
		t.Error("the grandchild was ended")
	}
}

func TestAfter(t *testing.T) {
	b := newBed(t)
	socket := filepath.Join(b.dir, "s")
	first, second := b.sleeper("first", 1), b.sleeper("second", 2)
	first.Ready = &Probe{URL: "unix://" + socket}
	second.After = []string{"first"}
	if err := b.start(second, first); err != nil {
		t.Fatal(err)
	}
	b.eventually("first runs", func() bool { return b.find("first").Phase == Running })
	if p := b.find("second"); p.Phase != Waiting || p.PID != 0 {
		t.Errorf("second didn't wait: %+v", p)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := WaitReady(ctx, b.dir, "second")
	if err == nil || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "second") {
		t.Errorf("WaitReady: %v", err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	b.ready()
	if p := b.find("second"); p.PID == 0 {
		t.Errorf("second: %+v", p)
	}
}

// What keeps ending is started again and again, and who waits for it learns why.
func TestNeverReady(t *testing.T) {
	b := newBed(t)
	p := b.process("broken", "/bin/sh", "-c", "echo I have no bread; exit 3")
	p.Ready = &Probe{URL: "unix://" + filepath.Join(b.dir, "nothing")}
	if err := b.start(p); err != nil {
		t.Fatal(err)
	}
	b.eventually("it was restarted", func() bool { return b.find("broken").Restarts >= 2 })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := WaitReady(ctx, b.dir, "broken")
	for _, want := range []string{"broken", "exit status 3", "I have no bread"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("WaitReady says %v, and not %q", err, want)
		}
	}
	if err := WaitReady(t.Context(), b.dir, "unknown"); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("WaitReady for a process that isn't there: %v", err)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("BULKHEAD_TEST_SECRET", "x")
	b := newBed(t)
	p := b.process("printer", "/bin/sh", "-c", "env; exec /bin/sleep 100000")
	p.Env = []string{"OWN=1"}
	if err := Start(t.Context(), b.self, b.dir, Spec{Name: "test", Env: []string{"ALL=2"}, Processes: []Process{p}}); err != nil {
		t.Fatal(err)
	}
	b.ready()
	var text string
	b.eventually("it printed", func() bool {
		data, _ := os.ReadFile(p.Log)
		text = string(data)
		return strings.Contains(text, hashMark)
	})
	for _, want := range []string{"OWN=1\n", "ALL=2\n", "PATH=", ownerMark + "=" + b.dir} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in its environment:\n%s", want, text)
		}
	}
	if strings.Contains(text, "BULKHEAD_TEST_SECRET") || strings.Contains(text, supervisorMark+"=") {
		t.Errorf("it has what is not for it:\n%s", text)
	}
}

// The number of a process that ended, in a file, may be another process by now.
func TestStatusOfAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	r := record{Version: recordVersion, Boot: bootID(), Processes: []recordedProcess{
		{ProcessStatus: ProcessStatus{Name: "a", Phase: Running, PID: os.Getpid(), Ready: true}, Ticks: 1},
	}}
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	s, err := Status(dir)
	if err != nil || s.Processes[0].PID != 0 || s.Processes[0].Ready || s.Processes[0].Phase != Stopped {
		t.Errorf("status %+v, %v", s, err)
	}
	if err := Kill(t.Context(), dir); err != nil {
		t.Error(err) // it would not have come back from killing itself
	}
}

func TestTwoSupervisors(t *testing.T) {
	b := newBed(t)
	b.run(b.sleeper("a", 1))
	if code := Run(t.Context(), b.dir, slog.New(slog.DiscardHandler)); code == 0 {
		t.Error("a second supervisor ran")
	}
}

func TestDaily(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "ran")
	var log strings.Builder
	s := &supervisor{dir: dir, log: slog.New(slog.NewTextHandler(&log, nil)), spec: Spec{Daily: []string{"/bin/sh", "-c", "echo some output; touch " + file}}}
	s.daily(t.Context())
	if _, err := os.Stat(file); err != nil || !strings.Contains(log.String(), "some output") {
		t.Errorf("%v; log: %s", err, log.String())
	}
	if err := (Spec{Daily: []string{"relative"}}).validate(); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a relative path: %v", err)
	}
}

func TestRotate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprint(f, "old")
	if err := rotate(path, 3); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(path); string(data) != "old" {
		t.Errorf("a short log was moved: %q", data)
	}
	if err := rotate(path, 2); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, "new") // by the process that still has it open
	now, _ := os.ReadFile(path)
	before, _ := os.ReadFile(path + ".1")
	if string(now) != "new" || string(before) != "old" {
		t.Errorf("log %q, earlier %q", now, before)
	}
}

func TestHandleOfZombie(t *testing.T) {
	pid, err := syscall.ForkExec("/bin/true", []string{"true"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Wait4(pid, nil, 0, nil)
	for deadline := time.Now().Add(patience); ; {
		if _, err := openHandle(pid); errors.Is(err, errdefs.ErrNotFound) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatal("a process that has ended counts as running")
		}
		_, _ = unix.Poll(nil, 10)
	}
}
