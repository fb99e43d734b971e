package task

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"bulkhead.dev/bulkhead/internal/shim/podconfig"
)

func criAnnotations(kind, sandbox string) map[string]string {
	return map[string]string{AnnotationContainerType: kind, AnnotationSandboxID: sandbox}
}

// pauser creates and starts the sandbox container of a pod.
func (r *rig) pauser(id string) {
	r.t.Helper()
	_, err := r.task.Create(r.t.Context(), &taskapi.CreateTaskRequest{ID: id, Bundle: r.bundle(id, criAnnotations("sandbox", id), "/pause")})
	r.must(err)
	r.start(id, "")
}

// member creates and starts a container of the pod.
func (r *rig) member(id, sandbox string, args ...string) {
	r.t.Helper()
	_, err := r.task.Create(r.t.Context(), &taskapi.CreateTaskRequest{ID: id, Bundle: r.bundle(id, criAnnotations("container", sandbox), args...)})
	r.must(err)
	r.start(id, "")
}

func TestPodWithASandboxContainer(t *testing.T) {
	r := newRig(t)
	r.pauser("p")
	if got := r.agent.Containers(); len(got) != 0 {
		t.Errorf("the guest has containers %q for a pause", got)
	}
	r.member("a", "p", "sleep")
	r.member("b", "p", "exit", "5")
	if got := r.wait("b", ""); got != 5 {
		t.Errorf("status of b %d", got)
	}
	r.delete("b", "")
	if vms := r.fake.Running(); len(vms) != 1 {
		t.Fatalf("VMs %q run, want one for the pod", vms)
	}
	answer, err := r.task.Stats(t.Context(), &taskapi.StatsRequest{ID: "p"})
	r.must(err)
	var figures stats.Metrics
	if err := proto.Unmarshal(answer.Stats.Value, &figures); err != nil || figures.Memory.Usage == 0 || figures.Memory.UsageLimit == 0 {
		t.Errorf("figures of the pod %v, %v", &figures, err)
	}
	pids, err := r.task.Pids(t.Context(), &taskapi.PidsRequest{ID: "p"})
	r.must(err)
	if len(pids.Processes) != 1 {
		t.Errorf("processes of the pause %v", pids.Processes)
	}
	r.kill("p", "", syscall.SIGHUP) // ignored, as a pause process does
	if got := r.state("p", ""); got != "RUNNING" {
		t.Errorf("state %s", got)
	}
	r.kill("p", "", syscall.SIGKILL)
	if got := r.wait("p", ""); got != 137 {
		t.Errorf("status of the pause %d", got)
	}
	if vms := r.fake.Running(); len(vms) != 0 {
		t.Errorf("VMs %q run when the exit of the sandbox is told", vms)
	}
	if got := r.wait("a", ""); got != 137 {
		t.Errorf("status of a %d", got)
	}
	r.delete("p", "")
	_, err = r.task.Shutdown(t.Context(), &taskapi.ShutdownRequest{ID: "p"}) // a dead container is left
	r.must(err)
	select {
	case <-r.shutdown:
		t.Error("shut down with a task")
	default:
	}
	r.delete("a", "") // nobody asks again after this one
	<-r.shutdown
}

func TestSandboxContainerHasNoProcess(t *testing.T) {
	r := newRig(t)
	r.pauser("p")
	_, err := r.task.Exec(t.Context(), &taskapi.ExecProcessRequest{ID: "p", ExecID: "e", Spec: processSpec("sleep")})
	r.want(errdefs.IsNotImplemented, err)
	_, err = r.task.Pause(t.Context(), &taskapi.PauseRequest{ID: "p"})
	r.want(errdefs.IsNotImplemented, err)
	_, err = r.task.Update(t.Context(), &taskapi.UpdateTaskRequest{ID: "p", Resources: &anypb.Any{TypeUrl: "LinuxResources", Value: []byte("{}")}})
	r.must(err)
	r.kill("p", "", syscall.SIGTERM)
	if got := r.wait("p", ""); got != 143 {
		t.Errorf("status %d", got)
	}
	_, err = r.task.Create(t.Context(), &taskapi.CreateTaskRequest{ID: "a", Bundle: r.bundle("a", criAnnotations("container", "p"), "sleep")})
	r.want(errdefs.IsUnavailable, err)
}

func TestPodRefuses(t *testing.T) {
	r := newRig(t)
	create := func(id, kind, sandbox string) error {
		_, err := r.task.Create(t.Context(), &taskapi.CreateTaskRequest{ID: id, Bundle: r.bundle(id, criAnnotations(kind, sandbox), "sleep")})
		return err
	}
	r.want(errdefs.IsFailedPrecondition, create("a", "container", "p"))
	r.pauser("p")
	r.want(errdefs.IsAlreadyExists, create("q", "sandbox", "q"))
	r.want(errdefs.IsInvalidArgument, create("a", "container", "q"))
}

func TestDeathOfThePodsVM(t *testing.T) {
	r := newRig(t)
	r.pauser("p")
	r.member("a", "p", "sleep")
	if err := r.fake.Kill(r.fake.Running()[0]); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"p", "a"} {
		if got := r.wait(id, ""); got != 137 {
			t.Errorf("status of %s is %d", id, got)
		}
	}
	r.delete("a", "")
	r.delete("p", "")
	_, err := r.task.Shutdown(t.Context(), &taskapi.ShutdownRequest{})
	r.must(err)
	<-r.shutdown
}

// podConfig is a PodSandboxConfig as containerd sends it.
func podConfig(network podconfig.NamespaceMode) *anypb.Any {
	field := func(n protowire.Number, inner []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), inner)
	}
	number := func(n protowire.Number, v uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nil, n, protowire.VarintType), v)
	}
	linux := append(field(2, field(1, number(1, uint64(network)))), field(5, append(append(number(1, 100000), number(2, 200000)...), number(4, 512<<20)...))...)
	return &anypb.Any{TypeUrl: podconfig.TypeURL, Value: append(field(2, []byte("web-0")), field(8, linux)...)}
}

func TestSandboxService(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	_, err := r.sandbox.StartSandbox(ctx, &sandboxapi.StartSandboxRequest{SandboxID: "p"})
	r.want(errdefs.IsFailedPrecondition, err)
	create := &sandboxapi.CreateSandboxRequest{SandboxID: "p", BundlePath: t.TempDir(), Options: podConfig(podconfig.Pod)}
	_, err = r.sandbox.CreateSandbox(ctx, create)
	r.must(err)
	_, err = r.sandbox.CreateSandbox(ctx, create)
	r.want(errdefs.IsAlreadyExists, err)
	_, err = r.sandbox.PingSandbox(ctx, &sandboxapi.PingRequest{SandboxID: "p"})
	r.want(errdefs.IsFailedPrecondition, err)
	_, err = r.task.Create(ctx, &taskapi.CreateTaskRequest{ID: "a", Bundle: r.bundle("a", criAnnotations("container", "p"), "sleep")})
	r.want(errdefs.IsFailedPrecondition, err)

	started, err := r.sandbox.StartSandbox(ctx, &sandboxapi.StartSandboxRequest{SandboxID: "p"})
	r.must(err)
	if started.Pid == 0 || started.CreatedAt.AsTime().Unix() <= 0 {
		t.Errorf("started as %v", started)
	}
	_, err = r.sandbox.StartSandbox(ctx, &sandboxapi.StartSandboxRequest{SandboxID: "p"})
	r.want(errdefs.IsAlreadyExists, err)
	if got := r.launches[0].Spec; got.Hostname != "web-0" || got.Annotations["io.kubernetes.cri.sandbox-memory"] != "536870912" {
		t.Errorf("launched with %v", got)
	}
	platform, err := r.sandbox.Platform(ctx, &sandboxapi.PlatformRequest{SandboxID: "p"})
	r.must(err)
	if platform.Platform.OS != "linux" {
		t.Errorf("platform %v", platform)
	}
	_, err = r.sandbox.PingSandbox(ctx, &sandboxapi.PingRequest{SandboxID: "p"})
	r.must(err)
	r.member("a", "p", "sleep")
	status, err := r.sandbox.SandboxStatus(ctx, &sandboxapi.SandboxStatusRequest{SandboxID: "p", Verbose: true})
	r.must(err)
	if status.State != "SANDBOX_READY" || status.Info["vcpus"] == "" {
		t.Errorf("status %v", status)
	}
	figures, err := r.sandbox.SandboxMetrics(ctx, &sandboxapi.SandboxMetricsRequest{SandboxID: "p"})
	r.must(err)
	if figures.Metrics.ID != "p" || figures.Metrics.Data == nil {
		t.Errorf("figures %v", figures)
	}
	_, err = r.sandbox.UpdateSandbox(ctx, &sandboxapi.UpdateSandboxRequest{SandboxID: "p"})
	r.want(errdefs.IsNotImplemented, err)
	_, err = r.task.Shutdown(ctx, &taskapi.ShutdownRequest{})
	r.must(err)
	r.endSandbox()
}

// endSandbox stops sandbox p, with container a in it, and shuts it down.
func (r *rig) endSandbox() {
	r.t.Helper()
	ctx := r.t.Context()
	for range 2 {
		_, err := r.sandbox.StopSandbox(ctx, &sandboxapi.StopSandboxRequest{SandboxID: "p", TimeoutSecs: 30})
		r.must(err)
	}
	waited, err := r.sandbox.WaitSandbox(ctx, &sandboxapi.WaitSandboxRequest{SandboxID: "p"})
	r.must(err)
	if waited.ExitStatus != 0 || waited.ExitedAt.AsTime().Unix() <= 0 {
		r.t.Errorf("waited for %v", waited)
	}
	if got := r.wait("a", ""); got != 137 {
		r.t.Errorf("status of a is %d", got)
	}
	r.delete("a", "")
	status, err := r.sandbox.SandboxStatus(ctx, &sandboxapi.SandboxStatusRequest{SandboxID: "p", Verbose: true})
	r.must(err)
	if status.State != "SANDBOX_NOTREADY" {
		r.t.Errorf("status %v", status)
	}
	select {
	case <-r.shutdown:
		r.t.Error("shut down before it was asked")
	default:
	}
	_, err = r.sandbox.ShutdownSandbox(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: "p"})
	r.must(err)
	<-r.shutdown
}

func TestSandboxServiceRefuses(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	for name, c := range map[string]struct {
		request *sandboxapi.CreateSandboxRequest
		is      func(error) bool
	}{
		"no ID":        {&sandboxapi.CreateSandboxRequest{}, errdefs.IsInvalidArgument},
		"another type": {&sandboxapi.CreateSandboxRequest{SandboxID: "p", Options: &anypb.Any{TypeUrl: "x"}}, errdefs.IsInvalidArgument},
		"garbage":      {&sandboxapi.CreateSandboxRequest{SandboxID: "p", Options: &anypb.Any{TypeUrl: podconfig.TypeURL, Value: []byte{0}}}, errdefs.IsInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.sandbox.CreateSandbox(ctx, c.request)
			r.want(c.is, err)
		})
	}
	for name, call := range map[string]func() error{
		"stop": func() error {
			_, err := r.sandbox.StopSandbox(ctx, &sandboxapi.StopSandboxRequest{SandboxID: "x"})
			return err
		},
		"wait": func() error {
			_, err := r.sandbox.WaitSandbox(ctx, &sandboxapi.WaitSandboxRequest{SandboxID: "x"})
			return err
		},
		"status": func() error {
			_, err := r.sandbox.SandboxStatus(ctx, &sandboxapi.SandboxStatusRequest{SandboxID: "x"})
			return err
		},
		"ping": func() error {
			_, err := r.sandbox.PingSandbox(ctx, &sandboxapi.PingRequest{SandboxID: "x"})
			return err
		},
		"platform": func() error {
			_, err := r.sandbox.Platform(ctx, &sandboxapi.PlatformRequest{SandboxID: "x"})
			return err
		},
		"metrics": func() error {
			_, err := r.sandbox.SandboxMetrics(ctx, &sandboxapi.SandboxMetricsRequest{SandboxID: "x"})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) { r.want(errdefs.IsNotFound, call()) })
	}
	_, err := r.sandbox.ShutdownSandbox(ctx, &sandboxapi.ShutdownSandboxRequest{SandboxID: "x"}) // after a failed create
	r.must(err)
	<-r.shutdown
}

func TestHostNetworkIsRefused(t *testing.T) {
	r := newRig(t)
	_, err := r.sandbox.CreateSandbox(t.Context(), &sandboxapi.CreateSandboxRequest{SandboxID: "p", BundlePath: t.TempDir(), Options: podConfig(podconfig.Node)})
	r.must(err)
	_, err = r.sandbox.StartSandbox(t.Context(), &sandboxapi.StartSandboxRequest{SandboxID: "p"})
	if err == nil {
		t.Fatal("started")
	}
	_, err = r.sandbox.StopSandbox(t.Context(), &sandboxapi.StopSandboxRequest{SandboxID: "p"})
	r.must(err)
	_, err = r.sandbox.StartSandbox(t.Context(), &sandboxapi.StartSandboxRequest{SandboxID: "p"})
	r.want(errdefs.IsFailedPrecondition, err)
}

func TestDeathOfTheSandbox(t *testing.T) {
	r := newRig(t)
	ctx := t.Context()
	_, err := r.sandbox.CreateSandbox(ctx, &sandboxapi.CreateSandboxRequest{SandboxID: "p", BundlePath: t.TempDir()})
	r.must(err)
	_, err = r.sandbox.StartSandbox(ctx, &sandboxapi.StartSandboxRequest{SandboxID: "p"})
	r.must(err)
	if err := r.fake.Kill(r.fake.Running()[0]); err != nil {
		t.Fatal(err)
	}
	waited, err := r.sandbox.WaitSandbox(ctx, &sandboxapi.WaitSandboxRequest{SandboxID: "p"})
	r.must(err)
	if waited.ExitStatus != 137 {
		t.Errorf("status %d", waited.ExitStatus)
	}
	_, err = r.sandbox.PingSandbox(ctx, &sandboxapi.PingRequest{SandboxID: "p"})
	r.want(errdefs.IsFailedPrecondition, err)
}

func TestCgroupsPath(t *testing.T) {
	got := []string{
		cgroupsPath("", "id"),
		cgroupsPath("/kubepods/besteffort/podx", "id"),
		cgroupsPath("/kubepods.slice/kubepods-podx.slice", "id"),
	}
	want := []string{"", "/kubepods/besteffort/podx/id", "kubepods-podx.slice:cri-containerd:id"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestPodFiles(t *testing.T) {
	bundle := t.TempDir()
	f, err := writePodFiles(bundle, "p", podconfig.Config{Hostname: "web-0", DNS: podconfig.DNS{
		Given: true, Servers: []string{"10.0.0.10", "10.0.0.11"}, Searches: []string{"a.b", "c"}, Options: []string{"ndots:5"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"hostname":    "web-0\n",
		"resolv.conf": "search a.b c\nnameserver 10.0.0.10\nnameserver 10.0.0.11\noptions ndots:5\n",
	} {
		if got, err := os.ReadFile(filepath.Join(bundle, "files", name)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v", name, got, err)
		}
	}
	spec := &specs.Spec{Root: &specs.Root{Readonly: true}, Mounts: []specs.Mount{
		{Destination: "/etc/hosts", Type: "bind", Source: "/kubelet/hosts"}, {Destination: "/dev/shm", Type: "tmpfs", Source: "shm"},
	}}
	f.addTo(spec)
	var got []string
	for _, m := range spec.Mounts {
		got = append(got, m.Destination+" "+m.Source+" "+strings.Join(m.Options, ","))
	}
	want := []string{
		"/etc/hosts /kubelet/hosts ",
		"/etc/hostname " + bundle + "/files/hostname rbind,ro",
		"/etc/resolv.conf " + bundle + "/files/resolv.conf rbind,ro",
		"/dev/shm /sandboxes/p/shm rbind,rw,nosuid,nodev,noexec",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	own := &specs.Spec{Mounts: []specs.Mount{{Destination: "/dev/shm/", Type: "bind", Source: "/volume"}}}
	f.addTo(own)
	if own.Mounts[0].Source != "/volume" || len(own.Mounts) != 4 {
		t.Errorf("a volume at /dev/shm: %v", own.Mounts)
	}
}

func TestReadSpecRefuses(t *testing.T) {
	bundle := t.TempDir()
	if _, err := ReadSpec(bundle); !errdefs.IsNotFound(err) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSpec(bundle); !errdefs.IsInvalidArgument(err) {
		t.Errorf("with half a spec: %v", err)
	}
}
