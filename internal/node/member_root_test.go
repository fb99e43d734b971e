//go:build root

package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/cgroup"
)

// startMember starts the containerd of a cluster's node, as a supervisor would.
func startMember(t *testing.T) *Node {
	t.Helper()
	n := at(t, Options{
		Dir: filepath.Join(t.TempDir(), "node"), Bin: programs(t),
		Member: &Member{
			Cgroup: fmt.Sprintf("/bulkhead-node-test-%d/n0", os.Getpid()), PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/24")},
		},
	})
	t.Cleanup(func() {
		if err := errors.Join(n.Stop(context.Background()), cgroup.RemoveTree(filepath.Dir(n.Cgroup()))); err != nil {
			t.Error(err)
		}
	})
	restart(t, n)
	return n
}

func restart(t *testing.T, n *Node) {
	t.Helper()
	if err := n.Prepare(); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), n.options); err != nil {
		t.Fatal(err)
	}
}

// runInPod runs a container in a cgroup as a pod's, and returns its process.
func runInPod(t *testing.T, n *Node, image, id string) int {
	t.Helper()
	group := n.pods() + "/pod1/" + id
	ctr(t, n, "run", "--detach", "--runc-root", n.RuncRoot(), "--cgroup", group, image, id, "sleep", "1000")
	c, err := cgroup.Load(group)
	if err != nil {
		t.Fatal(err)
	}
	pids, err := c.Processes()
	if err != nil || len(pids) != 1 {
		t.Fatalf("processes of the container: %v, %v", pids, err)
	}
	return pids[0]
}

func checkEnded(t *testing.T, n *Node, container int) {
	t.Helper()
	if err := syscall.Kill(container, 0); err == nil && !zombie(container) {
		t.Errorf("the container's process %d is left", container)
	}
	if _, err := cgroup.Load(n.pods()); !errdefs.IsNotFound(err) {
		t.Errorf("the pods' cgroup is left: %v", err)
	}
}

func TestMemberHaltsAndStops(t *testing.T) {
	n := startMember(t)
	if err := n.ImportPause(t.Context()); err != nil {
		t.Fatal(err)
	}
	name := load(t, n)
	container := runInPod(t, n, name, containerID())
	// What the kubelet mounts and writes.
	volume := filepath.Join(n.KubeletDir(), "volume")
	if err := os.Mkdir(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", volume, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.KubeletDir(), "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}

	if err := n.Prepare(); err != nil {
		t.Fatalf("of a running node: %v", err)
	}
	if err := syscall.Kill(container, 0); err != nil {
		t.Errorf("Prepare of a running node ended its container: %v", err)
	}

	for range 2 {
		if err := n.Halt(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	checkEnded(t, n, container)
	if points, err := n.mounted(); err != nil || len(points) > 0 {
		t.Errorf("mounts are left: %q, %v", points, err)
	}
	restart(t, n)
	if _, err := os.Lstat(filepath.Join(n.KubeletDir(), "file")); err != nil {
		t.Errorf("what the kubelet wrote is gone: %v", err)
	}
	images, err := n.Ctr(t.Context(), "--namespace", criNamespace, "images", "list", "--quiet")
	if err != nil || !strings.Contains(images, PauseImage) {
		t.Errorf("after Halt, images are %q, %v", images, err)
	}
	container = runInPod(t, n, name, "second")
	if err := n.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkEnded(t, n, container)
	checkGone(t, n)
	if _, err := cgroup.Load(n.Cgroup()); !errdefs.IsNotFound(err) {
		t.Errorf("the node's cgroup is left: %v", err)
	}
	if data, err := os.ReadFile(hostKernel().record()); err == nil && strings.Contains(string(data), n.dir) {
		t.Errorf("the node still holds the kernel's values: %s", data)
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// A node whose containerd and shims were killed leaves containers running: the next start, and the end, take them away.
func TestMemberAfterACrash(t *testing.T) {
	n := startMember(t)
	name := load(t, n)
	crash := func(id string) (container int) {
		container = runInPod(t, n, name, id)
		all, err := n.processes()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for _, p := range all {
			if err := p.signal(syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			p.wait(ctx)
			p.close()
		}
		return container
	}
	container := crash("first")
	restart(t, n)
	checkEnded(t, n, container)
	container = crash("second")
	if err := n.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkEnded(t, n, container)
	checkGone(t, n)
}

// A shim to which containerd could say nothing any more has its socket where no node is.
func TestHaltEndsAShimThatKnowsNothing(t *testing.T) {
	n := startMember(t)
	bundle := n.path("state/io.containerd.runtime.v2.task/k8s.io/stray")
	if err := os.MkdirAll(bundle, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	shim := exec.Command(filepath.Join(n.bin, "containerd-shim-runc-v2"), "-namespace", criNamespace, "-id", "stray", "-address", n.Socket(), "start")
	shim.Dir, shim.Env = bundle, append(os.Environ(), environment+"="+n.dir)
	out, err := shim.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	strays := slices.DeleteFunc(n.strays(), func(path string) bool { return !strings.Contains(string(out), path) })
	if len(strays) != 1 {
		t.Fatalf("the shim listens on %s, and the strays are %q", out, n.strays())
	}
	if err := n.Halt(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(strays[0]); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its socket is left: %v", err)
	}
	if err := n.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	checkGone(t, n)
}

// The cgroup of a node may be unknown when its cluster's record is lost. Its containers are found all the same.
func TestStopOfAMemberOfWhichLittleIsKnown(t *testing.T) {
	n := startMember(t)
	container := runInPod(t, n, load(t, n), containerID())
	unknown := at(t, Options{Dir: n.dir, Bin: n.bin, Member: &Member{}})
	if err := unknown.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(container, 0); err == nil && !zombie(container) {
		t.Errorf("the container's process %d is left", container)
	}
	checkGone(t, n)
}
