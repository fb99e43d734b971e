//go:build vm

package sandbox_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead.dev/bulkhead/internal/config"
	"bulkhead.dev/bulkhead/internal/guestimage"
	"bulkhead.dev/bulkhead/internal/rootfs"
	"bulkhead.dev/bulkhead/internal/sandbox"
	"bulkhead.dev/bulkhead/internal/sandbox/sizing"
	"bulkhead.dev/bulkhead/internal/vmm"
	"bulkhead.dev/bulkhead/internal/vmm/jail"
	"bulkhead.dev/bulkhead/internal/vmm/qemu"
)

func TestMain(m *testing.M) {
	jail.Main()
	if plan := os.Getenv(doomedPlan); plan != "" {
		fmt.Fprintln(os.Stderr, doomed(plan))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// pod is a real pod VM's surroundings.
type pod struct {
	deps   sandbox.Deps
	spec   sandbox.Spec
	layer  string // a root file system with BusyBox
	uppers string
}

func newPod(t *testing.T) *pod {
	t.Helper()
	dir := os.Getenv("BULKHEAD_GUEST_DIR")
	if dir == "" {
		t.Fatal("BULKHEAD_GUEST_DIR is not set: it names a directory made by \"bulkhead guest build\"")
	}
	image, err := guestimage.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	cfg := config.Default()
	cfg.RunDir, cfg.StateDir = t.TempDir(), t.TempDir()
	cfg.Guest.BootTimeout = 5 * time.Minute
	cfg.VMM.UIDBase, cfg.VMM.UIDCount = 2_900_000, 16
	p := &pod{
		deps: sandbox.Deps{
			Driver: qemu.New(qemu.Options{}), Cache: rootfs.NewCache(cfg.LayersDir()), Config: cfg,
			Guest: image, Acceleration: vmm.Emulated,
		},
		spec: sandbox.Spec{
			ID: "vm-test-" + strconv.Itoa(os.Getpid()), Namespace: "test", Dir: t.TempDir(), Hostname: "pod-0",
			CgroupsPath: fmt.Sprintf("/bulkhead-test/vm-test-%d/one", os.Getpid()),
			Size:        sizing.Size{VCPUs: 1, MemoryBytes: 292 << 20, ScratchBytes: 1 << 30},
			Sysctls:     map[string]string{"net.core.somaxconn": "77"},
		},
		layer: t.TempDir(), uppers: t.TempDir(),
	}
	p.installBusyBox(t)
	return p
}

func (p *pod) installBusyBox(t *testing.T) {
	t.Helper()
	binary, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("busybox (package busybox-static) is not installed: %v", err)
	}
	data, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"bin", "etc", "tmp"} {
		if err := os.Mkdir(filepath.Join(p.layer, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(p.layer, "bin/busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sh", "cat", "uname", "sleep", "hostname", "echo", "touch", "ls"} {
		if err := os.Symlink("busybox", filepath.Join(p.layer, "bin", name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(p.layer, 0o755); err != nil {
		t.Fatal(err)
	}
}

func (p *pod) start(t *testing.T) *sandbox.Sandbox {
	t.Helper()
	s, err := sandbox.Start(t.Context(), p.deps, p.spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Stop(context.Background()) })
	return s
}

// container is one that runs a shell script.
func (p *pod) container(t *testing.T, id, script string, mounts ...specs.Mount) sandbox.ContainerSpec {
	t.Helper()
	data, err := os.ReadFile("testdata/translate/ctr-run.json")
	if err != nil {
		t.Fatal(err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		t.Fatal(err)
	}
	spec.Process.Args = []string{"/bin/sh", "-c", script}
	spec.Linux.Seccomp = nil
	spec.Mounts = append(spec.Mounts, mounts...)
	upper := filepath.Join(p.uppers, id)
	if err := os.MkdirAll(upper, 0o755); err != nil {
		t.Fatal(err)
	}
	return sandbox.ContainerSpec{
		ID: id, Spec: &spec, Stdin: true, Stdout: true, Stderr: true,
		RootFS: []rootfs.Mount{{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + p.layer, "upperdir=" + upper, "workdir=" + upper + "-work"}}},
	}
}

func run(t *testing.T, p *sandbox.Process) (stdout string, status uint32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if _, err := p.Start(ctx); err != nil {
		t.Fatal(err)
	}
	p.Stdin().Close()
	errors := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(p.Stderr())
		errors <- string(text)
	}()
	text, err := io.ReadAll(p.Stdout())
	if err != nil {
		t.Error(err)
	}
	exit, err := p.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if said := <-errors; said != "" {
		t.Logf("stderr: %s", said)
	}
	return string(text), exit.Status
}

// left lists what a pod could leave: processes of its uids, cgroups, files.
func (p *pod) left(t *testing.T) []string {
	t.Helper()
	var left []string
	status, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range status {
		data, _ := os.ReadFile(path)
		// A zombie is nobody's but process 1's.
		if strings.Contains(string(data), "\nUid:\t29000") && !strings.Contains(string(data), "State:\tZ") {
			left = append(left, path)
		}
	}
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(d.Name(), p.spec.ID) {
			left = append(left, path)
		}
		return nil
	})
	for _, dir := range []string{p.uppers, p.spec.Dir, filepath.Join(p.deps.Config.RunDir, "uids")} {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				left = append(left, path)
			}
			return nil
		})
	}
	return left
}

func (p *pod) checkClean(t *testing.T) {
	t.Helper()
	if left := p.left(t); len(left) > 0 {
		t.Errorf("left on the host: %q", left)
	}
}

func TestPod(t *testing.T) {
	p := newPod(t)
	s := p.start(t)
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", info)
	served := t.TempDir()
	if err := os.WriteFile(filepath.Join(served, "in"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	one, err := s.CreateContainer(t.Context(), p.container(t, "one",
		"uname -r; hostname; cat /data/in /proc/sys/net/core/somaxconn; echo written > /file; cat /file; echo back > /data/out; echo $$; exit 7",
		specs.Mount{Destination: "/data", Type: "bind", Source: served, Options: []string{"rbind", "rw"}}))
	if err != nil {
		t.Fatal(err)
	}
	out, status := run(t, one)
	want := fmt.Sprintf("%s\npod-0\nfrom the host\n77\nwritten\n1\n", info.KernelRelease)
	if diff := cmp.Diff(want, out); diff != "" || status != 7 {
		t.Errorf("status %d; output (-want +got):\n%s", status, diff)
	}
	if back, err := os.ReadFile(filepath.Join(served, "out")); err != nil || string(back) != "back\n" {
		t.Errorf("written to the volume: %q, %v", back, err)
	}
	if err := one.Delete(t.Context()); err != nil {
		t.Error(err)
	}

	two, err := s.CreateContainer(t.Context(), p.container(t, "two", "trap 'exit 3' TERM; while :; do sleep 1; done"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := two.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	exec, err := s.CreateExec(t.Context(), sandbox.ExecSpec{
		Container: "two", ID: "e", Process: &specs.Process{Args: []string{"ls", "/file"}, Cwd: "/", Env: []string{"PATH=/bin"}}, Stdin: true, Stdout: true, Stderr: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if out, status := run(t, exec); status == 0 {
		t.Errorf("the second container sees the first one's file: %s", out)
	}
	if stats, err := s.Stats(t.Context(), "two"); err != nil || stats.CpuUsageUsec == 0 || stats.MemoryUsage == 0 {
		t.Errorf("Stats = %v, %v", stats, err)
	}
	if pids, err := s.Pids(t.Context(), "two"); err != nil || len(pids) == 0 {
		t.Errorf("Pids = %v, %v", pids, err)
	}
	if err := two.Signal(t.Context(), 15, false); err != nil {
		t.Error(err)
	}
	if exit, err := two.Wait(t.Context()); err != nil || exit.Status != 3 {
		t.Errorf("exit %+v, %v", exit, err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if err := s.Err(); err != nil {
		t.Errorf("Err after Stop: %v", err)
	}
	p.checkClean(t)
}

func TestKilledVMM(t *testing.T) {
	p := newPod(t)
	s := p.start(t)
	c, err := s.CreateContainer(t.Context(), p.container(t, "one", "sleep 1000"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	vm, err := os.FindProcess(info.VM.PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Wait(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("Wait: %v", err)
	}
	t.Log(s.Err())
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	p.checkClean(t)
}

// TestSilentGuest gives the guest less time than it can boot in.
func TestSilentGuest(t *testing.T) {
	p := newPod(t)
	p.deps.Config.Guest.BootTimeout = 100 * time.Millisecond
	_, err := sandbox.Start(t.Context(), p.deps, p.spec)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "100ms") {
		t.Errorf("Start: %v", err)
	}
	p.checkClean(t)
}

// doomedPlan is the environment variable that makes this program start a sandbox and wait for its death.
const doomedPlan = "BULKHEAD_TEST_DOOMED"

// plan is what the doomed process is to start.
type plan struct {
	Config    config.Config
	Image     guestimage.Image
	Spec      sandbox.Spec
	Container sandbox.ContainerSpec
}

// doomed starts a sandbox and a container, says so, and never ends by itself.
func doomed(text string) error {
	var p plan
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return err
	}
	ctx := context.Background()
	s, err := sandbox.Start(ctx, sandbox.Deps{
		Driver: qemu.New(qemu.Options{}), Cache: rootfs.NewCache(p.Config.LayersDir()), Config: p.Config,
		Guest: p.Image, Acceleration: vmm.Emulated,
	}, p.Spec)
	if err != nil {
		return err
	}
	c, err := s.CreateContainer(ctx, p.Container)
	if err != nil {
		return err
	}
	if _, err := c.Start(ctx); err != nil {
		return err
	}
	fmt.Println("running")
	select {}
}

// TestCrashedProcess kills the process that runs a sandbox, and cleans up in another.
func TestCrashedProcess(t *testing.T) {
	p := newPod(t)
	text, err := json.Marshal(plan{p.deps.Config, p.deps.Guest, p.spec, p.container(t, "one", "sleep 1000")})
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), doomedPlan+"="+string(text))
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, len("running"))
	if _, err := io.ReadFull(out, said); err != nil {
		t.Error(err)
	}
	child.Process.Kill()
	child.Wait()
	if len(p.left(t)) == 0 {
		t.Error("nothing was left by a crash: the test looks in the wrong places")
	}
	for range 2 {
		if err := sandbox.Cleanup(t.Context(), p.deps.Config, p.spec.Dir); err != nil {
			t.Fatal(err)
		}
	}
	// The cgroup's parents stay after a crash: they may be somebody else's by then.
	matches, _ := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/bulkhead-test/vm-test-%d", os.Getpid()))
	for _, dir := range append(matches, fmt.Sprintf("/sys/fs/cgroup/bulkhead-test/vm-test-%d", os.Getpid())) {
		os.Remove(dir)
		os.Remove(filepath.Dir(dir))
	}
	p.checkClean(t)
}
