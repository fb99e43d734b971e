package task

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bulkhead.dev/bulkhead/internal/sandbox"
	"bulkhead.dev/bulkhead/internal/shim/stdio"
)

// Config is what a Service is made of.
type Config struct {
	Launcher Launcher
	Events   Publisher
	Log      *slog.Logger
	// ConfigPath is the configuration file named when the shim was started; empty: the default. A task's own options win.
	ConfigPath string
	// Shutdown is called when containerd wants the shim to end, and nothing is left to be done. It must not wait.
	Shutdown func()
}

// Service serves one pod. It implements the task service of containerd.
type Service struct {
	config Config

	mu         sync.Mutex
	containers map[string]*container // guarded by mu; nil: being created
	pod        *pod                  // guarded by mu; nil: no VM
	launching  bool                  // guarded by mu: a VM is being started
	sandbox    *podSandbox           // guarded by mu; nil: none was created by the sandbox service

	// shutdownWanted says that containerd asked for the shim's end when the VM was gone and only dead containers were left.
	// It doesn't ask again after those. Guarded by mu.
	shutdownWanted bool
}

var _ taskapi.TTRPCTaskService = (*Service)(nil)

// New returns a service without a pod.
func New(config Config) *Service {
	return &Service{config: config, containers: make(map[string]*container)}
}

// Create implements the task service: it creates a container, and before that, where it is a pod's first, the VM.
func (s *Service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	if r.Checkpoint != "" {
		return nil, fmt.Errorf("create container %.128q from a checkpoint: %w", r.ID, errdefs.ErrNotImplemented)
	}
	if err := s.reserve(r.ID); err != nil {
		return nil, err
	}
	c, err := s.create(ctx, r)
	s.mu.Lock()
	if err != nil {
		delete(s.containers, r.ID)
	} else {
		s.containers[r.ID] = c
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	s.config.Events.Publish(&events.TaskCreate{
		ContainerID: r.ID,
		Bundle:      r.Bundle,
		Rootfs:      r.Rootfs,
		IO:          &events.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
		Pid:         c.pod.pid,
	})
	select {
	case <-c.pod.machine.Done(): // while it was not yet known, so nobody else ends it
		c.abandon()
	default:
	}
	return &taskapi.CreateTaskResponse{Pid: c.pod.pid}, nil
}

// reserve takes an ID, so that of two that create it at the same time one is refused.
func (s *Service) reserve(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.containers[id]; taken || id == "" {
		return fmt.Errorf("container %.128q: %w", id, errdefs.ErrAlreadyExists)
	}
	s.containers[id] = nil
	return nil
}

func (s *Service) create(ctx context.Context, r *taskapi.CreateTaskRequest) (*container, error) {
	spec, err := ReadSpec(r.Bundle)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", r.ID, err)
	}
	io, err := stdio.Open(ctx, stdio.Names{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal})
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", r.ID, err)
	}
	p, launched, err := s.podFor(ctx, r, spec)
	if err != nil {
		io.Close()
		return nil, fmt.Errorf("create container %s: %w", r.ID, err)
	}
	c, err := s.createIn(ctx, p, r, spec, io)
	if err != nil {
		io.Close()
		if launched {
			s.discard(p)
		}
		return nil, err
	}
	return c, nil
}

func (s *Service) createIn(ctx context.Context, p *pod, r *taskapi.CreateTaskRequest, spec *specs.Spec, io *stdio.Set) (*container, error) {
	k := member
	switch {
	case p.kind == podOfOne:
		k = lone
	case spec.Annotations[AnnotationContainerType] == "sandbox":
		k = pauser
	}
	c := newContainer(r.ID, r.Bundle, k, p, s.config.Events, s.config.Log)
	if k == pauser {
		c.init = newProcess(c, "", newPause(p.machine, p.stop), io)
		return c, nil
	}
	if files := s.podFiles(p); files != nil {
		files.addTo(spec)
	}
	mounts, err := rootMounts(r.Bundle, spec, r.Rootfs)
	if err != nil {
		return nil, fmt.Errorf("create container %s: %w", r.ID, err)
	}
	guest, err := p.machine.CreateContainer(ctx, sandbox.ContainerSpec{
		ID: r.ID, Spec: spec, RootFS: mounts,
		Terminal: r.Terminal, Stdin: io.HasStdin(), Stdout: io.HasStdout(), Stderr: io.HasStderr(),
	})
	if err != nil {
		return nil, err
	}
	c.init = newProcess(c, "", guest, io)
	return c, nil
}

// podFiles returns what the containers of a pod see besides their own; nil where containerd sees to that.
func (s *Service) podFiles(p *pod) *podFiles {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.kind != podOfSandbox || s.sandbox == nil {
		return nil
	}
	return s.sandbox.files
}

// podFor finds the pod of a container that is created, or starts its VM. The package comment lists the shapes.
func (s *Service) podFor(ctx context.Context, r *taskapi.CreateTaskRequest, spec *specs.Spec) (p *pod, launched bool, err error) {
	kind, sandboxID := spec.Annotations[AnnotationContainerType], spec.Annotations[AnnotationSandboxID]
	s.mu.Lock()
	p = s.pod
	switch {
	case s.launching:
		err = fmt.Errorf("the VM is being started: %w", errdefs.ErrFailedPrecondition)
	case p != nil && (kind == "sandbox" || p.kind == podOfOne):
		err = fmt.Errorf("the VM is that of %s already: %w", p.id, errdefs.ErrAlreadyExists)
	case p != nil && sandboxID != "" && sandboxID != p.id:
		err = fmt.Errorf("the VM is that of sandbox %s, not of %.128q: %w", p.id, sandboxID, errdefs.ErrInvalidArgument)
	case p == nil && s.sandbox != nil:
		err = fmt.Errorf("sandbox %s is not started: %w", s.sandbox.id, errdefs.ErrFailedPrecondition)
	case p == nil && kind != "sandbox" && (kind != "" || sandboxID != ""):
		err = fmt.Errorf("its sandbox %.128q does not run here: %w", sandboxID, errdefs.ErrFailedPrecondition)
	}
	if p != nil || err != nil {
		s.mu.Unlock()
		return p, false, err
	}
	s.launching = true
	s.mu.Unlock()

	shape := podOfOne
	if kind == "sandbox" {
		shape = podOfPauser
	}
	path, err := ConfigPath(r.Options, r.Bundle)
	if path == "" {
		path = s.config.ConfigPath
	}
	if err == nil {
		p, err = s.launch(ctx, shape, Launch{ID: r.ID, Bundle: r.Bundle, ConfigPath: path, Spec: spec})
	}
	s.launched(p, err)
	return p, err == nil, err
}

// launch starts a VM and what watches it. The caller has set launching, and calls launched with the outcome.
func (s *Service) launch(ctx context.Context, kind podKind, launch Launch) (*pod, error) {
	machine, err := s.config.Launcher.Launch(ctx, launch)
	if err != nil {
		return nil, err
	}
	return newPod(ctx, launch.ID, kind, machine, s.config.Log), nil
}

func (s *Service) launched(p *pod, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.launching = false
	if b := s.sandbox; b != nil && b.state == sandboxStarting {
		b.state = sandboxCreated
		if err == nil {
			b.state, b.created = sandboxReady, time.Now()
		}
	}
	if err != nil {
		return
	}
	s.pod = p
	go s.watchEvents(p)
	go s.watchEnd(p)
}

// discard stops a pod's VM and forgets it.
func (s *Service) discard(p *pod) {
	p.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pod == p {
		s.pod = nil
	}
}

func (s *Service) watchEvents(p *pod) {
	for event := range p.machine.Events() {
		if event.OOM == nil {
			continue
		}
		if c, err := s.find(event.OOM.Container); err == nil {
			c.outOfMemory()
		}
	}
}

// watchEnd undoes what is left of the pod on the host once its VM has ended, and ends what was never started. What runs
// learns of the end from its own wait.
func (s *Service) watchEnd(p *pod) {
	<-p.machine.Done()
	if err := p.machine.Err(); err != nil {
		p.log.Error("the VM has ended", "error", err)
	}
	for _, c := range s.all() {
		c.abandon()
	}
	p.stop()
	s.sandboxEnded(p)
}

func (s *Service) all() []*container {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		if c != nil {
			all = append(all, c)
		}
	}
	return all
}

func (s *Service) find(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.containers[id]; c != nil {
		return c, nil
	}
	return nil, fmt.Errorf("container %.128q: %w", id, errdefs.ErrNotFound)
}

func (s *Service) findProcess(id, exec string) (*container, *process, error) {
	c, err := s.find(id)
	if err != nil {
		return nil, nil, err
	}
	p, err := c.process(exec)
	return c, p, err
}

// Start implements the task service.
func (s *Service) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	c, p, err := s.findProcess(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if err := p.start(ctx); err != nil {
		return nil, err
	}
	return &taskapi.StartResponse{Pid: c.pod.pid}, nil
}

// State implements the task service.
func (s *Service) State(_ context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	c, p, err := s.findProcess(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	now, exit := p.now()
	names := p.io.Names()
	answer := &taskapi.StateResponse{
		ID: p.id(), Bundle: c.bundle, Pid: c.pod.pid, Status: now.status(), ExecID: r.ExecID,
		Stdin: names.Stdin, Stdout: names.Stdout, Stderr: names.Stderr, Terminal: names.Terminal,
	}
	if now == stopped {
		answer.ExitStatus, answer.ExitedAt = exit.Status, timestamppb.New(exit.At)
	}
	return answer, nil
}

// Delete implements the task service. With a lone container goes its VM, and with a sandbox container the pod's.
func (s *Service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	c, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	exit, err := c.delete(ctx, r.ExecID)
	if err != nil {
		return nil, err
	}
	answer := &taskapi.DeleteResponse{Pid: c.pod.pid, ExitStatus: exit.Status}
	if !exit.At.IsZero() {
		answer.ExitedAt = timestamppb.New(exit.At)
	}
	if r.ExecID != "" {
		return answer, nil
	}
	if c.kind != member {
		s.discard(c.pod)
	}
	s.config.Events.Publish(&events.TaskDelete{
		ContainerID: r.ID, Pid: answer.Pid, ExitStatus: answer.ExitStatus, ExitedAt: answer.ExitedAt,
	})
	s.mu.Lock()
	delete(s.containers, r.ID)
	wanted := s.shutdownWanted
	s.mu.Unlock()
	if wanted && s.Idle() {
		s.config.Shutdown()
	}
	return answer, nil
}

// Exec implements the task service.
func (s *Service) Exec(ctx context.Context, r *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	c, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	var process specs.Process
	if err := fromJSON(r.Spec, "Process", &process); err != nil {
		return nil, fmt.Errorf("exec %.128q of container %s: %w", r.ExecID, r.ID, err)
	}
	process.Terminal = r.Terminal
	names := stdio.Names{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal}
	return &emptypb.Empty{}, c.addExec(ctx, r.ExecID, &process, names)
}

// Kill implements the task service.
func (s *Service) Kill(ctx context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	c, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.kill(ctx, r.ExecID, r.Signal, r.All)
}

// Wait implements the task service.
func (s *Service) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	_, p, err := s.findProcess(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	exit, err := p.wait(ctx)
	if err != nil {
		return nil, err
	}
	return &taskapi.WaitResponse{ExitStatus: exit.Status, ExitedAt: timestamppb.New(exit.At)}, nil
}

// ResizePty implements the task service.
func (s *Service) ResizePty(ctx context.Context, r *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	_, p, err := s.findProcess(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, p.resize(ctx, r.Width, r.Height)
}

// CloseIO implements the task service: the end of stdin.
func (s *Service) CloseIO(_ context.Context, r *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	_, p, err := s.findProcess(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if !r.Stdin {
		return &emptypb.Empty{}, nil
	}
	return &emptypb.Empty{}, p.io.CloseStdin()
}

// Pids implements the task service. The numbers are the guest's, but for the init's, which is the task's own.
func (s *Service) Pids(ctx context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	c, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	c.init.mu.Lock()
	now, initPID := c.init.state, c.init.pid
	c.init.mu.Unlock()
	if c.kind == pauser || now == created {
		// A task that has none is one that containerd, when it starts again, takes for a leftover and removes.
		return &taskapi.PidsResponse{Processes: []*tasktypes.ProcessInfo{{Pid: c.pod.pid}}}, nil
	}
	pids, err := c.pod.machine.Pids(ctx, c.id)
	if err != nil {
		return nil, err
	}
	answer := &taskapi.PidsResponse{Processes: make([]*tasktypes.ProcessInfo, 0, len(pids))}
	for _, pid := range pids {
		info := &tasktypes.ProcessInfo{Pid: pid.PID}
		if pid.PID == initPID {
			info.Pid = c.pod.pid
		}
		if pid.Exec != "" {
			if info.Info, err = pack(&options.ProcessDetails{ExecID: pid.Exec}); err != nil {
				return nil, err
			}
		}
		answer.Processes = append(answer.Processes, info)
	}
	return answer, nil
}

// Pause implements the task service.
func (s *Service) Pause(ctx context.Context, r *taskapi.PauseRequest) (*emptypb.Empty, error) {
	c, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.pauseInit(ctx)
}

// Resume implements the task service.
func (s *Service) Resume(ctx context.Context, r *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	c, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.resumeInit(ctx)
}

// Update implements the task service. The limits of a sandbox container are the pod's, which the VM can't follow while it
// runs: they are accepted, as the kubelet sets them after every change of a container's.
func (s *Service) Update(ctx context.Context, r *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	c, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	var resources specs.LinuxResources
	if err := fromJSON(r.Resources, "LinuxResources", &resources); err != nil {
		return nil, fmt.Errorf("update container %s: %w", c.id, err)
	}
	if c.kind == pauser {
		return &emptypb.Empty{}, nil
	}
	return &emptypb.Empty{}, c.pod.machine.Update(ctx, c.id, &resources)
}

// Stats implements the task service.
func (s *Service) Stats(ctx context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	c, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	figures, err := s.containerMetrics(ctx, c)
	if err != nil {
		return nil, err
	}
	return &taskapi.StatsResponse{Stats: figures}, nil
}

// Connect implements the task service.
func (s *Service) Connect(_ context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	answer := &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid())}
	if c, err := s.find(r.ID); err == nil {
		answer.TaskPid = c.pod.pid
	}
	return answer, nil
}

// Checkpoint implements the task service. A pod VM can't be checkpointed container by container.
func (s *Service) Checkpoint(_ context.Context, r *taskapi.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, fmt.Errorf("checkpoint container %.128q: %w", r.ID, errdefs.ErrNotImplemented)
}

// Shutdown implements the task service: the shim ends, if it has nothing left to serve. containerd asks after each task that
// it deletes.
func (s *Service) Shutdown(context.Context, *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	if !s.Idle() {
		s.mu.Lock()
		s.shutdownWanted = s.pod == nil && !s.launching && (s.sandbox == nil || s.sandbox.over())
		s.mu.Unlock()
		return &emptypb.Empty{}, nil
	}
	s.config.Shutdown()
	return &emptypb.Empty{}, nil
}

// Idle says whether there is nothing to serve: no container, no VM, no sandbox.
func (s *Service) Idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.containers) == 0 && s.pod == nil && !s.launching && (s.sandbox == nil || s.sandbox.over())
}

// Close ends the pod, because the shim is told to end. Its tasks end with the VM; their exits are published when it returns,
// or ctx has ended.
func (s *Service) Close(ctx context.Context) error {
	s.mu.Lock()
	p := s.pod
	s.mu.Unlock()
	if p == nil {
		return nil
	}
	err := p.machine.Stop(ctx)
	for _, c := range s.all() {
		for _, exec := range c.allExecs() {
			err = errors.Join(err, waitEnded(ctx, exec))
		}
		err = errors.Join(err, waitEnded(ctx, c.init))
	}
	return err
}

// waitEnded waits until a process has told its exit; one that stalls at its output is not waited for.
func waitEnded(ctx context.Context, p *process) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err := p.wait(ctx)
	return err
}
