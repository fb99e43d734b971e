//go:build root

package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/cgroup"
)

// netns makes a network namespace, and again under the same path when it is called again.
func netns(t *testing.T, name string) string {
	t.Helper()
	_ = exec.Command("ip", "netns", "del", name).Run() // the first time there is none
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Fatalf("make network namespace: %v\n%s", err, out)
	}
	t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() })
	return "/run/netns/" + name
}

func (b *bed) runIn(s Spec) int {
	b.t.Helper()
	if err := Start(b.t.Context(), b.self, b.dir, s); err != nil {
		b.t.Fatal(err)
	}
	return b.ready()["a"]
}

func TestNetNS(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	b := newBed(t)
	name := fmt.Sprintf("bh-supervise-%d", os.Getpid())
	s := Spec{Name: "test", NetNS: netns(t, name), Processes: []Process{b.sleeper("a", 1)}}
	first := b.runIn(s)
	supervisor := b.status().Supervisor
	if !inNetNS(first, s.NetNS) || !inNetNS(supervisor, s.NetNS) || inNetNS(os.Getpid(), s.NetNS) {
		t.Fatal("they aren't where they should be, or the test is there too")
	}
	if same := b.runIn(s); same != first || b.status().Supervisor != supervisor {
		t.Errorf("started again: process %d, then %d", first, same)
	}

	// The namespace is another one now, with the same name: what runs in the old one is of no use.
	netns(t, name)
	second := b.runIn(s)
	if second == first || running(first) || !inNetNS(second, s.NetNS) || !inNetNS(b.status().Supervisor, s.NetNS) {
		t.Errorf("after the namespace was made again: process %d, then %d", first, second)
	}

	s.NetNS = netns(t, name+"-other")
	third := b.runIn(s)
	if third == second || running(second) || !inNetNS(third, s.NetNS) {
		t.Errorf("in another namespace: process %d, then %d", second, third)
	}

	s.NetNS = "/run/netns/" + name + "-none"
	if err := Start(t.Context(), b.self, b.dir, s); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("a namespace that isn't there: %v", err)
	}
	if err := Stop(t.Context(), b.dir); err != nil || running(third) {
		t.Errorf("Stop: %v; running: %t", err, running(third))
	}
}

func TestCgroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	b := newBed(t)
	root := fmt.Sprintf("/bulkhead-supervise-%d", os.Getpid())
	t.Cleanup(func() {
		if err := Kill(context.Background(), b.dir); err != nil {
			t.Error(err)
		}
		if err := cgroup.RemoveTree(root); err != nil {
			t.Error(err)
		}
	})
	printer := b.process("a", "/bin/sh", "-c", "cat /proc/self/cgroup; exec /bin/sleep 100000")
	s := Spec{Name: "test", Cgroup: root + "/system", Processes: []Process{printer}}
	pid := b.runIn(s)
	b.eventually("it printed", func() bool { data, _ := os.ReadFile(printer.Log); return len(data) > 0 })

	group, err := cgroup.Load(s.Cgroup)
	if err != nil {
		t.Fatal(err)
	}
	inside, err := group.Processes()
	if err != nil || !slices.Contains(inside, pid) || !slices.Contains(inside, b.status().Supervisor) {
		t.Errorf("in the cgroup are %v, %v", inside, err)
	}
	// From its first instruction on, in every hierarchy.
	data, err := os.ReadFile(printer.Log)
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for line := range strings.Lines(string(data)) {
		if !mounted(line) {
			continue
		}
		checked++
		if path := strings.SplitN(strings.TrimSpace(line), ":", 3)[2]; path != s.Cgroup {
			t.Errorf("it began in %s", strings.TrimSpace(line))
		}
	}
	if checked == 0 {
		t.Errorf("no hierarchy was compared:\n%s", data)
	}

	s.Cgroup = root + "/other"
	moved := b.runIn(s)
	own, err := os.ReadFile(procFile(b.status().Supervisor, "cgroup"))
	if moved == pid || running(pid) || err != nil || !strings.Contains(string(own), root+"/other\n") {
		t.Errorf("in another cgroup: process %d, then %d; supervisor in %s, %v", pid, moved, own, err)
	}
	if err := syscall.Kill(moved, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	b.eventually("it is back", func() bool { p := b.find("a"); return p.Ready && p.PID != moved })
}

// mounted says whether the hierarchy of a line of proc_pid_cgroup(5) can be seen: those that nobody mounted can't be used.
func mounted(line string) bool {
	fields := strings.SplitN(line, ":", 3)
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if fields[1] == "" {
		return strings.Contains(string(mounts), " - cgroup2 ")
	}
	for mount := range strings.Lines(string(mounts)) {
		_, after, _ := strings.Cut(mount, " - ")
		if f := strings.Fields(after); len(f) == 3 && f[0] == "cgroup" && strings.HasSuffix(","+f[2], ","+fields[1]) {
			return true
		}
	}
	return false
}
