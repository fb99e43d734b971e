//go:build vm

package vm

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	"bulkhead.dev/bulkhead/test/kit"
)

// descriptors counts a process's open files.
func descriptors(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// cycles is how often the tests of growth repeat what they do.
func cycles(t *testing.T) int {
	n, err := strconv.Atoi(cmpOr(os.Getenv("BULKHEAD_TEST_CYCLES"), "10"))
	if err != nil || n < 2 {
		t.Fatalf("BULKHEAD_TEST_CYCLES is %q, want a number of at least 2", os.Getenv("BULKHEAD_TEST_CYCLES"))
	}
	return n
}

// growth runs a step often, and fails if a figure has grown as often. The first runs fill caches and pools.
func growth(t *testing.T, count int, step func(), figure func() map[string]int) {
	t.Helper()
	for range 2 {
		step()
	}
	before := figure()
	for range count {
		step()
	}
	var after map[string]int
	eventually(t, func() string {
		after = figure()
		for name, n := range after {
			if n >= before[name]+count/2+2 {
				return fmt.Sprintf("after %d cycles %s has grown from %d to %d", count, name, before[name], n)
			}
		}
		return ""
	})
	t.Logf("before %v, after %d cycles %v", before, count, after)
}

// TestSandboxCycles makes and removes sandboxes. Whatever one leaves is the leak check's to find; here is what containerd keeps.
func TestSandboxCycles(t *testing.T) {
	ctx := checked(t)
	growth(t, cycles(t), func() {
		if result, err := suite.node.Run(ctx, kit.Spec{Runtime: suite.runtime, Args: []string{"/bin/true"}}); err != nil || result.Status != 0 {
			t.Fatalf("%+v (%v)", result, err)
		}
	}, func() map[string]int {
		return map[string]int{"containerd's descriptors": descriptors(t, daemon())}
	})
}

// TestContainerCycles makes and removes containers and execs in one sandbox, and watches its processes.
func TestContainerCycles(t *testing.T) {
	ctx := alone(t)
	pod, err := suite.node.StartPod(ctx, suite.runtime, 256<<20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, pod) })
	c := launch(t, ctx, kit.Spec{Pod: pod})
	growth(t, 2*cycles(t), func() {
		output(t, exec(t, ctx, c, "/bin/true"))
		if result, err := suite.node.Run(ctx, kit.Spec{Runtime: suite.runtime, Pod: pod, Args: []string{"/bin/true"}}); err != nil || result.Status != 0 {
			t.Fatalf("%+v (%v)", result, err)
		}
	}, func() map[string]int {
		figures := map[string]int{}
		for _, v := range victims()[:len(victims())-1] {
			for pid := range v.pids(t) {
				figures[fmt.Sprintf("the %s's (%d) descriptors", v.name, pid)] = descriptors(t, pid)
				threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
				if err != nil {
					t.Fatal(err)
				}
				figures[fmt.Sprintf("the %s's (%d) threads", v.name, pid)] = len(threads)
			}
		}
		return figures
	})
}
