//go:build root

package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/image"
)

const testNamespace = "bulkhead-node-test"

// containerID is the same in one run of the tests, and differs between runs: FIFOs of all containerds are in one directory.
func containerID() string { return fmt.Sprintf("running-%d", os.Getpid()) }

func programs(t *testing.T) string {
	t.Helper()
	bin := os.Getenv("BULKHEAD_TEST_BIN")
	if bin == "" {
		bin = "../../bin"
	}
	if _, err := os.Stat(filepath.Join(bin, "containerd")); err != nil {
		t.Fatalf("%v: run make bin", err)
	}
	return bin
}

func start(t *testing.T) *Node {
	t.Helper()
	o := Options{Dir: filepath.Join(t.TempDir(), "node"), Bin: programs(t)}
	n := at(t, o)
	t.Cleanup(func() {
		if err := n.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	n, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// load puts an image of the host's BusyBox into the node.
func load(t *testing.T, n *Node) string {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("%v: install busybox-static", err)
	}
	files, err := image.BusyBox(t.Context(), busybox)
	if err != nil {
		t.Fatal(err)
	}
	built, err := image.Build(image.Spec{Files: files, Cmd: []string{"sh"}})
	if err != nil {
		t.Fatal(err)
	}
	archive, err := os.Create(filepath.Join(t.TempDir(), "image.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	const name = "test.example/busybox:1"
	if err := image.WriteArchive(archive, name, built); err != nil {
		t.Fatal(err)
	}
	ctr(t, n, "images", "import", archive.Name())
	return name
}

func ctr(t *testing.T, n *Node, args ...string) string {
	t.Helper()
	out, err := n.Ctr(t.Context(), append([]string{"--namespace", testNamespace}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// checkGone looks for everything that a node may leave.
func checkGone(t *testing.T, n *Node) {
	t.Helper()
	for _, path := range []string{n.dir, n.sockets} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	left, err := n.processes()
	if err != nil {
		t.Error(err)
	}
	for _, p := range left {
		t.Errorf("process %d (%s) is left", p.pid, p.name)
		p.close()
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if points := mountPoints(string(mounts), n.dir, n.sockets); len(points) > 0 {
		t.Errorf("mounts are left: %q", points)
	}
	if left, _ := filepath.Glob(filepath.Join(fifos, "*", containerID()+"-*")); len(left) > 0 {
		t.Errorf("FIFOs are left: %q", left)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/" + testNamespace, "/sys/fs/cgroup/*/" + testNamespace} {
		if groups, _ := filepath.Glob(pattern); len(groups) > 0 {
			t.Errorf("cgroups are left: %q", groups)
		}
	}
}

func TestNodeRunsContainersAndLeavesNothing(t *testing.T) {
	n := start(t)
	name := load(t, n)
	out := ctr(t, n, "run", "--rm", "--runc-root", n.RuncRoot(), name, "once", "echo", "hello")
	if strings.TrimSpace(out) != "hello" {
		t.Errorf("the container said %q", out)
	}

	pid, err := n.PID()
	if err != nil || pid == 0 {
		t.Fatalf("PID() = %d, %v", pid, err)
	}
	again, err := Start(t.Context(), n.options)
	if err != nil {
		t.Fatal(err)
	}
	if second, err := again.PID(); err != nil || second != pid {
		t.Errorf("a second Start has containerd %d, %v; want %d", second, err, pid)
	}

	ctr(t, n, "run", "--detach", "--runc-root", n.RuncRoot(), name, containerID(), "sleep", "1000")
	if err := n.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkGone(t, n)
	if err := n.Stop(t.Context()); err != nil {
		t.Errorf("a second Stop: %v", err)
	}
}

// A node whose containerd and shims were killed, as by an impatient user or the OOM killer.
func TestStopAfterACrash(t *testing.T) {
	for _, c := range []struct {
		name string
		kill func(process) bool
		more func(*testing.T, *Node)
	}{
		{"containerd", func(p process) bool { return p.name == "containerd" }, nil},
		{"all", func(process) bool { return true }, nil},
		{"all for good", func(process) bool { return true }, func(t *testing.T, n *Node) {
			// Its database is broken: Stop says so and removes everything all the same.
			if err := os.WriteFile(n.path("root/io.containerd.metadata.v1.bolt/meta.db"), []byte("garbage"), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := start(t)
			name := load(t, n)
			ctr(t, n, "run", "--detach", "--runc-root", n.RuncRoot(), name, containerID(), "sleep", "1000")
			var container int
			for _, field := range strings.Fields(ctr(t, n, "tasks", "list")) {
				if pid, err := strconv.Atoi(field); err == nil {
					container = pid
				}
			}
			if container == 0 {
				t.Fatal("the container has no process")
			}
			all, err := n.processes()
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for _, p := range all {
				if c.kill(p) {
					if err := p.signal(syscall.SIGKILL); err != nil {
						t.Error(err)
					}
					p.wait(ctx)
				}
				p.close()
			}
			if c.more != nil {
				c.more(t, n)
			}
			if err := n.Stop(t.Context()); (err != nil) != (c.more != nil) {
				t.Errorf("Stop = %v", err)
			}
			checkGone(t, n)
			if err := syscall.Kill(container, 0); err == nil && !zombie(container) {
				t.Errorf("the container's process %d is left", container)
			}
		})
	}
}

func zombie(pid int) bool {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err != nil || strings.Contains(string(data), ") Z ")
}

func TestStartOnAFileSystemThatCannot(t *testing.T) {
	// overlayfs on overlayfs: the commonest mistake, a state directory inside of a container.
	base := t.TempDir()
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(base, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	merged := filepath.Join(base, "merged")
	data := "lowerdir=" + base + "/lower,upperdir=" + base + "/upper,workdir=" + base + "/work"
	if err := syscall.Mount("overlay", merged, "overlay", 0, data); err != nil {
		t.Fatal(err)
	}
	defer syscall.Unmount(merged, syscall.MNT_DETACH)
	o := Options{Dir: filepath.Join(merged, "node"), Bin: programs(t)}
	if _, err := Start(t.Context(), o); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), o.Dir) {
		t.Errorf("Start = %v; want FailedPrecondition that names the directory", err)
	}
	if err := at(t, o).Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestStartInADirectoryThatCannot(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "a:b"), Bin: programs(t)}
	if _, err := Start(t.Context(), o); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Start = %v; want InvalidArgument", err)
	}
}

func TestStartWithoutPrograms(t *testing.T) {
	_, err := Start(t.Context(), Options{Dir: filepath.Join(t.TempDir(), "node"), Bin: t.TempDir()})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "make bin") {
		t.Errorf("Start = %v; want FailedPrecondition with what to do", err)
	}
}
