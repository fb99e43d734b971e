package task

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/events"
	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"bulkhead.dev/bulkhead/internal/config"
	"bulkhead.dev/bulkhead/internal/guest/guesttest"
	"bulkhead.dev/bulkhead/internal/guestimage"
	"bulkhead.dev/bulkhead/internal/rootfs"
	"bulkhead.dev/bulkhead/internal/sandbox"
	"bulkhead.dev/bulkhead/internal/vmm"
	"bulkhead.dev/bulkhead/internal/vmm/vmmtest"
)

// patience is how long a test waits for what must happen. It is generous; nothing depends on it.
const patience = 30 * time.Second

// rig is a service as containerd sees it, over a socket, with a sandbox whose VM and guest live in memory.
type rig struct {
	t         *testing.T
	agent     *guesttest.Agent
	fake      *vmmtest.Fake
	task      taskapi.TTRPCTaskService
	sandbox   sandboxapi.TTRPCSandboxService
	client    *ttrpc.Client
	service   *Service
	events    *journal
	launches  []Launch // guarded by mu
	launchErr error
	shutdown  chan struct{}
	mu        sync.Mutex
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, agent: guesttest.New(), events: &journal{}, shutdown: make(chan struct{})}
	r.fake = vmmtest.NewFake(func(conn net.Conn) { r.agent.Serve(conn) })
	log := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	r.service = New(Config{Launcher: r, Events: r.events, Log: log, Shutdown: sync.OnceFunc(func() { close(r.shutdown) })})
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(Border(log)))
	if err != nil {
		t.Fatal(err)
	}
	Register(server, r.service)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(context.Background(), l)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	r.client = ttrpc.NewClient(conn)
	r.task, r.sandbox = taskapi.NewTTRPCTaskClient(r.client), sandboxapi.NewTTRPCSandboxClient(r.client)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		r.service.Close(ctx)
		r.client.Close()
		server.Close()
	})
	return r
}

// testWriter writes the log to the test's, until the test is over.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	if w.t.Context().Err() == nil {
		w.t.Logf("%s", bytes.TrimSpace(p))
	}
	return len(p), nil
}

// Launch implements Launcher.
func (r *rig) Launch(ctx context.Context, launch Launch) (Machine, error) {
	r.mu.Lock()
	r.launches = append(r.launches, launch)
	err := r.launchErr
	r.mu.Unlock()
	if err != nil {
		return nil, err
	}
	cfg := config.Default()
	cfg.RunDir, cfg.StateDir = r.t.TempDir(), r.t.TempDir()
	cfg.VMM.UIDBase = 3_900_000_000
	cfg.Sandbox.ScratchSize = 16 << 20
	spec, err := sandbox.FromOCI(cfg, launch.Spec)
	if err != nil {
		return nil, err
	}
	spec.ID, spec.Namespace, spec.Dir = launch.ID, "test", r.t.TempDir()
	s, err := sandbox.Start(ctx, sandbox.Deps{
		Driver: r.fake, Cache: rootfs.NewCache(cfg.LayersDir()), Config: cfg,
		Guest:        guestimage.Image{Kernel: "kernel", Initramfs: "initramfs"},
		Acceleration: vmm.Emulated, Logger: slog.New(slog.DiscardHandler),
	}, spec)
	if err != nil {
		return nil, err
	}
	return Adapt(s), nil
}

// journal keeps events in the order of their publication.
type journal struct {
	mu     sync.Mutex
	events []proto.Message
}

func (j *journal) Publish(event proto.Message) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events = append(j.events, event)
}

// words are the events so far, one word each.
func (j *journal) words() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	words := make([]string, len(j.events))
	for i, e := range j.events {
		words[i] = word(e)
	}
	return words
}

func word(event proto.Message) string {
	switch e := event.(type) {
	case *events.TaskCreate:
		return "create:" + e.ContainerID
	case *events.TaskStart:
		return "start:" + e.ContainerID
	case *events.TaskExit:
		return fmt.Sprintf("exit:%s=%d", e.ID, e.ExitStatus)
	case *events.TaskDelete:
		return fmt.Sprintf("delete:%s=%d", e.ContainerID, e.ExitStatus)
	case *events.TaskExecAdded:
		return "exec-added:" + e.ExecID
	case *events.TaskExecStarted:
		return "exec-started:" + e.ExecID
	case *events.TaskOOM:
		return "oom:" + e.ContainerID
	case *events.TaskPaused:
		return "paused:" + e.ContainerID
	case *events.TaskResumed:
		return "resumed:" + e.ContainerID
	}
	return fmt.Sprintf("%T", event)
}

// bundle makes a bundle for a container that runs args.
func (r *rig) bundle(id string, annotations map[string]string, args ...string) string {
	r.t.Helper()
	bundle := filepath.Join(r.t.TempDir(), id)
	if err := os.MkdirAll(filepath.Join(bundle, "rootfs"), 0o755); err != nil {
		r.t.Fatal(err)
	}
	data, err := json.Marshal(ociSpec(annotations, args))
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o600); err != nil {
		r.t.Fatal(err)
	}
	return bundle
}

func ociSpec(annotations map[string]string, args []string) *specs.Spec {
	spec := &specs.Spec{
		Version:     specs.Version,
		Annotations: annotations,
		Root:        &specs.Root{Path: "rootfs"},
		Process:     &specs.Process{Args: args, Cwd: "/"},
		Linux:       &specs.Linux{},
	}
	for _, ns := range []specs.LinuxNamespaceType{specs.MountNamespace, specs.PIDNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace} {
		spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: ns})
	}
	return spec
}

// create creates a lone container.
func (r *rig) create(id string, args ...string) {
	r.t.Helper()
	_, err := r.task.Create(r.t.Context(), &taskapi.CreateTaskRequest{ID: id, Bundle: r.bundle(id, nil, args...)})
	r.must(err)
}

func (r *rig) start(id, exec string) {
	r.t.Helper()
	_, err := r.task.Start(r.t.Context(), &taskapi.StartRequest{ID: id, ExecID: exec})
	r.must(err)
}

func (r *rig) exec(id, exec string, args ...string) {
	r.t.Helper()
	_, err := r.task.Exec(r.t.Context(), &taskapi.ExecProcessRequest{ID: id, ExecID: exec, Spec: processSpec(args...)})
	r.must(err)
}

func processSpec(args ...string) *anypb.Any {
	data, err := json.Marshal(&specs.Process{Args: args, Cwd: "/"})
	if err != nil {
		panic(err)
	}
	return &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/Process", Value: data}
}

func (r *rig) kill(id, exec string, signal syscall.Signal) {
	r.t.Helper()
	_, err := r.task.Kill(r.t.Context(), &taskapi.KillRequest{ID: id, ExecID: exec, Signal: uint32(signal)})
	r.must(err)
}

func (r *rig) wait(id, exec string) uint32 {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	answer, err := r.task.Wait(ctx, &taskapi.WaitRequest{ID: id, ExecID: exec})
	r.must(err)
	if answer.ExitedAt.AsTime().Unix() <= 0 {
		r.t.Errorf("%s %s ended at %v", id, exec, answer.ExitedAt)
	}
	return answer.ExitStatus
}

func (r *rig) delete(id, exec string) uint32 {
	r.t.Helper()
	answer, err := r.task.Delete(r.t.Context(), &taskapi.DeleteRequest{ID: id, ExecID: exec})
	r.must(err)
	return answer.ExitStatus
}

func (r *rig) state(id, exec string) string {
	r.t.Helper()
	answer, err := r.task.State(r.t.Context(), &taskapi.StateRequest{ID: id, ExecID: exec})
	r.must(err)
	return answer.Status.String()
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatalf("%v", errgrpc.ToNative(err))
	}
}

// want checks the class of an error as containerd sees it.
func (r *rig) want(is func(error) bool, err error) {
	r.t.Helper()
	if err == nil {
		r.t.Fatal("no error")
	}
	if native := errgrpc.ToNative(err); !is(native) {
		r.t.Errorf("error of another class: %v (%T)", native, native)
	}
}

// fifo makes a fifo and opens its reading end as containerd's client does.
func (r *rig) fifo() (path string, reader *os.File) {
	r.t.Helper()
	path = filepath.Join(r.t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		r.t.Fatal(err)
	}
	reader, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { reader.Close() })
	return path, reader
}

func readAll(t *testing.T, f io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
