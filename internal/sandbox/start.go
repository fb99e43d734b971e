package sandbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"os"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	guestapi "bulkhead.dev/bulkhead/api/guest"
	"bulkhead.dev/bulkhead/internal/guest/rpc"
	"bulkhead.dev/bulkhead/internal/vmm"
	"bulkhead.dev/bulkhead/internal/volume"
)

// volumesStream is the data stream on which the volumes are served; processes' streams have higher ids.
const volumesStream = 1

// Start starts the pod's VM and returns when its agent has configured it. On an error nothing is left on the host.
// Cancelling ctx afterwards does not end the sandbox.
//
// Errors: ErrInvalidArgument for a Spec that can't be, ErrAlreadyExists when Dir holds another sandbox's record,
// ErrFailedPrecondition for what the host lacks, ErrUnavailable when the guest died or did not answer in the configured
// boot timeout (with the escaped end of its console), ErrResourceExhausted when no uid is free.
func Start(ctx context.Context, deps Deps, spec Spec) (*Sandbox, error) {
	return start(ctx, deps, spec, realHost(deps))
}

func start(ctx context.Context, deps Deps, spec Spec, h host) (*Sandbox, error) {
	if err := checkStart(&deps, &spec); err != nil {
		return nil, fmt.Errorf("start sandbox %.140q: %w", spec.ID, err)
	}
	s := &Sandbox{
		deps: deps, spec: spec, host: h,
		volumes:    volume.NewServer(),
		events:     make(chan Event, maxEvents),
		done:       make(chan struct{}),
		containers: map[string]*container{},
	}
	s.exports = newExports(s.volumes)
	s.streams.Store(volumesStream)
	s.life, s.end = context.WithCancel(context.Background())
	s.forwarding, s.endForwarding = context.WithCancel(s.life)
	steps := []step{
		{"record", s.makeRecord, s.removeRecord, true},
		{"uid", s.takeUID, s.releaseUID, false},
		{"cgroup", s.makeCgroup, s.removeCgroup, false},
		{"network", s.attachNetwork, s.detachNetwork, false},
		{"vmm", s.startVM, s.stopVM, false},
		{"channel", s.openChannel, s.closeChannel, false},
		{"hello", s.sayHello, nil, false},
		{"volumes", s.serveVolumes, s.closeVolumes, false},
		{"configure", s.configure, nil, false},
	}
	if err := s.undo.run(ctx, h.after, steps); err != nil {
		if errors.Is(err, errCrash) {
			return s, err
		}
		s.end()
		return nil, fmt.Errorf("start sandbox %s: %w", spec.ID, err)
	}
	go s.readEvents()
	s.servePorts()
	return s, nil
}

// idPattern is what containerd takes for an id, in short. It has no way to be a path.
var idPattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

func checkID(kind, id string) error {
	if !idPattern.MatchString(id) {
		return fmt.Errorf("%s id %.140q is not 1 to 128 characters of [a-zA-Z0-9_.-]: %w", kind, id, errdefs.ErrInvalidArgument)
	}
	return nil
}

// checkStart checks what is cheap to check before anything is made, and fills in defaults.
func checkStart(deps *Deps, spec *Spec) error {
	if err := checkID("sandbox", spec.ID); err != nil {
		return err
	}
	if err := checkSysctls(spec.Sysctls); err != nil {
		return err
	}
	if deps.Logger == nil {
		deps.Logger = slog.Default()
	}
	if spec.Hostname == "" {
		spec.Hostname = strings.TrimRight(spec.ID[:min(len(spec.ID), 63)], "-_.")
	}
	if len(spec.Hostname) > 64 {
		return fmt.Errorf("host name %.100q has more than 64 characters: %w", spec.Hostname, errdefs.ErrInvalidArgument)
	}
	if spec.NetNS != "" {
		if _, err := os.Stat(spec.NetNS); err != nil {
			return fmt.Errorf("network namespace: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func (s *Sandbox) makeRecord(context.Context) (err error) {
	s.rec, err = newRecorder(s.spec.Dir, s.spec.ID, s.spec.Namespace)
	return err
}

func (s *Sandbox) removeRecord(context.Context) error { return s.rec.remove() }

func (s *Sandbox) takeUID(context.Context) error {
	c := s.deps.Config
	lock, err := takeUID(uidDir(c.RunDir), c.VMM.UIDBase, c.VMM.UIDCount, s.spec.Dir)
	if err != nil {
		return err
	}
	if err := s.rec.update(func(r *record) { r.UID = lock.uid }); err != nil {
		return errors.Join(err, lock.release())
	}
	s.uid = lock
	return nil
}

func (s *Sandbox) releaseUID(context.Context) error { return s.uid.release() }

func (s *Sandbox) makeCgroup(context.Context) error {
	if s.spec.CgroupsPath == "" {
		return nil
	}
	name, err := s.host.cgroupPath(vmmCgroup(s.spec.CgroupsPath, s.spec.ID))
	if err != nil {
		return err
	}
	if err := s.rec.update(func(r *record) { r.Cgroup = name }); err != nil {
		return err
	}
	remove, err := s.host.makeCgroup(name)
	if err != nil {
		return err
	}
	s.cgroup, s.dropCgroup = name, remove
	return nil
}

func (s *Sandbox) removeCgroup(context.Context) error {
	if s.dropCgroup == nil {
		return nil
	}
	return s.dropCgroup()
}

// vmmCgroup is where the VMM of the container with this cgroupsPath goes: beside it, so that a pod's limits hold for
// the VMM and neither the kubelet, which knows the pod's cgroup, nor cAdvisor, which knows containers by their ids,
// takes it for something of its own. Both forms of cgroupsPath stay what they are.
func vmmCgroup(cgroupsPath, id string) string {
	if slice, rest, ok := strings.Cut(cgroupsPath, ":"); ok && strings.HasSuffix(slice, ".slice") && strings.Contains(rest, ":") {
		return slice + ":bulkhead:" + id
	}
	return path.Join("/", path.Dir(path.Join("/", cgroupsPath)), "bulkhead-"+id)
}

func (s *Sandbox) attachNetwork(context.Context) error {
	if s.spec.NetNS == "" {
		return nil
	}
	if err := s.rec.update(func(r *record) { r.NetNS = s.spec.NetNS }); err != nil {
		return err
	}
	link, err := s.host.attach(s.spec.NetNS)
	if err != nil {
		return err
	}
	s.net = link
	return nil
}

func (s *Sandbox) detachNetwork(context.Context) error {
	if s.net == nil {
		return nil
	}
	return s.net.close()
}

func (s *Sandbox) startVM(ctx context.Context) error {
	spec := vmm.Spec{
		ID:           vmID(s.spec.ID),
		VCPUs:        s.spec.Size.VCPUs,
		MemoryBytes:  s.spec.Size.MemoryBytes,
		Kernel:       s.deps.Guest.Kernel,
		Initramfs:    s.deps.Guest.Initramfs,
		KernelArgs:   s.deps.Config.Guest.KernelArgs,
		Acceleration: s.deps.Acceleration,
		Jail:         vmm.Jail{UID: s.uid.uid, GID: s.uid.uid, Cgroup: s.cgroup},
	}
	if s.net != nil {
		spec.NICs = s.net.nics
	}
	s.booted = time.Now()
	vm, err := s.deps.Driver.Start(ctx, spec)
	if err != nil {
		return err
	}
	// A crash before the next line leaves a VMM that the record doesn't name; Cleanup finds it by its uid.
	if p, ok := vm.(vmm.Process); ok {
		pid, started := p.PID()
		if err := s.rec.update(func(r *record) { r.VMM = &process{PID: pid, StartTime: started} }); err != nil {
			undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
			defer cancel()
			return errors.Join(err, vm.Stop(undoCtx))
		}
	}
	s.vm = vm
	s.disks = newDisks(vm)
	return nil
}

func (s *Sandbox) stopVM(ctx context.Context) error { return s.vm.Stop(ctx) }

// vmID shortens an id to what a VM can have, and keeps it unique.
func vmID(id string) string {
	const most = 64
	if len(id) <= most {
		return id
	}
	hash := fnv.New64a()
	hash.Write([]byte(id))
	return fmt.Sprintf("%s-%016x", id[:most-17], hash.Sum64())
}

func (s *Sandbox) openChannel(ctx context.Context) error {
	conn, err := s.vm.Dial(ctx)
	if err != nil {
		return err
	}
	s.channel, err = rpc.NewHost(conn)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	s.agent = s.channel.Agent()
	go s.watch()
	return nil
}

// closeChannel ends the session. The VM is marked as being stopped first, lest the watcher takes it for the guest's
// doing, and is ended by its own step.
func (s *Sandbox) closeChannel(context.Context) error {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	s.channel.Close() // an error says that it has ended already
	return nil
}

// bootCall is call, within the configured boot timeout.
func (s *Sandbox) bootCall(ctx context.Context, what string, f func(context.Context) error) error {
	timeout := s.deps.Config.Guest.BootTimeout
	inner, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := s.call(inner, what, f)
	// The guest is told the deadline, and may be the first to notice it; it may be the caller's, too.
	ours, _ := inner.Deadline()
	callers, has := ctx.Deadline()
	late := errors.Is(err, context.DeadlineExceeded) && (!has || callers.After(ours))
	if late && s.ended() == nil {
		reason := fmt.Errorf("the guest did not answer within %s (key guest.boot_timeout): %w", timeout, errdefs.ErrUnavailable)
		return fmt.Errorf("%s: %w", what, withConsole(reason, s.vm))
	}
	return err
}

func (s *Sandbox) sayHello(ctx context.Context) error {
	return s.bootCall(ctx, "wait for the guest's agent", func(ctx context.Context) error {
		answer, err := s.agent.Hello(ctx, &guestapi.HelloRequest{Protocol: guestapi.Version})
		if err != nil {
			return err
		}
		if answer.Protocol != guestapi.Version {
			return fmt.Errorf("the guest speaks version %d of the protocol, not %d: %w", answer.Protocol, guestapi.Version, errdefs.ErrFailedPrecondition)
		}
		s.info = Info{
			KernelRelease:        bounded(answer.KernelRelease),
			AgentVersion:         bounded(answer.AgentVersion),
			BootTime:             time.Since(s.booted),
			MemoryTotalBytes:     answer.MemoryTotalBytes,
			MemoryAvailableBytes: answer.MemoryAvailableBytes,
			Acceleration:         s.deps.Acceleration,
			Size:                 s.spec.Size,
		}
		return nil
	})
}

func (s *Sandbox) serveVolumes(ctx context.Context) error {
	conn, err := s.channel.Open(ctx, volumesStream)
	if err != nil {
		return err
	}
	go func() {
		if err := s.volumes.Serve(conn); err != nil && s.life.Err() == nil {
			s.deps.Logger.Warn("volumes are not served any more", "sandbox", s.spec.ID, "error", err)
		}
	}()
	return nil
}

func (s *Sandbox) closeVolumes(context.Context) error { return s.volumes.Close() }

func (s *Sandbox) configure(ctx context.Context) error {
	request := &guestapi.ConfigureRequest{
		Entropy:       make([]byte, 64),
		Hostname:      s.spec.Hostname,
		Sysctls:       s.spec.Sysctls,
		ShmBytes:      s.spec.ShmBytes,
		VolumesStream: volumesStream,
	}
	rand.Read(request.Entropy)
	if s.net != nil {
		request.Interfaces, request.Routes, request.Neighbours = s.net.interfaces, s.net.routes, s.net.neighbours
	}
	return s.bootCall(ctx, "configure the guest", func(ctx context.Context) error {
		request.UnixNanos = time.Now().UnixNano()
		_, err := s.agent.Configure(ctx, request)
		return err
	})
}
