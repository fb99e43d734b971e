//go:build vm

// Package vm tests a runtime through a real containerd: what containerd's API promises, what a container image may expect of
// a machine, and what is left when things break. BULKHEAD_TEST_RUNTIME names the runtime; with io.containerd.runc.v2 the same
// tests run against runc, which is how they are tested themselves. Where only VMs have what is tested, they say so and skip.
//
// A VM costs seconds to boot where it is emulated, so tests share one pod wherever isolation between them isn't what they are
// about. Each test is followed by a leak check.
package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"

	"bulkhead.dev/bulkhead/internal/node"
	"bulkhead.dev/bulkhead/test/cell"
	"bulkhead.dev/bulkhead/test/kit"
	"bulkhead.dev/bulkhead/test/leak"
)

// suite is what the tests of this run share.
var suite struct {
	node    *kit.Node
	dir     string
	runtime string
	// pod and main are the shared pod and a container in it that only waits; see shared.
	pod  *kit.Pod
	main *kit.Container
}

// generous is a deadline for one step. It tells "hangs" from "slow" and nothing else.
const generous = 2 * time.Minute

func TestMain(m *testing.M) {
	cell.Main(func() int {
		if err := setUp(); err != nil {
			fmt.Fprintln(os.Stderr, "vm tier can't run:", err)
			return 1
		}
		code := m.Run()
		if err := tearDown(); err != nil {
			fmt.Fprintln(os.Stderr, "vm tier:", err)
			code = 1
		}
		return code
	})
}

func setUp() error {
	suite.runtime = cmpOr(os.Getenv("BULKHEAD_TEST_RUNTIME"), node.RuntimeBulkhead)
	binaries, err := filepath.Abs(cmpOr(os.Getenv("BULKHEAD_TEST_BIN"), "../../bin"))
	if err != nil {
		return err
	}
	guest, err := filepath.Abs(cmpOr(os.Getenv("BULKHEAD_GUEST_DIR"), "../../.state/guest"))
	if err != nil {
		return err
	}
	suite.dir = cell.Dir()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	program, err := kit.BuildTestProgram(ctx, suite.dir)
	if err != nil {
		return err
	}
	suite.node, err = kit.Start(ctx, node.Options{
		Dir: filepath.Join(suite.dir, "node"), Bin: binaries, Guest: guest,
		Acceleration: cmpOr(os.Getenv("BULKHEAD_TEST_ACCELERATION"), "auto"),
	})
	if err != nil {
		return err
	}
	return suite.node.ImportBase(ctx, program)
}

func tearDown() error {
	err := dropShared()
	if os.Getenv("BULKHEAD_TEST_KEEP") != "" {
		return err
	}
	return errors.Join(err, suite.node.Stop(context.Background()))
}

func cmpOr(values ...string) string {
	for _, value := range values {
		if value != "" {
			return value
		}
	}
	return ""
}

// scope is where a runtime's files may be, less what grows by design: caches and logs.
func scope() leak.Scope {
	path := suite.node.Path
	return leak.Scope{
		Dirs: []string{
			path("fifo"), path("tmp"), path("bulkhead"), path("state"), path("ipam"), "/run", "/dev/shm",
			path("root/io.containerd.runtime.v2.task"), path("root/io.containerd.grpc.v1.cri"),
			path("root/io.containerd.sandbox.controller.v1.shim"), "/var/lib/bulkhead",
		},
		Flat:   []string{path("root/io.containerd.snapshotter.v1.overlayfs/snapshots")},
		Ignore: []string{path("bulkhead/layers"), path("bulkhead/kvm-probe.json*"), path("ipam/*/last_reserved_ip.*"), path("ipam/*/lock")},
		Permanent: []string{
			"/run/containerd", "/run/containerd/s", "/run/containerd/runc", "/run/containerd/runc/test",
			filepath.Dir(suite.node.RuncRoot()) + "/runc", suite.node.RuncRoot() + "/k8s.io", path("ipam/*"),
			suite.node.RunDir() + "/sandboxes", suite.node.RunDir() + "/uids",
			path("root/io.containerd.runtime.v2.task/*"), path("state/io.containerd.runtime.v2.task/*"),
			path("root/io.containerd.sandbox.controller.v1.shim/*"), path("state/io.containerd.sandbox.controller.v1.shim/*"),
			path("root/io.containerd.grpc.v1.cri/*"), path("state/io.containerd.grpc.v1.cri/*"),
		},
		Links: []string{suite.node.Bridge()},
	}
}

// checked notes what there is, for a check when the test has ended, and returns a context for the test's calls.
func checked(t *testing.T) context.Context {
	t.Helper()
	leak.Check(t, scope())
	return testContext(t)
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(kit.InNamespace(context.Background(), kit.Namespace), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// shared returns the container that waits in the shared pod, starting both if they aren't there, and then checks like checked.
// The pod outlives the test, so the check is about what the test adds to it.
func shared(t *testing.T) (context.Context, *kit.Container) {
	t.Helper()
	ctx := testContext(t)
	if suite.main != nil {
		if status, err := suite.main.Task.Status(ctx); err != nil || status.Status != "running" {
			t.Logf("the shared pod's container is %q (%v): starting another pod", status.Status, err)
			if err := dropShared(); err != nil {
				t.Fatalf("remove the shared pod: %v", err)
			}
		}
	}
	if suite.main == nil {
		var err error
		if suite.pod, err = suite.node.StartPod(ctx, suite.runtime, 512<<20, withVMSize); err != nil {
			t.Fatal(err)
		}
		suite.main, err = suite.node.Launch(ctx, kit.Spec{Runtime: suite.runtime, Pod: suite.pod})
		if err != nil {
			t.Fatalf("start the shared pod's container: %v", errors.Join(err, dropShared()))
		}
	}
	leak.Check(t, scope())
	return ctx, suite.main
}

// withVMSize asks for two CPUs in the VM, so that updates of a container's share of it have something to share.
func withVMSize(_ context.Context, _ oci.Client, _ *container, s *oci.Spec) error {
	s.Annotations["io.kubernetes.cri.sandbox-cpu-period"] = "100000"
	s.Annotations["io.kubernetes.cri.sandbox-cpu-quota"] = "200000"
	return nil
}

func dropShared() error {
	var err error
	if suite.main != nil {
		err = suite.main.Remove(context.Background())
	}
	if suite.pod != nil {
		err = errors.Join(err, suite.pod.Remove(context.Background()))
	}
	suite.main, suite.pod = nil, nil
	return err
}

// launch starts a container that is removed when the test has ended.
func launch(t *testing.T, ctx context.Context, spec kit.Spec) *kit.Container {
	t.Helper()
	if spec.Runtime == "" {
		spec.Runtime = suite.runtime
	}
	c, err := suite.node.Launch(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, c) })
	return c
}

func remove(t *testing.T, c interface{ Remove(context.Context) error }) {
	t.Helper()
	if err := c.Remove(context.Background()); err != nil {
		t.Error(err)
	}
}

// inPod runs a container of the shared pod to its end.
func inPod(t *testing.T, ctx context.Context, spec kit.Spec) kit.Result {
	t.Helper()
	spec.Runtime, spec.Pod = suite.runtime, suite.pod
	result, err := suite.node.Run(ctx, spec)
	if err != nil {
		t.Fatalf("run %q: %v", spec.Args, err)
	}
	return result
}

// exec runs a process in the container to its end.
func exec(t *testing.T, ctx context.Context, c *kit.Container, args ...string) kit.Result {
	t.Helper()
	result, err := suite.node.Exec(ctx, c, kit.ExecSpec{Args: args})
	if err != nil {
		t.Fatalf("exec %q: %v", args, err)
	}
	return result
}

// output is what a process wrote, which must have ended with 0.
func output(t *testing.T, result kit.Result) string {
	t.Helper()
	if result.Status != 0 {
		t.Fatalf("status %d, stdout %q, stderr %q", result.Status, result.Stdout, result.Stderr)
	}
	return strings.TrimSpace(result.Stdout)
}

// startExec starts a process in the container that is removed when the test has ended.
func startExec(t *testing.T, ctx context.Context, c *kit.Container, spec kit.ExecSpec) *kit.Process {
	t.Helper()
	p, err := suite.node.StartExec(ctx, c, spec)
	if err != nil {
		t.Fatalf("exec %q: %v", spec.Args, err)
	}
	t.Cleanup(func() { remove(t, p) })
	return p
}

// eventually calls condition until it says nothing, and fails the test with what it says if it never does.
func eventually(t *testing.T, condition func() string) {
	t.Helper()
	deadline := time.Now().Add(generous)
	for {
		complaint := condition()
		if complaint == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still after %v: %s", generous, complaint)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// prints waits until the buffer holds the text.
func prints(t *testing.T, buffer *kit.Buffer, text string) {
	t.Helper()
	eventually(t, func() string {
		if got := buffer.String(); !strings.Contains(got, text) {
			return fmt.Sprintf("output is %q, without %q", got, text)
		}
		return ""
	})
}

// onlyVM skips a test of what only a VM has.
func onlyVM(t *testing.T, why string) {
	t.Helper()
	if suite.runtime != node.RuntimeBulkhead {
		t.Skipf("not with %s: %s", suite.runtime, why)
	}
}
