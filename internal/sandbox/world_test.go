package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	guestapi "bulkhead.dev/bulkhead/api/guest"
	"bulkhead.dev/bulkhead/internal/guest/guesttest"
	"bulkhead.dev/bulkhead/internal/guestimage"
	"bulkhead.dev/bulkhead/internal/rootfs"
	"bulkhead.dev/bulkhead/internal/sandbox/sizing"
	"bulkhead.dev/bulkhead/internal/vmm"
	"bulkhead.dev/bulkhead/internal/vmm/vmmtest"
)

// world is a host in memory and in temporary directories, with one pod's guest.
type world struct {
	t     testing.TB
	agent *guesttest.Agent
	fake  *vmmtest.Fake
	deps  Deps
	spec  Spec

	mu      sync.Mutex
	cgroups map[string]bool
	taps    map[string]bool
	after   func(step string) error
	images  map[string]string
	addDisk func() error
	collect func(context.Context, rootfs.Limits) (rootfs.Collected, error)
	// loopback is that of the network namespace; all connections to it are to the guest's port.
	loopback *net.TCPListener
	port     uint16
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, agent: guesttest.New(), cgroups: map[string]bool{}, taps: map[string]bool{}, images: map[string]string{}}
	w.fake = vmmtest.NewFake(func(conn net.Conn) { w.agent.Serve(conn) })
	netns := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(netns, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w.deps = Deps{
		Driver: w.fake, Config: testConfig(t), Guest: guestimage.Image{Kernel: "kernel", Initramfs: "initramfs"},
		Acceleration: vmm.Emulated, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	w.deps.Config.VMM.UIDBase = 3_900_000_000 // nobody's, so that Cleanup ends nothing
	w.spec = Spec{
		ID: "pod", Namespace: "test", Dir: t.TempDir(), NetNS: netns, CgroupsPath: "/kubepods/podx/pod",
		Size: sizing.Size{VCPUs: 1, MemoryBytes: 256 << 20, ScratchBytes: 16 << 20},
	}
	return w
}

func (w *world) host() host {
	return host{
		cgroupPath: func(path string) (string, error) { return path, nil },
		makeCgroup: func(path string) (func() error, error) {
			return func() error { return w.set(w.cgroups, path, false) }, w.set(w.cgroups, path, true)
		},
		removeCgroup: func(path string) error { return w.set(w.cgroups, path, false) },
		attach: func(netns string) (*network, error) {
			return &network{
				interfaces: []*guestapi.Interface{{Name: "eth0", Mac: "02:00:00:00:00:01", Mtu: 1500, Addresses: []string{"10.0.0.2/24"}}},
				loopback:   w.loopback,
				port:       func(*net.TCPConn) (uint16, error) { return w.port, nil },
				close: func() error {
					if w.loopback != nil {
						w.loopback.Close()
					}
					return w.set(w.taps, netns, false)
				},
			}, w.set(w.taps, netns, true)
		},
		detach:  func(netns string) error { return w.set(w.taps, netns, false) },
		prepare: w.prepare,
		createScratch: func(_ context.Context, path string, size int64) (*os.File, error) {
			f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return nil, err
			}
			return f, f.Truncate(size)
		},
		collect: func(ctx context.Context, limits rootfs.Limits) (rootfs.Collected, error) {
			if w.collect == nil {
				return rootfs.Collected{}, nil
			}
			return w.collect(ctx, limits)
		},
		after: func(step string) error {
			if w.after == nil {
				return nil
			}
			return w.after(step)
		},
	}
}

func (w *world) set(of map[string]bool, key string, there bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if there {
		of[key] = true
	} else {
		delete(of, key)
	}
	return nil
}

// prepare takes mounts whose options are lower=NAME (an image, made when first used) and upperdir=DIR.
func (w *world) prepare(_ context.Context, mounts []rootfs.Mount) (*rootfs.RootFS, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	root := &rootfs.RootFS{}
	for _, o := range mounts[0].Options {
		switch {
		case len(o) > 9 && o[:9] == "upperdir=":
			root.Upper = o[9:]
		case len(o) > 6 && o[:6] == "lower=":
			path, ok := w.images[o[6:]]
			if !ok {
				path = filepath.Join(w.t.TempDir(), o[6:])
				if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
					return nil, err
				}
				w.images[o[6:]] = path
			}
			f, err := os.Open(path)
			if err != nil {
				return nil, err
			}
			root.Layers = append(root.Layers, f)
		}
	}
	return root, nil
}

// container is a container of two layers, of which base is in every one, with a writable directory of its own.
func (w *world) container(id string, args ...string) ContainerSpec {
	w.t.Helper()
	spec := readSpec(w.t, "ctr-run")
	spec.Process.Args = args
	source := filepath.Join(w.t.TempDir(), "data")
	if err := os.Mkdir(source, 0o700); err != nil {
		w.t.Fatal(err)
	}
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: source, Options: []string{"rbind", "rw"}})
	return ContainerSpec{
		ID: id, Spec: spec, Stdin: true, Stdout: true, Stderr: true,
		RootFS: []rootfs.Mount{{Type: "overlay", Options: []string{"lower=" + id, "lower=base", "upperdir=" + w.upper(id)}}},
	}
}

func (w *world) upper(id string) string {
	dir := filepath.Join(w.deps.Config.StateDir, "upper-"+id)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

func (w *world) start() *Sandbox {
	w.t.Helper()
	s, err := start(w.t.Context(), w.deps, w.spec, w.host())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { s.Stop(context.Background()) })
	return s
}

// create creates a container that is expected to come about.
func (w *world) create(s *Sandbox, id string, args ...string) *Process {
	w.t.Helper()
	p, err := s.CreateContainer(w.t.Context(), w.container(id, args...))
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// leaks lists what is left of the pod on the host.
func (w *world) leaks() []string {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var left []string
	for path := range w.cgroups {
		left = append(left, "cgroup "+path)
	}
	for netns := range w.taps {
		left = append(left, "tap in "+netns)
	}
	for _, id := range w.fake.Running() {
		left = append(left, "VM "+id)
	}
	uppers, _ := filepath.Glob(filepath.Join(w.deps.Config.StateDir, "upper-*"))
	for _, dir := range append(uppers, w.spec.Dir, uidDir(w.deps.Config.RunDir)) {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			w.t.Fatal(err)
		}
		for _, e := range entries {
			left = append(left, filepath.Join(dir, e.Name()))
		}
	}
	return left
}

func (w *world) checkClean() {
	w.t.Helper()
	if left := w.leaks(); len(left) > 0 {
		w.t.Errorf("left on the host: %q", left)
	}
}

// processDriver gives every VM of another driver a process: a sleep that stands for the VMM.
type processDriver struct{ vmm.Driver }

type processVM struct {
	vmm.VM
	cmd     *exec.Cmd
	started uint64
}

func (d processDriver) Start(ctx context.Context, spec vmm.Spec) (vmm.VM, error) {
	vm, err := d.Driver.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { // the VM ends with its process
		cmd.Wait()
		vm.Stop(context.Background())
	}()
	started, err := startTime(cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	return &processVM{vm, cmd, started}, nil
}

func (vm *processVM) PID() (int, uint64) { return vm.cmd.Process.Pid, vm.started }

func (vm *processVM) Stop(ctx context.Context) error {
	vm.cmd.Process.Kill()
	return vm.VM.Stop(ctx)
}

// crash plays the death of the process that started the sandbox: its locks are free, its goroutines go on but can't do
// harm, since nothing calls them.
func (s *Sandbox) crash() {
	if s.uid != nil {
		s.uid.file.Close()
	}
}

// refusal is an error for failpoints.
var errRefused = fmt.Errorf("refused by the test: %w", errdefs.ErrAborted)

// steps runs a construction once and returns the names of its steps.
func (w *world) steps(run func()) []string {
	var names []string
	w.after = func(step string) error {
		names = append(names, step)
		return nil
	}
	run()
	w.after = nil
	return slices.Clone(names)
}

// failAt makes the step fail, after it was done.
func (w *world) failAt(step string, err error) {
	w.after = func(s string) error {
		if s == step {
			return err
		}
		return nil
	}
}
