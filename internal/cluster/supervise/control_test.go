package supervise

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

// recorder is a process that writes its name to a file when it is asked to end.
func (b *bed) recorder(name, file string, after ...string) Process {
	p := b.process(name, "/bin/sh", "-c", "trap 'echo "+name+" >> "+file+"; exit' TERM; echo up; while :; do /bin/sleep 0.05; done")
	p.After = after
	return p
}

// trapped waits until a recorder has set its trap.
func (b *bed) trapped(processes ...Process) {
	b.t.Helper()
	for _, p := range processes {
		b.eventually(p.Name+" listens", func() bool { data, _ := os.ReadFile(p.Log); return strings.Contains(string(data), "up") })
	}
}

func TestStopOrder(t *testing.T) {
	for name, before := range map[string]func(*bed){
		"supervisor":      func(*bed) {},
		"dead supervisor": (*bed).killSupervisor,
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			file := filepath.Join(b.dir, "ended")
			processes := []Process{b.recorder("b", file, "a"), b.recorder("c", file, "b"), b.recorder("a", file)}
			b.run(processes...)
			b.trapped(processes...)
			before(b)
			if err := Stop(t.Context(), b.dir); err != nil {
				t.Fatal(err)
			}
			if data, err := os.ReadFile(file); string(data) != "c\nb\na\n" {
				t.Errorf("ended in the order %q, %v", data, err)
			}
		})
	}
}

// A file that is there and executable, but is no program, shows only when it is run.
func TestUnstartable(t *testing.T) {
	b := newBed(t)
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte{0x7f, 'E', 'L', 'F', 0, 0}, 0o755); err != nil {
		t.Fatal(err)
	}
	p := b.process("broken", program)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p.Log), 0o755), os.WriteFile(p.Log, []byte("last words\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	err := b.start(p, b.sleeper("good", 1))
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "exec format error") || !strings.Contains(err.Error(), "last words") {
		t.Errorf("Start: %v", err)
	}
	b.eventually("the other runs", func() bool { return b.find("good").Ready })
	// It tries again, as the file may be whole later.
	data, err := os.ReadFile("/bin/sleep")
	if err == nil {
		err = errors.Join(os.WriteFile(program+".new", data, 0o755), os.Rename(program+".new", program))
	}
	if err != nil {
		t.Fatal(err)
	}
	b.eventually("it was tried again", func() bool { return strings.HasPrefix(b.find("broken").LastExit, "exit status") })
}

// A process that ends at once was run all the same.
func TestShortLife(t *testing.T) {
	b := newBed(t)
	if err := b.start(b.process("short", "/bin/false")); err != nil {
		t.Fatal(err)
	}
	b.eventually("it was run again", func() bool { p := b.find("short"); return p.Restarts > 1 && p.LastExit == "exit status 1" })
}

func TestSupervisorThatCantBegin(t *testing.T) {
	b := newBed(t)
	if code := Run(t.Context(), b.dir, discard()); code != 1 {
		t.Errorf("without a spec: exit code %d", code)
	}
	b.self = "/bin/false"
	if err := b.start(b.sleeper("a", 1)); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), "ended at once") {
		t.Errorf("a supervisor that isn't one: %v", err)
	}
	b.self = filepath.Join(b.dir, "none")
	if err := b.start(b.sleeper("a", 1)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no supervisor: %v", err)
	}
	if s := b.status(); s.Supervisor != 0 || len(s.Processes) != 0 {
		t.Errorf("status %+v", s)
	}
	if err := WaitReady(t.Context(), b.dir); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("WaitReady without a supervisor: %v", err)
	}
}

// All of these may be told to run something else, or be asked at the same moment.
func TestManyAtOnce(t *testing.T) {
	b := newBed(t)
	var wg sync.WaitGroup
	errs := make([]error, 6)
	for i := range errs {
		wg.Go(func() { errs[i] = Start(t.Context(), b.self, b.dir, Spec{Processes: []Process{b.sleeper("a", 1)}}) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil && !errors.Is(err, errdefs.ErrAborted) { // only the last spec that was written counts
			t.Error(err)
		}
	}
	pid := b.ready()["a"]
	all, err := own(b.dir, record{})
	if err != nil || len(all) != 1 || all[0].pid != pid {
		t.Errorf("processes %+v, %v; want only %d", all, err, pid)
	}
	for _, h := range all {
		h.close()
	}
}

// A supervisor that is ending doesn't take a spec: Start waits for its end, and starts another.
func TestStartWhileStopping(t *testing.T) {
	b := newBed(t)
	gate := filepath.Join(b.dir, "gate")
	slow := b.process("slow", "/bin/sh", "-c", "trap 'while ! [ -e "+gate+" ]; do /bin/sleep 0.05; done; exit' TERM; echo up; while :; do /bin/sleep 0.05; done")
	slow.StopTimeout = patience
	b.run(slow)
	b.trapped(slow)
	supervisor := b.status().Supervisor
	stopped := make(chan error, 1)
	go func() { stopped <- Stop(context.WithoutCancel(t.Context()), b.dir) }()
	b.eventually("it stops", func() bool {
		log, _ := os.ReadFile(filepath.Join(b.dir, logFile))
		return strings.Contains(string(log), "msg=stopping")
	})
	started := make(chan error, 1)
	go func() { started <- b.start(b.sleeper("next", 1)) }()
	b.eventually("the new spec is written", func() bool { s, _, err := readSpec(b.dir); return err == nil && s.Processes[0].Name == "next" })
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if err := <-stopped; err != nil {
		t.Errorf("Stop: %v", err)
	}
	if now := b.status().Supervisor; now == 0 || now == supervisor {
		t.Errorf("supervisor %d, then %d", supervisor, now)
	}
	b.ready()
}

// What a supervisor counted isn't lost with it.
func TestRestartsSurviveTheSupervisor(t *testing.T) {
	b := newBed(t)
	pids := b.run(b.sleeper("a", 1))
	if err := syscall.Kill(pids["a"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.eventually("a is back", func() bool { p := b.find("a"); return p.Ready && p.PID != pids["a"] })
	before := b.find("a")
	b.killSupervisor()
	b.run(b.sleeper("a", 1))
	after := b.find("a")
	if after.PID != before.PID || after.Restarts != 1 || !after.Since.Equal(before.Since) {
		t.Errorf("before %+v, after %+v", before, after)
	}
}

// The new probe and the new order are for processes that run, too, and don't touch them.
func TestProbeChanges(t *testing.T) {
	b := newBed(t)
	p := b.sleeper("a", 1)
	pids := b.run(p)
	p.Ready, p.StopTimeout = &Probe{URL: "unix://" + filepath.Join(b.dir, "nobody")}, 1
	if err := b.start(p); err != nil {
		t.Fatal(err)
	}
	if now := b.find("a"); now.PID != pids["a"] {
		t.Errorf("it was started anew: %+v", now)
	}
	b.eventually("the new probe is used", func() bool { return !b.find("a").Ready })
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
