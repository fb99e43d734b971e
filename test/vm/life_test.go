//go:build vm

package vm

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	cgroupsv1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	cgroupsv2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	_ "github.com/containerd/containerd/api/events" // so that events can be decoded
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead.dev/bulkhead/test/kit"
)

type container = containers.Container

// nullIO connects no stream.
var nullIO = cio.NullIO

func TestRunToEnd(t *testing.T) {
	ctx := checked(t)
	result, err := suite.node.Run(ctx, kit.Spec{Runtime: suite.runtime, Args: []string{"/bin/sh", "-c", "echo out; echo err >&2; exit 7"}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(kit.Result{Status: 7, Stdout: "out\n", Stderr: "err\n"}, result); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
}

// TestTaskStates follows one task through its states and tries what is not allowed in each.
func TestTaskStates(t *testing.T) {
	ctx, _ := shared(t)
	c, err := suite.node.Create(ctx, kit.Spec{Runtime: suite.runtime, Pod: suite.pod, Args: []string{"/bin/testprog", "signals"}})
	if err != nil {
		t.Fatal(err)
	}
	defer remove(t, c)
	state := func(want client.ProcessStatus) {
		t.Helper()
		if got, err := c.Task.Status(ctx); err != nil || got.Status != want {
			t.Errorf("state is %q (%v), want %q", got.Status, err, want)
		}
	}
	state(client.Created)
	if err := c.Task.Pause(ctx); err == nil {
		t.Error("a created task could be paused")
	}
	if c.Task.Pid() == 0 {
		t.Error("a created task has no pid")
	}
	if err := c.Task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	prints(t, c.Stdout, "ready")
	state(client.Running)
	if err := c.Task.Start(ctx); err == nil {
		t.Error("a running task could be started again")
	}
	if _, err := c.Task.Delete(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("deleting a running task answers %v, want a failed precondition", err)
	}
	if err := c.Task.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	state(client.Paused)
	if err := c.Task.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	state(client.Running)
	if err := c.Signal(ctx, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	result, err := c.Wait(ctx)
	if err != nil || result.Status != 0 {
		t.Errorf("ended with %+v (%v), want status 0", result, err)
	}
	state(client.Stopped)
	if err := c.Signal(ctx, syscall.SIGTERM); !errdefs.IsNotFound(err) {
		t.Errorf("signal to a stopped task answers %v, want not found", err)
	}
	if _, err := c.Task.Exec(ctx, kit.NewID(), &specs.Process{Args: []string{"/bin/true"}, Cwd: "/"}, nullIO); err == nil {
		t.Error("a stopped task took an exec")
	}
}

// TestExitCodes ends an exec with each code there is. It runs several at a time: under emulation one takes a good part of a
// second.
func TestExitCodes(t *testing.T) {
	ctx, c := shared(t)
	codes := make(chan int)
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for code := range codes {
				got, err := suite.node.Exec(ctx, c, kit.ExecSpec{Args: sh("exit " + strconv.Itoa(code)), Stdio: kit.Stdio{NoIO: true}})
				if err != nil || got.Status != uint32(code) {
					t.Errorf("exit %d is seen as %d (%v)", code, got.Status, err)
				}
			}
		})
	}
	for code := range 256 {
		codes <- code
	}
	close(codes)
	workers.Wait()
}

func TestExitCodesOfInit(t *testing.T) {
	ctx, _ := shared(t)
	for _, code := range []int{0, 1, 42, 127, 255} {
		if got := inPod(t, ctx, kit.Spec{Args: []string{"/bin/testprog", "exit", strconv.Itoa(code)}}); got.Status != uint32(code) {
			t.Errorf("exit %d is seen as %d", code, got.Status)
		}
	}
}

func TestSignals(t *testing.T) {
	ctx, c := shared(t)
	t.Run("delivered by number", func(t *testing.T) {
		p := startExec(t, ctx, c, kit.ExecSpec{Args: []string{"/bin/testprog", "signals"}})
		prints(t, p.Stdout, "ready")
		for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGINT} {
			if err := p.Kill(ctx, s); err != nil {
				t.Fatal(err)
			}
			prints(t, p.Stdout, map[syscall.Signal]string{
				syscall.SIGHUP: "SIGHUP", syscall.SIGUSR1: "SIGUSR1", syscall.SIGUSR2: "SIGUSR2", syscall.SIGINT: "SIGINT"}[s])
		}
		if err := p.Kill(ctx, syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if result, err := p.Await(ctx); err != nil || result.Status != 0 {
			t.Errorf("ended with %+v (%v), want status 0", result, err)
		}
	})
	for _, test := range []struct {
		signal syscall.Signal
		want   uint32
	}{{syscall.SIGKILL, 137}, {syscall.SIGTERM, 143}, {syscall.SIGABRT, 134}} {
		t.Run(test.signal.String(), func(t *testing.T) {
			p := startExec(t, ctx, c, kit.ExecSpec{Args: []string{"/bin/sleep", "1000"}})
			if err := p.Kill(ctx, test.signal); err != nil {
				t.Fatal(err)
			}
			if result, err := p.Await(ctx); err != nil || result.Status != test.want {
				t.Errorf("ended with %+v (%v), want status %d", result, err, test.want)
			}
		})
	}
}

// TestKillAll ends the processes that a container's init has left behind as well.
func TestKillAll(t *testing.T) {
	ctx, _ := shared(t)
	c := launch(t, ctx, kit.Spec{Pod: suite.pod, Args: []string{"/bin/testprog", "fork", "3"}})
	prints(t, c.Stdout, "forked")
	side := startExec(t, ctx, c, kit.ExecSpec{Args: []string{"/bin/sleep", "1000"}})
	eventually(t, func() string {
		processes, err := c.Task.Pids(ctx)
		if err != nil || len(processes) < 5 {
			return fmt.Sprintf("the task has processes %v (%v), want 5", processes, err)
		}
		return ""
	})
	if err := c.Signal(ctx, syscall.SIGKILL, client.WithKillAll); err != nil {
		t.Fatal(err)
	}
	for name, wait := range map[string]func(context.Context) (kit.Result, error){"init": c.Wait, "exec": side.Await} {
		if result, err := wait(ctx); err != nil || result.Status != 137 {
			t.Errorf("%s ended with %+v (%v), want status 137", name, result, err)
		}
	}
}

func TestExec(t *testing.T) {
	ctx, c := shared(t)
	run := func(change func(*specs.Process), args ...string) (kit.Result, error) {
		return suite.node.Exec(ctx, c, kit.ExecSpec{Args: args, Change: change})
	}
	for name, test := range map[string]struct {
		change func(*specs.Process)
		args   []string
		want   string
	}{
		"cwd":           {func(p *specs.Process) { p.Cwd = "/home/app" }, []string{"pwd"}, "/home/app"},
		"environment":   {func(p *specs.Process) { p.Env = append(p.Env, "WORD=a b=c") }, []string{"sh", "-c", "echo $WORD"}, "a b=c"},
		"found in PATH": {nil, []string{"echo", "hello"}, "hello"},
		"user": {func(p *specs.Process) { p.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{2000}} },
			[]string{"sh", "-c", "id -u; id -g; id -G"}, "1000\n1000\n1000 2000"},
		"rlimit": {func(p *specs.Process) { p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 88}} },
			[]string{"sh", "-c", "ulimit -Sn; ulimit -Hn"}, "77\n88"},
		"no capabilities": {func(p *specs.Process) { p.Capabilities = &specs.LinuxCapabilities{} },
			[]string{"sh", "-c", "grep CapEff /proc/self/status | cut -f2"}, "0000000000000000"},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := run(test.change, test.args...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, output(t, result)); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
		})
	}
	for name, test := range map[string]struct {
		change func(*specs.Process)
		args   []string
		names  string // what the error has to name
	}{
		"missing binary":  {nil, []string{"/bin/nothing-here"}, "/bin/nothing-here"},
		"not in PATH":     {nil, []string{"nothing-here"}, "nothing-here"},
		"not executable":  {nil, []string{"/etc/passwd"}, "/etc/passwd"},
		"missing cwd":     {func(p *specs.Process) { p.Cwd = "/etc/passwd/x" }, []string{"true"}, "/etc/passwd/x"},
		"bad rlimit type": {func(p *specs.Process) { p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NONE"}} }, []string{"true"}, "RLIMIT_NONE"},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := run(test.change, test.args...)
			clearError(t, err, result, test.names)
		})
	}
}

// clearError checks that a call was refused, with an error that names what is wrong.
func clearError(t *testing.T, err error, result any, names ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, but %+v", result)
	}
	for _, name := range names {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("the error doesn't name %s: %v", name, err)
		}
	}
	t.Logf("refused: %v", err)
}

func TestMissingBinaryOfInit(t *testing.T) {
	ctx, _ := shared(t)
	result, err := suite.node.Run(ctx, kit.Spec{Runtime: suite.runtime, Pod: suite.pod, Args: []string{"/bin/nothing-here"}})
	clearError(t, err, result, "/bin/nothing-here")
}

func TestPauseStopsProcesses(t *testing.T) {
	ctx, _ := shared(t)
	c := launch(t, ctx, kit.Spec{Pod: suite.pod, Args: []string{"/bin/sh", "-c", "while :; do echo tick; sleep 0.1; done"}})
	prints(t, c.Stdout, "tick")
	if err := c.Task.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	// What was on its way when the task was paused has to arrive first.
	before := -1
	eventually(t, func() string {
		now := c.Stdout.Len()
		if now != before {
			before = now
			return "output still comes"
		}
		return ""
	})
	if err := c.Task.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if c.Stdout.Len() <= before {
			return "no output after the task was resumed"
		}
		return ""
	})
}

func TestPids(t *testing.T) {
	ctx, _ := shared(t)
	c := launch(t, ctx, kit.Spec{Pod: suite.pod, Args: []string{"/bin/testprog", "fork", "2"}})
	prints(t, c.Stdout, "forked")
	processes, err := c.Task.Pids(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(processes) != 3 {
		t.Errorf("the task has %d processes, want 3", len(processes))
	}
	if !slices.ContainsFunc(processes, func(p client.ProcessInfo) bool { return p.Pid == c.Task.Pid() }) {
		t.Errorf("the task's own pid %d is not among %v", c.Task.Pid(), processes)
	}
}

func TestUpdate(t *testing.T) {
	ctx, _ := shared(t)
	c := launch(t, ctx, kit.Spec{Pod: suite.pod, Args: []string{"/bin/testprog", "pause"}, Options: []oci.SpecOpts{oci.WithMemoryLimit(128 << 20)}})
	memory, quota, period := int64(64<<20), int64(50_000), uint64(100_000)
	err := c.Task.Update(ctx, client.WithResources(&specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &memory}, CPU: &specs.LinuxCPU{Quota: &quota, Period: &period},
	}))
	if err != nil {
		t.Fatal(err)
	}
	if got := stats(t, ctx, c).memoryLimit; got != uint64(memory) {
		t.Errorf("memory limit after the update is %d, want %d", got, memory)
	}
	p := startExec(t, ctx, c, kit.ExecSpec{Args: []string{"/bin/testprog", "alloc", "100"}})
	if result, err := p.Await(ctx); err != nil || result.Status != 137 {
		t.Errorf("100 MiB in a limit of 64 ended with %+v (%v), want status 137", result, err)
	}
}

// figures are those that both forms of metrics have.
type figures struct{ cpu, memory, memoryLimit, pids uint64 }

func stats(t *testing.T, ctx context.Context, c *kit.Container) figures {
	t.Helper()
	metric, err := c.Task.Metrics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	data, err := typeurl.UnmarshalAny(metric.Data)
	if err != nil {
		t.Fatal(err)
	}
	switch m := data.(type) {
	case *cgroupsv1.Metrics:
		return figures{m.GetCPU().GetUsage().GetTotal(), m.GetMemory().GetUsage().GetUsage(), m.GetMemory().GetUsage().GetLimit(), m.GetPids().GetCurrent()}
	case *cgroupsv2.Metrics:
		return figures{m.GetCPU().GetUsageUsec(), m.GetMemory().GetUsage(), m.GetMemory().GetUsageLimit(), m.GetPids().GetCurrent()}
	default:
		t.Fatalf("metrics are a %T", data)
		return figures{}
	}
}

func TestStats(t *testing.T) {
	ctx, _ := shared(t)
	c := launch(t, ctx, kit.Spec{Pod: suite.pod, Args: []string{"/bin/testprog", "alloc", "20"}, Options: []oci.SpecOpts{oci.WithMemoryLimit(100 << 20)}})
	prints(t, c.Stdout, "touched")
	got := stats(t, ctx, c)
	if got.cpu == 0 || got.pids == 0 {
		t.Errorf("cpu and pids are %+v, want more than 0", got)
	}
	if got.memory < 20<<20 || got.memory > 100<<20 || got.memoryLimit != 100<<20 {
		t.Errorf("memory is %d of %d, want between 20 and 100 MiB of 100 MiB", got.memory, got.memoryLimit)
	}
}

// TestEvents compares what containerd publishes of one container's life with what it has to be.
func TestEvents(t *testing.T) {
	ctx, _ := shared(t)
	listening, stop := context.WithCancel(ctx)
	defer stop()
	envelopes, failures := suite.node.Client.EventService().Subscribe(listening, "topic~=|^/tasks/|")
	var mutex sync.Mutex
	var topics []string
	c, err := suite.node.Create(ctx, kit.Spec{Runtime: suite.runtime, Pod: suite.pod, Args: []string{"/bin/testprog", "pause"}})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			select {
			case envelope := <-envelopes:
				event, err := typeurl.UnmarshalAny(envelope.Event)
				if of, ok := event.(interface{ GetContainerID() string }); err == nil && ok && of.GetContainerID() == c.ID() {
					mutex.Lock()
					topics = append(topics, strings.TrimPrefix(envelope.Topic, "/tasks/"))
					mutex.Unlock()
				}
			case err := <-failures:
				if listening.Err() == nil {
					t.Errorf("listen for events: %v", err)
				}
				return
			case <-listening.Done():
				return
			}
		}
	}()
	if err := c.Task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	exec(t, ctx, c, "/bin/true")
	for _, step := range []func() error{
		func() error { return c.Task.Pause(ctx) },
		func() error { return c.Task.Resume(ctx) },
		func() error { return c.Signal(ctx, syscall.SIGTERM) },
		func() error { _, err := c.Wait(ctx); return err },
		func() error { return c.Remove(ctx) },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"create", "start", "exec-added", "exec-started", "exit", "paused", "resumed", "exit", "delete"}
	eventually(t, func() string {
		mutex.Lock()
		defer mutex.Unlock()
		if diff := cmp.Diff(want, topics); diff != "" {
			return "events (-want +got):\n" + diff
		}
		return ""
	})
}

func TestContainerNameTwice(t *testing.T) {
	ctx, c := shared(t)
	if _, err := c.NewTask(ctx, nullIO); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second task of a container answers %v, want already exists", err)
	}
}

func TestCheckpointIsRefused(t *testing.T) {
	onlyVM(t, "runc needs criu for it")
	ctx, c := shared(t)
	if _, err := c.Task.Checkpoint(ctx); !errdefs.IsNotImplemented(err) {
		t.Errorf("checkpoint answers %v, want not implemented", err)
	}
}

func TestHostSeesNoProcess(t *testing.T) {
	onlyVM(t, "its processes are the host's")
	ctx, c := shared(t)
	startExec(t, ctx, c, kit.ExecSpec{Args: []string{"/bin/sleep", "31415926"}})
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if line, err := os.ReadFile("/proc/" + entry.Name() + "/cmdline"); err == nil && strings.Contains(string(line), "31415926") {
			t.Errorf("process %s of the host is the container's: %q", entry.Name(), line)
		}
	}
}
