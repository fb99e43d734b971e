//go:build root

package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestRealCgroup(t *testing.T) {
	path := fmt.Sprintf("/bulkhead-test-%d/vm", os.Getpid())
	c, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Remove() })

	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { cmd.Wait(); close(exited) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-exited })

	if err := c.Enter(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if pids, err := c.Processes(); err != nil || !slices.Equal(pids, []int{cmd.Process.Pid}) {
		t.Errorf("Processes() = %v, %v; want %d", pids, err, cmd.Process.Pid)
	}
	in, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(in)) {
		if !strings.HasSuffix(strings.TrimSpace(line), ":"+path) {
			t.Errorf("hierarchy not entered: %s", line)
		}
	}
	loaded, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := loaded.Kill(); err != nil {
		t.Fatal(err)
	}
	<-exited
	for range 2 {
		if err := c.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Load(path); !errdefs.IsNotFound(err) {
		t.Errorf("Load after Remove: %v, want ErrNotFound", err)
	}
	if _, err := Load(strings.TrimSuffix(path, "/vm")); !errdefs.IsNotFound(err) {
		t.Errorf("Load of the parent that Create made, after Remove: %v, want ErrNotFound", err)
	}
}

func TestRemoveTree(t *testing.T) {
	top := fmt.Sprintf("/bulkhead-test-tree-%d", os.Getpid())
	t.Cleanup(func() {
		if err := RemoveTree(top); err != nil {
			t.Error(err)
		}
	})
	var ended []chan struct{}
	for _, path := range []string{top + "/a/b", top + "/a/c/d", top} {
		c, err := Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if path == top {
			continue // on cgroup v2, one with groups below can't have processes
		}
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		exited := make(chan struct{})
		go func() { cmd.Wait(); close(exited) }()
		t.Cleanup(func() { cmd.Process.Kill(); <-exited })
		if err := c.Enter(cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
		ended = append(ended, exited)
	}
	for range 2 {
		if err := RemoveTree(top); err != nil {
			t.Fatal(err)
		}
	}
	for _, exited := range ended {
		<-exited
	}
	if _, err := Load(top); !errdefs.IsNotFound(err) {
		t.Errorf("Load after RemoveTree: %v, want ErrNotFound", err)
	}
}
