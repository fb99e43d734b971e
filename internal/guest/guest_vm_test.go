//go:build vm

package guest_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	guestapi "bulkhead.dev/bulkhead/api/guest"
	"bulkhead.dev/bulkhead/internal/guest/rpc"
	"bulkhead.dev/bulkhead/internal/guestimage"
	"bulkhead.dev/bulkhead/internal/vmm"
	"bulkhead.dev/bulkhead/internal/vmm/jail"
	"bulkhead.dev/bulkhead/internal/vmm/qemu"
)

// guestDir holds a guest image with this package's agent.
var guestDir string

func TestMain(m *testing.M) {
	jail.Main()
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "bulkhead-guest-test")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		// The VMM's user must be able to read the image.
		if err := os.Chmod(dir, 0o755); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if err := buildGuest(dir); err != nil {
			fmt.Fprintln(os.Stderr, "building the guest:", err)
			return 1
		}
		return m.Run()
	}())
}

func buildGuest(dir string) error {
	agent := filepath.Join(dir, "bulkhead-guest")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", agent, "bulkhead.dev/bulkhead/cmd/bulkhead-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	guestDir = filepath.Join(dir, "guest")
	return guestimage.Build(context.Background(), guestimage.Options{
		Dir: guestDir, Agent: agent, Cache: filepath.Join(os.TempDir(), "bulkhead-guest-packages"),
	})
}

// machine is a running VM with the agent in it.
type machine struct {
	t     *testing.T
	ctx   context.Context
	vm    vmm.VM
	host  *rpc.Host
	agent guestapi.AgentService
	hello *guestapi.HelloResponse

	streams atomic.Uint64
	disks   map[string]vmm.Address // by image file
}

var machines atomic.Int64

// boot starts a VM and configures it.
func boot(t *testing.T, memory int64) *machine {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	image, err := guestimage.Open(guestDir)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	vm, err := qemu.New(qemu.Options{}).Start(ctx, vmm.Spec{
		ID: fmt.Sprintf("guest-test-%d-%d", os.Getpid(), machines.Add(1)), VCPUs: 1, MemoryBytes: memory,
		Kernel: image.Kernel, Initramfs: image.Initramfs, Acceleration: vmm.Emulated,
		Jail: vmm.Jail{UID: 2000301, GID: 2000301},
	})
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, ctx: ctx, vm: vm, disks: make(map[string]vmm.Address)}
	t.Cleanup(func() {
		if t.Failed() {
			if c, ok := vm.(vmm.Console); ok {
				t.Logf("console: %q", c.ConsoleTail())
			}
		}
		vm.Stop(context.Background())
	})
	conn, err := vm.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if m.host, err = rpc.NewHost(conn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.host.Close() })
	m.agent = m.host.Agent()
	if m.hello, err = m.agent.Hello(ctx, &guestapi.HelloRequest{Protocol: guestapi.Version}); err != nil {
		t.Fatal(err)
	}
	t.Logf("VM start to Hello %v (%v of the processor); in the guest %v; memory %d of %d MiB available", time.Since(start).Round(time.Millisecond),
		m.cpu(), time.Duration(m.hello.BootNanos).Round(time.Millisecond), m.hello.MemoryAvailableBytes>>20, m.hello.MemoryTotalBytes>>20)
	entropy := make([]byte, 64)
	rand.Read(entropy)
	took := m.stopwatch()
	if _, err := m.agent.Configure(ctx, &guestapi.ConfigureRequest{
		UnixNanos: time.Now().UnixNano(), Entropy: entropy, Hostname: "pod",
		Sysctls: map[string]string{"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"},
	}); err != nil {
		t.Fatal(err)
	}
	t.Log("Configure", took())
	return m
}

// stopwatch measures a step in wall time and, since test machines are noisy, in the VMM's processor time.
func (m *machine) stopwatch() func() string {
	start, cpu := time.Now(), m.cpu()
	return func() string {
		return fmt.Sprintf("%v (%v of the processor)", time.Since(start).Round(time.Millisecond), m.cpu()-cpu)
	}
}

// cpu returns the processor time that the VMM has used.
func (m *machine) cpu() time.Duration {
	stats, err := m.vm.Stats(m.ctx)
	if err != nil {
		return 0
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", stats.PID))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	var ticks time.Duration
	for _, f := range fields[11:13] {
		n, _ := strconv.Atoi(f)
		ticks += time.Duration(n)
	}
	return ticks * (time.Second / 100)
}

// attach adds a disk image to the VM, once.
func (m *machine) attach(image, fstype string, readonly bool) *guestapi.Disk {
	m.t.Helper()
	address, ok := m.disks[image]
	if !ok {
		mode := os.O_RDWR
		if readonly {
			mode = os.O_RDONLY
		}
		f, err := os.OpenFile(image, mode, 0)
		if err != nil {
			m.t.Fatal(err)
		}
		defer f.Close()
		if address, err = m.vm.AddDisk(m.ctx, vmm.Disk{File: f, ReadOnly: readonly}); err != nil {
			m.t.Fatal(err)
		}
		m.disks[image] = address
	}
	return &guestapi.Disk{Address: string(address), Fstype: fstype, Readonly: readonly}
}

// detach takes a disk away again. The guest must have let go of it.
func (m *machine) detach(image string) {
	m.t.Helper()
	if err := m.vm.RemoveDisk(m.ctx, m.disks[image]); err != nil {
		m.t.Error(err)
	}
	delete(m.disks, image)
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

var baseOnce = sync.OnceValues(func() (string, error) {
	dir := filepath.Dir(guestDir)
	root := filepath.Join(dir, "root")
	for _, d := range []string{"bin", "tmp", "etc", "proc", "sys", "dev", "run"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return "", err
		}
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return "", fmt.Errorf("a static busybox is needed (package busybox-static): %w", err)
	}
	b, err := os.ReadFile(busybox)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755); err != nil {
		return "", err
	}
	for _, a := range strings.Fields("sh cat echo sleep ls id stat head tail wc ps kill mount dd touch mkdir rm sha256sum uname hostname stty tty test true false seq yes mknod nohup env sync grep df free ip od chmod") {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", a)); err != nil {
			return "", err
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/passwd"), []byte("root:x:0:0::/:/bin/sh\n"), 0o644); err != nil {
		return "", err
	}
	image := filepath.Join(dir, "base.erofs")
	if out, err := exec.Command("mkfs.erofs", image, root).CombinedOutput(); err != nil {
		return "", fmt.Errorf("mkfs.erofs: %w: %s", err, out)
	}
	return image, nil
})

// base returns an image with BusyBox.
func base(t *testing.T) string {
	t.Helper()
	image, err := baseOnce()
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// layer makes an EROFS image of files.
func layer(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(dir, "layer.erofs")
	run(t, "mkfs.erofs", image, root)
	return image
}

func scratch(t *testing.T) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "scratch.ext4")
	run(t, "mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=1", image, "256M")
	return image
}

func capabilities() *specs.LinuxCapabilities {
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_KILL"}
	return &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
}

func process(args ...string) *specs.Process {
	return &specs.Process{Args: args, Env: []string{"PATH=/bin", "HOME=/"}, Cwd: "/", Capabilities: capabilities(), NoNewPrivileges: true}
}

func baseSpec(args ...string) *specs.Spec {
	return &specs.Spec{
		Version: "1.0.2", Process: process(args...), Root: &specs.Root{},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}},
			Resources:   &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
		},
	}
}

func ptr[T any](v T) *T { return &v }

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// proc is a process in the guest with its streams.
type proc struct {
	m               *machine
	container, exec string
	in, out, errs   net.Conn
}

func (m *machine) stdio(terminal bool) (*guestapi.Stdio, *proc) {
	m.t.Helper()
	s, p := &guestapi.Stdio{Terminal: terminal}, &proc{m: m}
	open := func(id *uint64) net.Conn {
		*id = m.streams.Add(1)
		c, err := m.host.Open(m.ctx, *id)
		if err != nil {
			m.t.Fatal(err)
		}
		return c
	}
	p.in, p.out = open(&s.Stdin), open(&s.Stdout)
	if terminal {
		s.Width, s.Height = 80, 24
	} else {
		p.errs = open(&s.Stderr)
	}
	return s, p
}

func (m *machine) rootfs() *guestapi.RootFS {
	m.t.Helper()
	return &guestapi.RootFS{
		Layers:  []*guestapi.Disk{m.attach(base(m.t), "erofs", true)},
		Scratch: m.attach(scratch(m.t), "ext4", false),
	}
}

// create creates a container.
func (m *machine) create(id string, spec *specs.Spec, root *guestapi.RootFS, mounts ...*guestapi.Mount) *proc {
	m.t.Helper()
	stdio, p := m.stdio(spec.Process.Terminal)
	p.container = id
	took := m.stopwatch()
	if _, err := m.agent.CreateContainer(m.ctx, &guestapi.CreateContainerRequest{
		Id: id, Spec: marshal(m.t, spec), Rootfs: root, Stdio: stdio, Mounts: mounts,
	}); err != nil {
		m.t.Fatal(err)
	}
	m.t.Log("CreateContainer", id, took())
	return p
}

func (m *machine) newExec(container, id string, process *specs.Process) (*proc, error) {
	m.t.Helper()
	stdio, p := m.stdio(process.Terminal)
	p.container, p.exec = container, id
	_, err := m.agent.CreateExec(m.ctx, &guestapi.CreateExecRequest{Container: container, Exec: id, Process: marshal(m.t, process), Stdio: stdio})
	return p, err
}

func (p *proc) start() error {
	_, err := p.m.agent.Start(p.m.ctx, &guestapi.ProcessRequest{Container: p.container, Exec: p.exec})
	return err
}

func (p *proc) wait() uint32 {
	p.m.t.Helper()
	w, err := p.m.agent.Wait(p.m.ctx, &guestapi.ProcessRequest{Container: p.container, Exec: p.exec})
	if err != nil {
		p.m.t.Fatal(err)
	}
	return w.Status
}

func (p *proc) signal(n uint32, all bool) error {
	_, err := p.m.agent.Signal(p.m.ctx, &guestapi.SignalRequest{Container: p.container, Exec: p.exec, Signal: n, All: all})
	return err
}

func (p *proc) delete() error {
	_, err := p.m.agent.Delete(p.m.ctx, &guestapi.ProcessRequest{Container: p.container, Exec: p.exec})
	return err
}

func (p *proc) output() string {
	b, err := io.ReadAll(p.out)
	if err != nil {
		p.m.t.Error(err)
	}
	return string(b)
}

// sh runs a script in a container and returns its output and status.
func (m *machine) sh(container, script string) (string, uint32) {
	m.t.Helper()
	p, err := m.newExec(container, fmt.Sprintf("sh%d", m.streams.Add(1)), process("sh", "-c", script))
	if err != nil {
		m.t.Fatal(err)
	}
	if err := p.start(); err != nil {
		m.t.Fatal(err)
	}
	p.in.Close()
	var errs []byte
	var wg sync.WaitGroup
	wg.Go(func() { errs, _ = io.ReadAll(p.errs) })
	out := p.output()
	wg.Wait()
	status := p.wait()
	if err := p.delete(); err != nil {
		m.t.Error(err)
	}
	return out + string(errs), status
}

// running creates and starts a container that sleeps.
func (m *machine) running(id string, spec *specs.Spec, root *guestapi.RootFS, mounts ...*guestapi.Mount) *proc {
	m.t.Helper()
	p := m.create(id, spec, root, mounts...)
	if err := p.start(); err != nil {
		m.t.Fatal(err)
	}
	return p
}

func (m *machine) end(p *proc) {
	m.t.Helper()
	if err := p.signal(9, true); err != nil {
		m.t.Error(err)
	}
	p.wait()
	if err := p.delete(); err != nil {
		m.t.Error(err)
	}
}

func TestLifecycleInVM(t *testing.T) {
	m := boot(t, 256<<20)
	root := m.rootfs()
	p := m.create("c1", baseSpec("sh", "-c", "echo out; echo err >&2; cat; exit 7"), root)
	took := m.stopwatch()
	if err := p.start(); err != nil {
		t.Fatal(err)
	}
	t.Log("Start", took())
	fmt.Fprint(p.in, "typed\n")
	p.in.Close()
	if got := p.output(); got != "out\ntyped\n" {
		t.Errorf("stdout %q", got)
	}
	t.Log("Start to end of output", took())
	if b, _ := io.ReadAll(p.errs); string(b) != "err\n" {
		t.Errorf("stderr %q", b)
	}
	if got := p.wait(); got != 7 {
		t.Errorf("status %d", got)
	}
	if err := p.signal(9, false); !errdefs.IsNotFound(err) {
		t.Errorf("signal after the end: %v", err)
	}
	if err := p.delete(); err != nil {
		t.Fatal(err)
	}
	if err := p.delete(); !errdefs.IsNotFound(err) {
		t.Errorf("second delete: %v", err)
	}
	for image := range m.disks {
		m.detach(image)
	}
	// The same addresses again, with other disks.
	for range 2 {
		root = m.rootfs()
		p = m.running("c1", baseSpec("sh", "-c", "echo again > /file; cat /file"), root)
		if got := p.output(); got != "again\n" {
			t.Errorf("stdout %q", got)
		}
		p.wait()
		if err := p.delete(); err != nil {
			t.Fatal(err)
		}
		for image := range m.disks {
			m.detach(image)
		}
	}
}

func TestContainersInVM(t *testing.T) {
	m := boot(t, 256<<20)
	spec := baseSpec("sleep", "1000")
	main := m.running("main", spec, m.rootfs())

	t.Run("exec", func(t *testing.T) {
		for range 8 {
			took := m.stopwatch()
			if out, status := m.sh("main", "echo hi; exit 3"); out != "hi\n" || status != 3 {
				t.Errorf("%q, %d", out, status)
			}
			t.Log("exec to output and status", took())
		}
	})
	t.Run("isolation", func(t *testing.T) {
		for script, want := range map[string]string{
			"hostname":                               "pod\n",
			"cat /proc/1/comm":                       "sleep\n",
			"ls /dev/vport* /dev/sd* 2>/dev/null":    "",
			"id -u":                                  "0\n",
			"cat /proc/sys/net/ipv4/ip_forward":      "1\n",
			"ls /proc/1/root/init 2>/dev/null":       "",
			"grep -c . /proc/self/oom_score_adj":     "1\n",
			"cat /proc/self/oom_score_adj":           "0\n",
			"touch /proc/sys/x 2>/dev/null; echo $?": "1\n",
			"cat /proc/self/cgroup":                  "0::/\n",
			"ip link show lo | grep -c UP":           "1\n",
		} {
			if out, _ := m.sh("main", script); out != want {
				t.Errorf("%s: %q, want %q", script, out, want)
			}
		}
		// No device but the allowed ones, even for who can make nodes.
		if out, status := m.sh("main", "mknod /tmp/vport c 244 1 && cat /tmp/vport"); status == 0 || !strings.Contains(out, "not permitted") {
			t.Errorf("channel device: %q, %d", out, status)
		}
	})
	t.Run("20 MiB", func(t *testing.T) {
		p, err := m.newExec("main", "cat", process("cat"))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
		data := make([]byte, 20<<20)
		rand.Read(data)
		took := m.stopwatch()
		go func() {
			p.in.Write(data)
			p.in.Close()
		}()
		sum := sha256.New()
		n, _ := io.Copy(sum, p.out)
		want := sha256.Sum256(data)
		if n != int64(len(data)) || !bytes.Equal(sum.Sum(nil), want[:]) {
			t.Errorf("%d bytes came back", n)
		}
		t.Log("20 MiB there and back", took())
		if status := p.wait(); status != 0 {
			t.Errorf("status %d", status)
		}
		p.delete()
	})
	t.Run("output of what ends at once", func(t *testing.T) {
		for range 5 {
			if out, _ := m.sh("main", "seq 1 20000"); len(out) != 108894 {
				t.Errorf("%d bytes", len(out))
			}
		}
	})
	t.Run("background process holds the output", func(t *testing.T) {
		took := m.stopwatch()
		if out, status := m.sh("main", "sleep 500 & echo x"); out != "x\n" || status != 0 {
			t.Errorf("%q, %d", out, status)
		}
		t.Log("took", took())
	})
	t.Run("terminal", func(t *testing.T) {
		process := process("sh", "-c", "tty; stty size; read x; echo got $x; stty size")
		process.Terminal = true
		p, err := m.newExec("main", "tty", process)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1024)
		var seen string
		if err := p.out.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		for !strings.Contains(seen, "24 80") {
			n, err := p.out.Read(buf)
			if err != nil {
				t.Fatalf("%q, %v", seen, err)
			}
			seen += string(buf[:n])
		}
		if _, err := m.agent.ResizePty(m.ctx, &guestapi.ResizePtyRequest{Container: "main", Exec: "tty", Width: 100, Height: 40}); err != nil {
			t.Error(err)
		}
		fmt.Fprint(p.in, "line\r")
		out := p.output()
		if !strings.Contains(out, "got line") || !strings.Contains(out, "40 100") {
			t.Errorf("%q", seen+out)
		}
		if status := p.wait(); status != 0 {
			t.Errorf("status %d", status)
		}
		if err := p.delete(); err != nil {
			t.Error(err)
		}
	})
	t.Run("exec errors", func(t *testing.T) {
		noCwd, noUser := process("true"), process("true")
		noCwd.Cwd = "/nonesuch"
		noUser.User.UID = 1 << 31
		for name, tc := range map[string]struct {
			process *specs.Process
			is      func(error) bool
		}{
			"missing":       {process("nonesuch"), errdefs.IsNotFound},
			"missing path":  {process("/bin/nonesuch"), errdefs.IsNotFound},
			"directory cwd": {noCwd, errdefs.IsInvalidArgument},
			"not a program": {process("/etc/passwd"), errdefs.IsPermissionDenied},
		} {
			p, err := m.newExec("main", "bad", tc.process)
			if err != nil {
				t.Fatal(err)
			}
			err = p.start()
			if !tc.is(err) {
				t.Errorf("%s: %v (%T)", name, err, err)
			} else {
				t.Logf("%s: %v", name, err)
			}
			if err := p.delete(); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("signals", func(t *testing.T) {
		p, err := m.newExec("main", "victim", process("sleep", "1000"))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
		pids, err := m.agent.Pids(m.ctx, &guestapi.ContainerRequest{Container: "main"})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(pids.Processes, func(p *guestapi.PidInfo) bool { return p.Exec == "victim" }) || len(pids.Processes) < 2 {
			t.Errorf("processes: %v", pids.Processes)
		}
		if err := p.delete(); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("delete while running: %v", err)
		}
		if err := p.signal(15, false); err != nil {
			t.Error(err)
		}
		if status := p.wait(); status != 128+15 {
			t.Errorf("status %d", status)
		}
		p.delete()
	})
	t.Run("pause", func(t *testing.T) {
		if _, err := m.agent.Pause(m.ctx, &guestapi.ContainerRequest{Container: "main"}); err != nil {
			t.Fatal(err)
		}
		if _, err := m.agent.Resume(m.ctx, &guestapi.ContainerRequest{Container: "main"}); err != nil {
			t.Fatal(err)
		}
		if out, _ := m.sh("main", "echo on"); out != "on\n" {
			t.Errorf("after resume: %q", out)
		}
	})
	t.Run("update and stats", func(t *testing.T) {
		limit := int64(64 << 20)
		quota, period := int64(50_000), uint64(100_000)
		if _, err := m.agent.Update(m.ctx, &guestapi.UpdateRequest{Container: "main", Resources: marshal(t, specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: &limit}, CPU: &specs.LinuxCPU{Quota: &quota, Period: &period},
		})}); err != nil {
			t.Fatal(err)
		}
		m.sh("main", "dd if=/dev/zero of=/file bs=1M count=8 2>/dev/null; sync")
		s, err := m.agent.Stats(m.ctx, &guestapi.ContainerRequest{Container: "main"})
		if err != nil {
			t.Fatal(err)
		}
		if s.MemoryLimit != uint64(limit) || s.MemoryUsage == 0 || s.CpuUsageUsec == 0 || s.PidsCurrent == 0 || s.RootfsUsedBytes < 8<<20 || s.RootfsUsedInodes == 0 || s.MemoryPeak == 0 {
			t.Errorf("%v", s)
		}
		tiny := int64(1 << 12)
		if _, err := m.agent.Update(m.ctx, &guestapi.UpdateRequest{Container: "main", Resources: marshal(t, specs.LinuxResources{
			Memory: &specs.LinuxMemory{Limit: &tiny},
		})}); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("limit below usage: %v", err)
		}
	})
	t.Run("second container", func(t *testing.T) {
		second := baseSpec("sleep", "1000")
		second.Root.Readonly = true
		second.Mounts = append(second.Mounts,
			specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/run/bulkhead/mounts/shm", Options: []string{"rbind"}},
			specs.Mount{Destination: "/tmp", Type: "bind", Source: "/run/bulkhead/mounts/data", Options: []string{"rbind", "rw"}})
		p := m.running("second", second, m.rootfs(), &guestapi.Mount{Name: "shm", Type: "shm"},
			&guestapi.Mount{Name: "data", Type: "tmpfs", Options: []string{"size=1m", "nosuid"}})
		if out, status := m.sh("second", "touch /x"); status == 0 || !strings.Contains(out, "Read-only") {
			t.Errorf("writing to a read-only root: %q, %d", out, status)
		}
		if out, status := m.sh("second", "echo a > /tmp/a && echo b > /dev/shm/b && cat /tmp/a /dev/shm/b"); status != 0 || out != "a\nb\n" {
			t.Errorf("mounts: %q, %d", out, status)
		}
		m.end(p)
	})
	t.Run("read-only view", func(t *testing.T) {
		p := m.running("view", baseSpec("sh", "-c", "touch /x; echo $?"), &guestapi.RootFS{Layers: []*guestapi.Disk{m.attach(base(t), "erofs", true)}})
		if got := p.output(); got != "1\n" {
			t.Errorf("%q", got)
		}
		m.end(p)
	})
	t.Run("refused", func(t *testing.T) {
		for name, spoil := range map[string]func(*specs.Spec){
			"agent's pids":   func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "/proc/1/ns/pid" },
			"agent's thread": func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "/proc/2/ns/pid" },
			"bind of the guest": func(s *specs.Spec) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/"})
			},
			"hook":    func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/true"}}} },
			"no args": func(s *specs.Spec) { s.Process.Args = nil },
		} {
			spec := baseSpec("true")
			spoil(spec)
			_, err := m.agent.CreateContainer(m.ctx, &guestapi.CreateContainerRequest{
				Id: "refused", Spec: marshal(t, spec), Rootfs: &guestapi.RootFS{Layers: []*guestapi.Disk{m.attach(base(t), "erofs", true)}},
			})
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s: %v", name, err)
			}
		}
		spec := baseSpec("nonesuch")
		_, err := m.agent.CreateContainer(m.ctx, &guestapi.CreateContainerRequest{
			Id: "refused", Spec: marshal(t, spec), Rootfs: &guestapi.RootFS{Layers: []*guestapi.Disk{m.attach(base(t), "erofs", true)}},
		})
		if !errdefs.IsNotFound(err) {
			t.Errorf("missing program: %v", err)
		}
		_, err = m.agent.CreateContainer(m.ctx, &guestapi.CreateContainerRequest{
			Id: "main", Spec: marshal(t, spec), Rootfs: &guestapi.RootFS{Layers: []*guestapi.Disk{m.attach(base(t), "erofs", true)}},
		})
		if !errdefs.IsAlreadyExists(err) {
			t.Errorf("same id: %v", err)
		}
	})
	t.Run("join pids", func(t *testing.T) {
		pids, err := m.agent.Pids(m.ctx, &guestapi.ContainerRequest{Container: "main"})
		if err != nil || len(pids.Processes) == 0 {
			t.Fatal(pids, err)
		}
		spec := baseSpec("sh", "-c", "cat /proc/1/comm")
		spec.Linux.Namespaces[0].Path = fmt.Sprintf("/proc/%d/ns/pid", pids.Processes[0].Pid)
		p := m.running("joined", spec, m.rootfs())
		if got := p.output(); got != "sleep\n" {
			t.Errorf("%q", got)
		}
		m.end(p)
	})
	t.Run("user of an exec", func(t *testing.T) {
		user := process("sh", "-c", "id -u; id -g; echo $HOME; grep CapEff /proc/self/status; echo x > /dev/stdout")
		user.User, user.Env = specs.User{UID: 1000, GID: 1001}, []string{"PATH=/bin"}
		p, err := m.newExec("main", "user", user)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
		if got, want := p.output(), "1000\n1001\n/\nCapEff:\t0000000000000000\nx\n"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
		p.wait()
		p.delete()
	})
	t.Run("seccomp", func(t *testing.T) {
		spec := baseSpec("sh", "-c", "mkdir /tmp/a; sleep 1000")
		spec.Linux.Seccomp = &specs.LinuxSeccomp{
			DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64},
			Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno, ErrnoRet: ptr(uint(95))}},
		}
		p := m.running("filtered", spec, m.rootfs())
		buf := make([]byte, 256)
		n, _ := p.errs.Read(buf)
		if got := string(buf[:n]); !strings.Contains(got, "not supported") {
			t.Errorf("init: %q", got)
		}
		if out, status := m.sh("filtered", "grep Seccomp: /proc/self/status; mkdir /tmp/b"); status == 0 || !strings.Contains(out, "not supported") || !strings.HasPrefix(out, "Seccomp:\t2") {
			t.Errorf("exec: %q, %d", out, status)
		}
		m.end(p)
	})
	t.Run("exec of a paused container", func(t *testing.T) {
		if _, err := m.agent.Pause(m.ctx, &guestapi.ContainerRequest{Container: "main"}); err != nil {
			t.Fatal(err)
		}
		p, err := m.newExec("main", "paused", process("true"))
		if err != nil {
			t.Fatal(err)
		}
		if err := p.start(); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("start: %v", err)
		}
		p.delete()
		if _, err := m.agent.Resume(m.ctx, &guestapi.ContainerRequest{Container: "main"}); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("OOM", func(t *testing.T) {
		spec := baseSpec("sh", "-c", "exec tail /dev/zero")
		limit := int64(16 << 20)
		spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
		p := m.running("oom", spec, m.rootfs())
		if status := p.wait(); status != 137 {
			t.Errorf("status %d", status)
		}
		e, err := m.agent.NextEvent(m.ctx, &guestapi.Empty{})
		if err != nil || e.GetOom().GetContainer() != "oom" {
			t.Errorf("%v, %v", e, err)
		}
		if err := p.delete(); err != nil {
			t.Error(err)
		}
		if out, _ := m.sh("main", "echo alive"); out != "alive\n" {
			t.Errorf("%q", out)
		}
	})
	m.end(main)
	if _, err := m.agent.Shutdown(m.ctx, &guestapi.Empty{}); err != nil {
		t.Error(err)
	}
}

func TestManyLayersInVM(t *testing.T) {
	m := boot(t, 256<<20)
	root := &guestapi.RootFS{Scratch: m.attach(scratch(t), "ext4", false)}
	const layers = 100
	start := time.Now()
	for i := layers; i > 0; i-- {
		root.Layers = append(root.Layers, m.attach(layer(t, map[string]string{"layers/" + fmt.Sprint(i): "x", "top": fmt.Sprint(i)}), "erofs", true))
	}
	root.Layers = append(root.Layers, m.attach(base(t), "erofs", true))
	t.Logf("attached after %v", time.Since(start).Round(time.Millisecond))
	p := m.running("layers", baseSpec("sh", "-c", "ls /layers | wc -l; cat /top"), root)
	if got := p.output(); got != "100\n100" {
		t.Errorf("%q", got)
	}
	m.end(p)
}

// TestAgentEndsWithChannel: a guest without a host is of no use.
func TestAgentEndsWithChannel(t *testing.T) {
	m := boot(t, 192<<20)
	p := m.running("c", baseSpec("sleep", "1000"), m.rootfs())
	out, _ := m.sh("c", "free -m; cat /proc/meminfo | head -5; df")
	t.Logf("%s", out)
	_ = p
	m.host.Close()
	if err := m.vm.Wait(m.ctx); err == nil && m.ctx.Err() != nil {
		t.Error("the VM goes on")
	}
}
