package task

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bulkhead.dev/bulkhead/internal/shim/podconfig"
)

// podSandbox is a sandbox of containerd's sandbox service.
//
//	created ──► starting ──► ready ──► stopped
//	   ▲           │ fails                ▲
//	   └───────────┘      created ────────┘
type podSandbox struct {
	id     string
	bundle string
	spec   *specs.Spec // for the VM
	files  *podFiles

	// The rest is guarded by the service's mu.
	state   sandboxState
	created time.Time
	exited  time.Time
	status  uint32 // of exit

	done chan struct{} // closed in stopped
}

type sandboxState int

const (
	sandboxCreated sandboxState = iota
	sandboxStarting
	sandboxReady
	sandboxStopped
)

func (s sandboxState) String() string {
	return [...]string{"created", "starting", "ready", "stopped"}[s]
}

func (b *podSandbox) over() bool { return b.state == sandboxStopped }

// finish makes the sandbox stopped. The caller holds the service's mu.
func (b *podSandbox) finish(status uint32) {
	if b.state == sandboxStopped {
		return
	}
	b.state, b.status, b.exited = sandboxStopped, status, time.Now()
	close(b.done)
}

// sandboxService is the Service as containerd's sandbox service.
type sandboxService struct{ *Service }

var _ sandboxapi.TTRPCSandboxService = sandboxService{}

// CreateSandbox makes a sandbox known; StartSandbox starts its VM.
func (s sandboxService) CreateSandbox(_ context.Context, r *sandboxapi.CreateSandboxRequest) (*sandboxapi.CreateSandboxResponse, error) {
	config, err := parseOptions(r)
	if err != nil {
		return nil, fmt.Errorf("create sandbox %.128q: %w", r.SandboxID, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sandbox != nil || s.pod != nil || s.launching {
		return nil, fmt.Errorf("create sandbox %s: this shim serves a pod: %w", r.SandboxID, errdefs.ErrAlreadyExists)
	}
	files, err := writePodFiles(r.BundlePath, r.SandboxID, config)
	if err != nil {
		return nil, fmt.Errorf("create sandbox %s: %w", r.SandboxID, err)
	}
	s.sandbox = &podSandbox{
		id: r.SandboxID, bundle: r.BundlePath, spec: sandboxSpec(r, config), files: files,
		created: time.Now(), done: make(chan struct{}),
	}
	return &sandboxapi.CreateSandboxResponse{}, nil
}

// parseOptions reads the kubelet's configuration of the pod. Other clients than CRI send none.
func parseOptions(r *sandboxapi.CreateSandboxRequest) (podconfig.Config, error) {
	if r.SandboxID == "" {
		return podconfig.Config{}, fmt.Errorf("no ID: %w", errdefs.ErrInvalidArgument)
	}
	o := r.Options
	if o == nil || o.TypeUrl == "" {
		return podconfig.Config{}, nil
	}
	if name := o.TypeUrl[strings.LastIndexByte(o.TypeUrl, '/')+1:]; name != podconfig.TypeURL {
		return podconfig.Config{}, fmt.Errorf("options of type %.200q can't be used; known is %s: %w", o.TypeUrl, podconfig.TypeURL, errdefs.ErrInvalidArgument)
	}
	return podconfig.Parse(o.Value)
}

// sandboxSpec writes what containerd knows of a sandbox as the OCI spec of a sandbox container, so that both kinds of pods
// go the same way from here.
func sandboxSpec(r *sandboxapi.CreateSandboxRequest, config podconfig.Config) *specs.Spec {
	spec := &specs.Spec{
		Version:     specs.Version,
		Hostname:    config.Hostname,
		Annotations: annotations(r, config),
		Linux: &specs.Linux{
			CgroupsPath: cgroupsPath(config.CgroupParent, r.SandboxID),
			Sysctl:      config.Sysctls,
			// A namespace that is not listed is the host's.
			Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.UTSNamespace}},
		},
	}
	for _, ns := range []struct {
		kind specs.LinuxNamespaceType
		mode podconfig.NamespaceMode
		path string
	}{
		{specs.NetworkNamespace, config.Network, r.NetnsPath},
		{specs.PIDNamespace, config.PID, ""},
		{specs.IPCNamespace, config.IPC, ""},
	} {
		if ns.mode != podconfig.Node {
			spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: ns.kind, Path: ns.path})
		}
	}
	return spec
}

// annotations are those of the pod and the call, and the figures that containerd writes as annotations when it makes a sandbox
// container.
func annotations(r *sandboxapi.CreateSandboxRequest, config podconfig.Config) map[string]string {
	all := make(map[string]string, len(config.Annotations)+len(r.Annotations)+5)
	for k, v := range config.Annotations {
		all[k] = v
	}
	for k, v := range r.Annotations {
		all[k] = v
	}
	all[AnnotationContainerType] = "sandbox"
	all[AnnotationSandboxID] = r.SandboxID
	// The overhead is left out: it is the VM's own need, which sizing knows.
	all["io.kubernetes.cri.sandbox-cpu-period"] = strconv.FormatInt(config.Resources.CPUPeriod, 10)
	all["io.kubernetes.cri.sandbox-cpu-quota"] = strconv.FormatInt(config.Resources.CPUQuota, 10)
	all["io.kubernetes.cri.sandbox-memory"] = strconv.FormatInt(config.Resources.MemoryBytes, 10)
	return all
}

// cgroupsPath names the sandbox's cgroup below the kubelet's, in the form of the kubelet's cgroup driver.
func cgroupsPath(parent, id string) string {
	if parent == "" {
		return ""
	}
	if base := filepath.Base(parent); strings.HasSuffix(base, ".slice") {
		return base + ":cri-containerd:" + id
	}
	return filepath.Join(parent, id)
}

// lookup finds the sandbox. The caller holds mu.
func (s sandboxService) lookup(id string) (*podSandbox, error) {
	if s.sandbox == nil || s.sandbox.id != id {
		return nil, fmt.Errorf("sandbox %.128q: %w", id, errdefs.ErrNotFound)
	}
	return s.sandbox, nil
}

// StartSandbox starts the VM.
func (s sandboxService) StartSandbox(ctx context.Context, r *sandboxapi.StartSandboxRequest) (*sandboxapi.StartSandboxResponse, error) {
	b, err := s.beginStart(r.SandboxID)
	if err != nil {
		return nil, fmt.Errorf("start sandbox: %w", err)
	}
	p, err := s.launch(ctx, podOfSandbox, Launch{ID: b.id, Bundle: b.bundle, ConfigPath: s.config.ConfigPath, Spec: b.spec})
	s.launched(p, err)
	if err != nil {
		return nil, fmt.Errorf("start sandbox %s: %w", b.id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return &sandboxapi.StartSandboxResponse{Pid: p.pid, CreatedAt: timestamppb.New(b.created)}, nil
}

func (s sandboxService) beginStart(id string) (*podSandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sandbox == nil {
		return nil, fmt.Errorf("sandbox %.128q is not created: %w", id, errdefs.ErrFailedPrecondition)
	}
	b, err := s.lookup(id)
	if err != nil {
		return nil, err
	}
	switch b.state {
	case sandboxCreated:
	case sandboxReady:
		return nil, fmt.Errorf("sandbox %s is ready and can't be started: %w", id, errdefs.ErrAlreadyExists)
	default:
		return nil, fmt.Errorf("sandbox %s is %s and can't be started: %w", id, b.state, errdefs.ErrFailedPrecondition)
	}
	b.state, s.launching = sandboxStarting, true
	return b, nil
}

// Platform tells what the sandbox's containers run on.
func (s sandboxService) Platform(_ context.Context, r *sandboxapi.PlatformRequest) (*sandboxapi.PlatformResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.lookup(r.SandboxID); err != nil {
		return nil, err
	}
	return &sandboxapi.PlatformResponse{Platform: &types.Platform{OS: "linux", Architecture: runtime.GOARCH}}, nil
}

// StopSandbox ends the VM and every container with it. It is idempotent.
func (s sandboxService) StopSandbox(ctx context.Context, r *sandboxapi.StopSandboxRequest) (*sandboxapi.StopSandboxResponse, error) {
	if r.TimeoutSecs > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(r.TimeoutSecs)*time.Second)
		defer cancel()
	}
	if err := s.stopSandbox(ctx, r.SandboxID); err != nil {
		return nil, fmt.Errorf("stop sandbox: %w", err)
	}
	return &sandboxapi.StopSandboxResponse{}, nil
}

func (s sandboxService) stopSandbox(ctx context.Context, id string) error {
	s.mu.Lock()
	b, err := s.lookup(id)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	p := s.pod
	switch {
	case b.state == sandboxStarting:
		err = fmt.Errorf("sandbox %s is %s and can't be stopped: %w", id, b.state, errdefs.ErrFailedPrecondition)
	case p == nil:
		b.finish(0)
	}
	s.mu.Unlock()
	if p == nil || err != nil {
		return err
	}
	if err := p.machine.Stop(ctx); err != nil {
		return fmt.Errorf("sandbox %s: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b.finish(0)
	if s.pod == p {
		s.pod = nil
	}
	return nil
}

// sandboxEnded is called when a pod's VM has ended: the sandbox that it was ends with it.
func (s *Service) sandboxEnded(p *pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.kind != podOfSandbox || s.sandbox == nil {
		return
	}
	status := uint32(0)
	if p.machine.Err() != nil {
		status = statusKilled
	}
	s.sandbox.finish(status)
	if s.pod == p {
		s.pod = nil
	}
}

// WaitSandbox answers when the sandbox has stopped.
func (s sandboxService) WaitSandbox(ctx context.Context, r *sandboxapi.WaitSandboxRequest) (*sandboxapi.WaitSandboxResponse, error) {
	s.mu.Lock()
	b, err := s.lookup(r.SandboxID)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case <-b.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for sandbox %s: %w", b.id, ctx.Err())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return &sandboxapi.WaitSandboxResponse{ExitStatus: b.status, ExitedAt: timestamppb.New(b.exited)}, nil
}

// SandboxStatus tells the state, in the words of CRI, and with verbose what runs.
func (s sandboxService) SandboxStatus(ctx context.Context, r *sandboxapi.SandboxStatusRequest) (*sandboxapi.SandboxStatusResponse, error) {
	s.mu.Lock()
	b, err := s.lookup(r.SandboxID)
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	answer := &sandboxapi.SandboxStatusResponse{SandboxID: b.id, State: "SANDBOX_NOTREADY", CreatedAt: timestamppb.New(b.created)}
	if b.state == sandboxReady {
		answer.State = "SANDBOX_READY"
	}
	if b.state == sandboxStopped {
		answer.ExitedAt = timestamppb.New(b.exited)
	}
	p := s.pod
	s.mu.Unlock()
	if p == nil {
		return answer, nil
	}
	answer.Pid = p.pid
	if r.Verbose {
		answer.Info = p.describe(ctx)
	}
	return answer, nil
}

// describe is what is shown to people about a VM.
func (p *pod) describe(ctx context.Context) map[string]string {
	info, err := p.machine.Info(ctx)
	if err != nil {
		return map[string]string{"error": err.Error()}
	}
	return map[string]string{
		"kernel":       info.KernelRelease,
		"agent":        info.AgentVersion,
		"acceleration": string(info.Acceleration),
		"bootTime":     info.BootTime.String(),
		"vcpus":        strconv.Itoa(info.Size.VCPUs),
		"memoryBytes":  strconv.FormatInt(info.Size.MemoryBytes, 10),
	}
}

// PingSandbox answers while the VM runs.
func (s sandboxService) PingSandbox(_ context.Context, r *sandboxapi.PingRequest) (*sandboxapi.PingResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, err := s.lookup(r.SandboxID)
	if err != nil {
		return nil, err
	}
	if b.state != sandboxReady {
		return nil, fmt.Errorf("sandbox %s is %s: %w", b.id, b.state, errdefs.ErrFailedPrecondition)
	}
	return &sandboxapi.PingResponse{}, nil
}

// ShutdownSandbox stops the sandbox and ends the shim.
func (s sandboxService) ShutdownSandbox(ctx context.Context, r *sandboxapi.ShutdownSandboxRequest) (*sandboxapi.ShutdownSandboxResponse, error) {
	// One that is unknown is no reason to stay: containerd asks this also after a create that failed.
	if err := s.stopSandbox(ctx, r.SandboxID); err != nil && !errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("shut down sandbox: %w", err)
	} else if err != nil && !s.Idle() {
		return nil, fmt.Errorf("shut down sandbox: %w", err)
	}
	s.config.Shutdown()
	return &sandboxapi.ShutdownSandboxResponse{}, nil
}

// SandboxMetrics sums up the figures of the sandbox's containers.
func (s sandboxService) SandboxMetrics(ctx context.Context, r *sandboxapi.SandboxMetricsRequest) (*sandboxapi.SandboxMetricsResponse, error) {
	s.mu.Lock()
	_, err := s.lookup(r.SandboxID)
	p := s.pod
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if p == nil {
		return nil, fmt.Errorf("figures of sandbox %s: its VM does not run: %w", r.SandboxID, errdefs.ErrFailedPrecondition)
	}
	figures, err := s.podMetrics(ctx, p)
	if err != nil {
		return nil, err
	}
	return &sandboxapi.SandboxMetricsResponse{Metrics: &types.Metric{Timestamp: timestamppb.Now(), ID: r.SandboxID, Data: figures}}, nil
}

// UpdateSandbox is optional; a VM can't change its size.
func (s sandboxService) UpdateSandbox(_ context.Context, r *sandboxapi.UpdateSandboxRequest) (*sandboxapi.UpdateSandboxResponse, error) {
	return nil, fmt.Errorf("update sandbox %.128q: %w", r.SandboxID, errdefs.ErrNotImplemented)
}
