package task

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

func TestLifeOfALoneContainer(t *testing.T) {
	r := newRig(t)
	r.create("c", "sleep")
	if got := r.state("c", ""); got != "CREATED" {
		t.Errorf("state %s", got)
	}
	r.start("c", "")
	if got := r.state("c", ""); got != "RUNNING" {
		t.Errorf("state %s", got)
	}
	r.exec("c", "e", "exit", "7")
	r.start("c", "e")
	if got := r.wait("c", "e"); got != 7 {
		t.Errorf("exec's status %d", got)
	}
	if got := r.delete("c", "e"); got != 7 {
		t.Errorf("exec's status on delete %d", got)
	}
	r.kill("c", "", syscall.SIGTERM)
	if got := r.wait("c", ""); got != 143 {
		t.Errorf("status %d", got)
	}
	if got := r.state("c", ""); got != "STOPPED" {
		t.Errorf("state %s", got)
	}
	_, err := r.task.Shutdown(t.Context(), &taskapi.ShutdownRequest{ID: "c"})
	r.must(err)
	select {
	case <-r.shutdown:
		t.Error("shut down with a task")
	default:
	}
	if got := r.delete("c", ""); got != 143 {
		t.Errorf("status on delete %d", got)
	}
	if vms := r.fake.Running(); len(vms) != 0 {
		t.Errorf("VMs %q run after delete", vms)
	}
	_, err = r.task.State(t.Context(), &taskapi.StateRequest{ID: "c"})
	r.want(errdefs.IsNotFound, err)
	_, err = r.task.Shutdown(t.Context(), &taskapi.ShutdownRequest{ID: "c"})
	r.must(err)
	<-r.shutdown
	want := []string{"create:c", "start:c", "exec-added:e", "exec-started:e", "exit:e=7", "exit:c=143", "delete:c=143"}
	if diff := cmp.Diff(want, r.events.words()); diff != "" {
		t.Error(diff)
	}
}

func TestExitNeverPrecedesStart(t *testing.T) {
	r := newRig(t)
	r.create("c", "sleep")
	r.start("c", "")
	var want []string
	want = append(want, "create:c", "start:c")
	for i := range 30 {
		id := fmt.Sprint("e", i)
		r.exec("c", id, "exit", fmt.Sprint(i))
		r.start("c", id)
		if got := r.wait("c", id); got != uint32(i) {
			t.Errorf("status %d, want %d", got, i)
		}
		want = append(want, "exec-added:"+id, "exec-started:"+id, fmt.Sprintf("exit:%s=%d", id, i))
		r.delete("c", id)
	}
	if diff := cmp.Diff(want, r.events.words()); diff != "" {
		t.Error(diff)
	}
}

func TestExecsEndBeforeTheirContainer(t *testing.T) {
	r := newRig(t)
	r.create("c", "sleep")
	r.start("c", "")
	for _, id := range []string{"e1", "e2"} {
		r.exec("c", id, "sleep")
		r.start("c", id)
	}
	_, err := r.task.Kill(t.Context(), &taskapi.KillRequest{ID: "c", Signal: 9, All: true})
	r.must(err)
	r.wait("c", "")
	words := r.events.words()
	if last := words[len(words)-1]; last != "exit:c=137" {
		t.Errorf("the container's exit is not the last of %q", words)
	}
	if got := r.delete("c", ""); got != 137 { // its execs go with it
		t.Errorf("status %d", got)
	}
	_, err = r.task.Delete(t.Context(), &taskapi.DeleteRequest{ID: "c", ExecID: "e1"})
	r.want(errdefs.IsNotFound, err)
}

func TestOOMIsToldBeforeTheExit(t *testing.T) {
	r := newRig(t)
	r.create("c", "sleep")
	r.start("c", "")
	r.must(r.agent.OOM("c"))
	r.wait("c", "")
	want := []string{"create:c", "start:c", "oom:c", "exit:c=137"}
	if diff := cmp.Diff(want, r.events.words()); diff != "" {
		t.Error(diff)
	}
}

func TestStdio(t *testing.T) {
	r := newRig(t)
	in := filepath.Join(t.TempDir(), "in")
	if err := syscall.Mkfifo(in, 0o600); err != nil {
		t.Fatal(err)
	}
	out, reader := r.fifo()
	_, err := r.task.Create(t.Context(), &taskapi.CreateTaskRequest{ID: "c", Bundle: r.bundle("c", nil, "cat"), Stdin: in, Stdout: out})
	r.must(err)
	r.start("c", "")
	w, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.WriteString("hello")
	w.Close()
	_, err = r.task.CloseIO(t.Context(), &taskapi.CloseIORequest{ID: "c", Stdin: true})
	r.must(err)
	if got := r.wait("c", ""); got != 0 {
		t.Errorf("status %d", got)
	}
	if got := readAll(t, reader); got != "hello" {
		t.Errorf("output %q", got)
	}
	answer, err := r.task.State(t.Context(), &taskapi.StateRequest{ID: "c"})
	r.must(err)
	if answer.Stdin != in || answer.Stdout != out || answer.Bundle == "" {
		t.Errorf("state %v", answer)
	}
}

func TestOutputIsCompleteAtTheExit(t *testing.T) {
	r := newRig(t)
	out, reader := r.fifo()
	_, err := r.task.Create(t.Context(), &taskapi.CreateTaskRequest{ID: "c", Bundle: r.bundle("c", nil, "bytes", "3000000"), Stdout: out})
	r.must(err)
	r.start("c", "")
	got := make(chan string)
	go func() { got <- readAll(t, reader) }()
	r.wait("c", "")
	if n := len(<-got); n != 3000000 {
		t.Errorf("%d bytes", n)
	}
}

func TestTerminal(t *testing.T) {
	r := newRig(t)
	out, _ := r.fifo()
	_, err := r.task.Create(t.Context(), &taskapi.CreateTaskRequest{ID: "c", Bundle: r.bundle("c", nil, "sleep"), Stdout: out, Terminal: true})
	r.must(err)
	r.start("c", "")
	_, err = r.task.ResizePty(t.Context(), &taskapi.ResizePtyRequest{ID: "c", Width: 80, Height: 24})
	r.must(err)
	r.exec("c", "e", "sleep")
	r.start("c", "e")
	_, err = r.task.ResizePty(t.Context(), &taskapi.ResizePtyRequest{ID: "c", ExecID: "e", Width: 80, Height: 24})
	r.want(errdefs.IsFailedPrecondition, err)
}

func TestPauseAndResume(t *testing.T) {
	r := newRig(t)
	r.create("c", "sleep")
	_, err := r.task.Pause(t.Context(), &taskapi.PauseRequest{ID: "c"})
	r.want(errdefs.IsFailedPrecondition, err)
	_, err = r.task.Resume(t.Context(), &taskapi.ResumeRequest{ID: "c"}) // would make it running without a start
	r.want(errdefs.IsFailedPrecondition, err)
	r.start("c", "")
	_, err = r.task.Resume(t.Context(), &taskapi.ResumeRequest{ID: "c"})
	r.want(errdefs.IsFailedPrecondition, err)
	_, err = r.task.Pause(t.Context(), &taskapi.PauseRequest{ID: "c"})
	r.must(err)
	if got := r.state("c", ""); got != "PAUSED" {
		t.Errorf("state %s", got)
	}
	_, err = r.task.Resume(t.Context(), &taskapi.ResumeRequest{ID: "c"})
	r.must(err)
	want := []string{"create:c", "start:c", "paused:c", "resumed:c"}
	if diff := cmp.Diff(want, r.events.words()); diff != "" {
		t.Error(diff)
	}
}

func TestFiguresAndLimits(t *testing.T) {
	r := newRig(t)
	r.create("c", "sleep")
	r.start("c", "")
	r.exec("c", "e", "sleep")
	r.start("c", "e")
	answer, err := r.task.Stats(t.Context(), &taskapi.StatsRequest{ID: "c"})
	r.must(err)
	if answer.Stats.TypeUrl != "io.containerd.cgroups.v2.Metrics" {
		t.Errorf("type %s", answer.Stats.TypeUrl)
	}
	var figures stats.Metrics
	if err := proto.Unmarshal(answer.Stats.Value, &figures); err != nil || figures.Memory.Usage == 0 {
		t.Errorf("figures %v, %v", &figures, err)
	}
	pids, err := r.task.Pids(t.Context(), &taskapi.PidsRequest{ID: "c"})
	r.must(err)
	if len(pids.Processes) != 2 {
		t.Fatalf("processes %v", pids.Processes)
	}
	var details options.ProcessDetails
	for _, p := range pids.Processes {
		if p.Info != nil {
			if err := p.Info.UnmarshalTo(&details); err != nil {
				t.Error(err)
			}
		}
	}
	if details.ExecID != "e" {
		t.Errorf("processes %v name no exec", pids.Processes)
	}
	connected, err := r.task.Connect(t.Context(), &taskapi.ConnectRequest{ID: "c"})
	r.must(err)
	if connected.ShimPid != uint32(os.Getpid()) || connected.TaskPid == 0 {
		t.Errorf("connected to %v", connected)
	}
	if !slices.ContainsFunc(pids.Processes, func(p *tasktypes.ProcessInfo) bool { return p.Pid == connected.TaskPid }) {
		t.Errorf("the task's pid %d is not among %v", connected.TaskPid, pids.Processes)
	}
	_, err = r.task.Update(t.Context(), &taskapi.UpdateTaskRequest{ID: "c", Resources: &anypb.Any{
		TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", Value: []byte(`{"memory":{"limit":1000000}}`),
	}})
	r.must(err)
}

func TestKill(t *testing.T) {
	t.Run("before the start", func(t *testing.T) {
		r := newRig(t)
		r.create("c", "sleep")
		_, err := r.task.Kill(t.Context(), &taskapi.KillRequest{ID: "c", Signal: uint32(syscall.SIGUSR1)})
		r.want(errdefs.IsFailedPrecondition, err)
		r.kill("c", "", syscall.SIGKILL)
		if got := r.wait("c", ""); got != 137 {
			t.Errorf("status %d", got)
		}
		_, err = r.task.Start(t.Context(), &taskapi.StartRequest{ID: "c"})
		r.want(errdefs.IsFailedPrecondition, err)
		r.delete("c", "")
	})
	t.Run("after the end", func(t *testing.T) {
		r := newRig(t)
		r.create("c", "exit", "0")
		r.start("c", "")
		r.wait("c", "")
		_, err := r.task.Kill(t.Context(), &taskapi.KillRequest{ID: "c", Signal: 9})
		r.want(errdefs.IsNotFound, err)
	})
	t.Run("an exec that is not started", func(t *testing.T) {
		r := newRig(t)
		r.create("c", "sleep")
		r.start("c", "")
		r.exec("c", "e", "sleep")
		_, err := r.task.Kill(t.Context(), &taskapi.KillRequest{ID: "c", ExecID: "e", Signal: 9})
		r.want(errdefs.IsFailedPrecondition, err)
		r.delete("c", "e")
	})
}

func TestRefused(t *testing.T) {
	r := newRig(t)
	r.create("c", "sleep")
	r.start("c", "")
	ctx := t.Context()
	for name, c := range map[string]struct {
		is   func(error) bool
		call func() error
	}{
		"create twice": {errdefs.IsAlreadyExists, func() error {
			_, err := r.task.Create(ctx, &taskapi.CreateTaskRequest{ID: "c", Bundle: r.bundle("c", nil, "sleep")})
			return err
		}},
		"second container without a pod": {errdefs.IsAlreadyExists, func() error {
			_, err := r.task.Create(ctx, &taskapi.CreateTaskRequest{ID: "d", Bundle: r.bundle("d", nil, "sleep")})
			return err
		}},
		"checkpoint": {errdefs.IsNotImplemented, func() error {
			_, err := r.task.Checkpoint(ctx, &taskapi.CheckpointTaskRequest{ID: "c"})
			return err
		}},
		"restore": {errdefs.IsNotImplemented, func() error {
			_, err := r.task.Create(ctx, &taskapi.CreateTaskRequest{ID: "d", Checkpoint: "/x"})
			return err
		}},
		"no bundle": {errdefs.IsNotFound, func() error {
			_, err := r.task.Create(ctx, &taskapi.CreateTaskRequest{ID: "d", Bundle: "/nonexistent"})
			return err
		}},
		"start twice": {errdefs.IsFailedPrecondition, func() error {
			_, err := r.task.Start(ctx, &taskapi.StartRequest{ID: "c"})
			return err
		}},
		"delete while running": {errdefs.IsFailedPrecondition, func() error {
			_, err := r.task.Delete(ctx, &taskapi.DeleteRequest{ID: "c"})
			return err
		}},
		"unknown container": {errdefs.IsNotFound, func() error {
			_, err := r.task.Start(ctx, &taskapi.StartRequest{ID: "x"})
			return err
		}},
		"unknown exec": {errdefs.IsNotFound, func() error {
			_, err := r.task.Wait(ctx, &taskapi.WaitRequest{ID: "c", ExecID: "x"})
			return err
		}},
		"exec without an ID": {errdefs.IsAlreadyExists, func() error {
			_, err := r.task.Exec(ctx, &taskapi.ExecProcessRequest{ID: "c", Spec: processSpec("sleep")})
			return err
		}},
		"exec of another type": {errdefs.IsInvalidArgument, func() error {
			_, err := r.task.Exec(ctx, &taskapi.ExecProcessRequest{ID: "c", ExecID: "e", Spec: &anypb.Any{TypeUrl: "x/Spec"}})
			return err
		}},
		"exec without a spec": {errdefs.IsInvalidArgument, func() error {
			_, err := r.task.Exec(ctx, &taskapi.ExecProcessRequest{ID: "c", ExecID: "e"})
			return err
		}},
		"exec with a logging program": {errdefs.IsInvalidArgument, func() error {
			_, err := r.task.Exec(ctx, &taskapi.ExecProcessRequest{ID: "c", ExecID: "e", Spec: processSpec("sleep"), Stdout: "binary:///x"})
			return err
		}},
		"update without resources": {errdefs.IsInvalidArgument, func() error {
			_, err := r.task.Update(ctx, &taskapi.UpdateTaskRequest{ID: "c"})
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) { r.want(c.is, c.call()) })
	}
	if diff := cmp.Diff([]string{"create:c", "start:c"}, r.events.words()); diff != "" {
		t.Error(diff)
	}
}

func TestMissingProgram(t *testing.T) {
	r := newRig(t)
	r.create("c", "missing")
	_, err := r.task.Start(t.Context(), &taskapi.StartRequest{ID: "c"})
	r.want(errdefs.IsNotFound, err)
	r.delete("c", "") // never started
	if vms := r.fake.Running(); len(vms) != 0 {
		t.Errorf("VMs %q run", vms)
	}
	if diff := cmp.Diff([]string{"create:c", "delete:c=0"}, r.events.words()); diff != "" {
		t.Error(diff)
	}
}

func TestErrorsAreToldOnce(t *testing.T) {
	r := newRig(t)
	_, err := r.task.Create(t.Context(), &taskapi.CreateTaskRequest{ID: "c", Bundle: "/nonexistent"})
	native := errgrpc.ToNative(err)
	want := "create container c: read the spec of bundle /nonexistent: open /nonexistent/config.json: no such file or directory: not found"
	if native == nil || native.Error() != want || !errdefs.IsNotFound(native) {
		t.Errorf("got %q, want %q", native, want)
	}
}

func TestFailedCreateLeavesNoVM(t *testing.T) {
	r := newRig(t)
	r.agent.Fail("CreateContainer", errdefs.ErrInvalidArgument)
	_, err := r.task.Create(t.Context(), &taskapi.CreateTaskRequest{ID: "c", Bundle: r.bundle("c", nil, "sleep")})
	r.want(errdefs.IsInvalidArgument, err)
	if vms := r.fake.Running(); len(vms) != 0 {
		t.Errorf("VMs %q run", vms)
	}
	if !r.service.Idle() {
		t.Error("not idle")
	}
	r.agent.Fail("CreateContainer", nil)
	r.mu.Lock()
	r.launchErr = errdefs.ErrFailedPrecondition
	r.mu.Unlock()
	_, err = r.task.Create(t.Context(), &taskapi.CreateTaskRequest{ID: "c", Bundle: r.bundle("c", nil, "sleep")})
	r.want(errdefs.IsFailedPrecondition, err)
	if !r.service.Idle() {
		t.Error("not idle")
	}
}

func TestDeathOfTheVM(t *testing.T) {
	r := newRig(t)
	r.create("c", "sleep")
	r.start("c", "")
	r.exec("c", "running", "sleep")
	r.start("c", "running")
	r.exec("c", "created", "sleep")
	if err := r.fake.Kill(r.fake.Running()[0]); err != nil {
		t.Fatal(err)
	}
	for _, exec := range []string{"", "running", "created"} {
		if got := r.wait("c", exec); got != 137 {
			t.Errorf("status of %q is %d", exec, got)
		}
	}
	_, err := r.task.Exec(t.Context(), &taskapi.ExecProcessRequest{ID: "c", ExecID: "late", Spec: processSpec("sleep")})
	r.want(errdefs.IsFailedPrecondition, err)
	if got := r.delete("c", ""); got != 137 {
		t.Errorf("status on delete %d", got)
	}
	words := r.events.words()
	if diff := cmp.Diff([]string{"exit:c=137", "delete:c=137"}, words[len(words)-2:]); diff != "" {
		t.Log(words)
		// the exec that was never started may be told after its init; all others come before
		if words[len(words)-1] != "delete:c=137" {
			t.Error(diff)
		}
	}
	if !r.service.Idle() {
		t.Error("not idle")
	}
}

func TestDeathBeforeTheStart(t *testing.T) {
	r := newRig(t)
	r.create("c", "sleep")
	if err := r.fake.Kill(r.fake.Running()[0]); err != nil {
		t.Fatal(err)
	}
	if got := r.wait("c", ""); got != 137 {
		t.Errorf("status %d", got)
	}
	r.delete("c", "")
}

func TestOlderVersionOfTheService(t *testing.T) {
	r := newRig(t)
	var created taskapi.CreateTaskResponse
	r.must(r.client.Call(t.Context(), "containerd.task.v2.Task", "Create",
		&taskapi.CreateTaskRequest{ID: "c", Bundle: r.bundle("c", nil, "exit", "3")}, &created))
	var started taskapi.StartResponse
	r.must(r.client.Call(t.Context(), "containerd.task.v2.Task", "Start", &taskapi.StartRequest{ID: "c"}, &started))
	if got := r.wait("c", ""); got != 3 {
		t.Errorf("status %d", got)
	}
	err := r.client.Call(t.Context(), "containerd.task.v2.Task", "Delete", &taskapi.DeleteRequest{ID: "x"}, &taskapi.DeleteResponse{})
	r.want(errdefs.IsNotFound, err)
}

func TestCloseEndsThePod(t *testing.T) {
	r := newRig(t)
	r.create("c", "sleep")
	r.start("c", "")
	r.must(r.service.Close(t.Context()))
	if diff := cmp.Diff([]string{"create:c", "start:c", "exit:c=137"}, r.events.words()); diff != "" {
		t.Error(diff)
	}
	if vms := r.fake.Running(); len(vms) != 0 {
		t.Errorf("VMs %q run", vms)
	}
}

func TestConfigPath(t *testing.T) {
	wrap := func(m proto.Message) *anypb.Any {
		v, err := pack(m)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	bundle := t.TempDir()
	for name, c := range map[string]struct {
		options *anypb.Any
		want    string
		err     error
	}{
		"none":      {nil, "", nil},
		"empty any": {&anypb.Any{}, "", nil},
		"empty":     {wrap(&runtimeoptions.Options{}), "", nil},
		"path":      {wrap(&runtimeoptions.Options{ConfigPath: "/etc/x.toml"}), "/etc/x.toml", nil},
		"text":      {wrap(&runtimeoptions.Options{ConfigBody: []byte("version = 1")}), filepath.Join(bundle, configFile), nil},
		"both":      {wrap(&runtimeoptions.Options{ConfigPath: "/etc/x.toml", ConfigBody: []byte("version = 1")}), "/etc/x.toml", nil},
		"relative":  {wrap(&runtimeoptions.Options{ConfigPath: "x.toml"}), "", errdefs.ErrInvalidArgument},
		"runc's":    {wrap(&options.Options{}), "", errdefs.ErrInvalidArgument},
		"another":   {wrap(&emptypb.Empty{}), "", errdefs.ErrInvalidArgument},
		"garbage":   {&anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: []byte{1}}, "", errdefs.ErrInvalidArgument},
	} {
		got, err := ConfigPath(c.options, bundle)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%s: %q, %v; want %q, %v", name, got, err, c.want, c.err)
		}
	}
	if data, err := os.ReadFile(filepath.Join(bundle, configFile)); err != nil || string(data) != "version = 1" {
		t.Errorf("the text is kept as %q, %v", data, err)
	}
}

func TestStateMachine(t *testing.T) {
	all := []state{created, running, paused, stopped, deleted}
	legal := map[[2]state]bool{
		{created, running}: true, {created, stopped}: true, {created, deleted}: true,
		{running, paused}: true, {running, stopped}: true,
		{paused, running}: true, {paused, stopped}: true,
		{stopped, deleted}: true,
	}
	for _, from := range all {
		for _, to := range all {
			err := from.check(to, "process x")
			if legal[[2]state{from, to}] {
				if err != nil {
					t.Errorf("%s to %s: %v", from, to, err)
				}
				continue
			}
			want := fmt.Sprintf("process x is %s and can't become %s", from, to)
			if err == nil || !cmp.Equal(err.Error()[:len(want)], want) {
				t.Errorf("%s to %s: %v", from, to, err)
			}
		}
	}
}
