//go:build vm

package vm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/errdefs"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"bulkhead.dev/bulkhead/internal/node"
	"bulkhead.dev/bulkhead/test/kit"
	"bulkhead.dev/bulkhead/test/leak"
)

// victim is a kind of process that a test kills.
type victim struct {
	name string
	// is tells it by its command line.
	is func(leak.Process) bool
}

var (
	vmmVictim  = victim{"VMM", func(p leak.Process) bool { return strings.Contains(p.Command, "qemu-system-") }}
	shimVictim = victim{"shim", func(p leak.Process) bool {
		return strings.HasPrefix(p.Name, "containerd-shim") && strings.Contains(p.Command, "-id ")
	}}
	daemonVictim = victim{"containerd", func(p leak.Process) bool { return p.PID == daemon() }}
)

// daemon is containerd's process id; 0 while there is none.
func daemon() int {
	pid, _ := suite.node.PID()
	return pid
}

// pids of the victims there are.
func (v victim) pids(t *testing.T) map[int]bool {
	t.Helper()
	all, err := leak.Processes()
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]bool{}
	for _, p := range all {
		if v.is(p) {
			found[p.PID] = true
		}
	}
	return found
}

// kill waits for one that isn't among those known before, and kills it. It gives up when the context ends.
func (v victim) kill(t *testing.T, ctx context.Context, known map[int]bool) {
	t.Helper()
	if v.name == daemonVictim.name {
		// Ended through the node, which has to know.
		if err := suite.node.StopDaemon(syscall.SIGKILL); err != nil {
			t.Errorf("kill containerd: %v", err)
		}
		return
	}
	for ctx.Err() == nil {
		for pid := range v.pids(t) {
			if !known[pid] {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Logf("kill the %s: %v", v.name, err)
				}
				return
			}
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("no %s came to be killed", v.name)
}

// victims are what can be killed under the runtime of this run.
func victims() []victim {
	if suite.runtime == node.RuntimeBulkhead {
		return []victim{vmmVictim, shimVictim, daemonVictim}
	}
	return []victim{shimVictim, daemonVictim}
}

// alone ends the shared pod, so that the only victims are the test's own, and checks for leaks from there.
func alone(t *testing.T) context.Context {
	t.Helper()
	if err := dropShared(); err != nil {
		t.Fatalf("remove the shared pod: %v", err)
	}
	// What the pod leaves is not this test's, so it has to be gone before the list is made.
	eventually(t, func() string {
		if n := len(shimVictim.pids(t)) + len(vmmVictim.pids(t)); n > 0 {
			return fmt.Sprintf("%d processes of the shared pod are left", n)
		}
		return ""
	})
	known := ignoreDaemon(t)
	t.Cleanup(known)
	return testContext(t)
}

// ignoreDaemon is leak.Check, except that containerd may be another process at the end.
func ignoreDaemon(t *testing.T) func() {
	take := func() leak.Things {
		where := scope()
		if suite.runtime == node.RuntimeRunc {
			// Its shim, when it is killed, leaves its socket.
			where.Ignore = append(where.Ignore, filepath.Join(filepath.Dir(suite.node.Socket()), "s/*"))
		}
		things, err := leak.Take(where)
		if err != nil {
			t.Fatal(err)
		}
		return things
	}
	before := take()
	return func() {
		deadline := time.Now().Add(leak.Patience)
		for {
			var left []string
			for _, thing := range before.Missing(take()) {
				if !strings.HasPrefix(thing, fmt.Sprintf("process %d ", daemon())) {
					left = append(left, thing)
				}
			}
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				for _, thing := range left {
					t.Errorf("left behind: %s", thing)
				}
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// revive starts containerd again if the test has killed it.
func revive(t *testing.T, v victim) {
	t.Helper()
	if v.name != daemonVictim.name {
		return
	}
	if err := suite.node.StartDaemon(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// purge removes what containerd knows of the container, as often as it takes: right after a crash a first attempt may find the
// wreck still being cleared.
func purge(t *testing.T, ctx context.Context, id string) {
	t.Helper()
	eventually(t, func() string {
		c, err := suite.node.Client.LoadContainer(ctx, id)
		if errdefs.IsNotFound(err) {
			return ""
		}
		if err != nil {
			return err.Error()
		}
		if task, err := c.Task(ctx, nil); err == nil {
			if _, err := task.Delete(ctx, client.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
				return "delete task: " + err.Error()
			}
		} else if !errdefs.IsNotFound(err) {
			return "load task: " + err.Error()
		}
		if err := c.Delete(ctx, client.WithSnapshotCleanup); err != nil && !errdefs.IsNotFound(err) {
			return "delete container: " + err.Error()
		}
		return ""
	})
}

// scrap removes what containerd and its client have of a container whose task the client couldn't delete itself.
func scrap(t *testing.T, ctx context.Context, c *kit.Container) {
	t.Helper()
	purge(t, ctx, c.ID())
	c.Task.IO().Cancel()
	if err := c.Task.IO().Close(); err != nil {
		t.Errorf("remove the FIFOs of %s: %v", c.ID(), err)
	}
}

func TestKillWhileRunning(t *testing.T) {
	for _, v := range victims() {
		if v.name == daemonVictim.name {
			continue // TestRestartContainerd
		}
		t.Run(v.name, func(t *testing.T) {
			ctx := alone(t)
			c, err := suite.node.Launch(ctx, kit.Spec{Runtime: suite.runtime})
			if err != nil {
				t.Fatal(err)
			}
			defer scrap(t, ctx, c)
			v.kill(t, ctx, nil)
			eventually(t, func() string {
				status, err := c.Task.Status(ctx)
				if err == nil && status.Status != client.Stopped {
					return fmt.Sprintf("the task is still %s", status.Status)
				}
				if err == nil && status.ExitStatus == 0 {
					t.Errorf("the task of a killed %s has ended with 0", v.name)
				}
				return ""
			})
			if p, err := suite.node.StartExec(ctx, c, kit.ExecSpec{Args: []string{"/bin/true"}}); err == nil {
				remove(t, p)
				t.Error("a task that has lost its sandbox took an exec")
			}
		})
	}
}

func TestKillWhileCreating(t *testing.T) {
	for _, v := range victims() {
		t.Run(v.name, func(t *testing.T) {
			if v.name == daemonVictim.name {
				onlyVM(t, "there is no moment to see at which its shim is at work and has no container yet")
			}
			ctx := alone(t)
			before := map[string]bool{}
			for _, c := range containersNow(t, ctx) {
				before[c] = true
			}
			killed := make(chan struct{})
			trigger, stop := context.WithTimeout(ctx, generous)
			defer stop()
			go func() {
				defer close(killed)
				if v.name == daemonVictim.name {
					// In the middle of it: once containerd has a shim that is at work.
					for trigger.Err() == nil && len(vmmVictim.pids(t)) == 0 {
						time.Sleep(time.Millisecond)
					}
				}
				v.kill(t, trigger, nil)
			}()
			c, err := suite.node.Launch(ctx, kit.Spec{Runtime: suite.runtime})
			<-killed
			revive(t, v)
			switch {
			case err == nil:
				t.Logf("the container was there before the %s was killed", v.name)
				scrap(t, ctx, c)
			default:
				t.Logf("create answers: %v", err)
			}
			for _, id := range containersNow(t, ctx) {
				if !before[id] {
					purge(t, ctx, id)
				}
			}
		})
	}
}

func containersNow(t *testing.T, ctx context.Context) []string {
	t.Helper()
	all, err := suite.node.Client.Containers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, c := range all {
		ids = append(ids, c.ID())
	}
	return ids
}

func TestKillWhileDeleting(t *testing.T) {
	for _, v := range victims() {
		t.Run(v.name, func(t *testing.T) {
			ctx := alone(t)
			c, err := suite.node.Launch(ctx, kit.Spec{Runtime: suite.runtime})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.Signal(ctx, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Wait(ctx); err != nil {
				t.Fatal(err)
			}
			deleted := make(chan error, 1)
			task := c.Task
			go func() { _, err := task.Delete(ctx); deleted <- err }()
			killQuietly(t, v)
			t.Logf("delete answers: %v", <-deleted)
			revive(t, v)
			scrap(t, ctx, c)
		})
	}
}

// killQuietly kills whichever victims there still are: during a delete there may be none any more.
func killQuietly(t *testing.T, v victim) {
	t.Helper()
	if v.name == daemonVictim.name {
		v.kill(t, context.Background(), nil)
		return
	}
	for pid := range v.pids(t) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// TestRestartContainerd: what runs lives on, and is containerd's again when it is back.
func TestRestartContainerd(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(signal.String(), func(t *testing.T) {
			ctx := alone(t)
			c, err := suite.node.Launch(ctx, kit.Spec{
				Runtime: suite.runtime, Args: sh("trap 'echo ended; exit 9' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.2; done"),
			})
			if err != nil {
				t.Fatal(err)
			}
			defer scrap(t, ctx, c)
			prints(t, c.Stdout, "1\n")
			if err := suite.node.StopDaemon(signal); err != nil {
				t.Fatal(err)
			}
			before := c.Stdout.Len()
			eventually(t, func() string {
				if c.Stdout.Len() <= before {
					return "no more output while containerd is away"
				}
				return ""
			})
			if err := suite.node.StartDaemon(ctx); err != nil {
				t.Fatal(err)
			}
			again := reload(t, ctx, c)
			if got := output(t, exec(t, ctx, again, "/bin/echo", "back")); got != "back" {
				t.Errorf("an exec answers %q", got)
			}
			before = c.Stdout.Len()
			eventually(t, func() string {
				if c.Stdout.Len() <= before {
					return "no more output after containerd is back"
				}
				return ""
			})
			exit, err := again.Task.Wait(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := again.Task.Kill(ctx, syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if status := <-exit; status.ExitCode() != 9 {
				t.Errorf("ended with %d (%v), want 9", status.ExitCode(), status.Error())
			}
			prints(t, c.Stdout, "ended")
		})
	}
}

// reload returns the container as the client of a containerd that was started again knows it.
func reload(t *testing.T, ctx context.Context, c *kit.Container) *kit.Container {
	t.Helper()
	loaded, err := suite.node.Client.LoadContainer(ctx, c.ID())
	if err != nil {
		t.Fatal(err)
	}
	task, err := loaded.Task(ctx, func(*cio.FIFOSet) (cio.IO, error) { return nil, nil })
	if err != nil {
		t.Fatal(err)
	}
	if status, err := task.Status(ctx); err != nil || status.Status != client.Running {
		t.Fatalf("after containerd was restarted the task is %q (%v)", status.Status, err)
	}
	return &kit.Container{Container: loaded, Task: task, Stdout: c.Stdout, Stderr: c.Stderr}
}

// TestRestartContainerdUnderPod is the same for a pod: exec and logs go on, and it can be removed.
func TestRestartContainerdUnderPod(t *testing.T) {
	for _, handler := range handlers() {
		t.Run(handler, func(t *testing.T) {
			ctx := alone(t)
			p := runCRIPod(t, ctx, handler, nil)
			id := p.start("talk", sh("i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2; done"), nil)
			lines := func() int {
				data, _ := os.ReadFile(p.config.LogDirectory + "/talk.log")
				return strings.Count(string(data), " stdout F line ")
			}
			eventually(t, func() string { return complaint(lines() > 0, "no log") })
			if err := suite.node.StopDaemon(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := suite.node.StartDaemon(ctx); err != nil {
				t.Fatal(err)
			}
			p.service = criClient(t)
			t.Cleanup(p.remove)
			eventually(t, func() string {
				status, err := p.service.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: id})
				return complaint(err == nil && status.GetStatus().GetState() == cri.ContainerState_CONTAINER_RUNNING, fmt.Sprint(status.GetStatus().GetState(), err))
			})
			before := lines()
			eventually(t, func() string { return complaint(lines() > before, "the log has stopped") })
			p.expect(id, "echo back", "back")
		})
	}
}

func complaint(ok bool, otherwise string) string {
	if ok {
		return ""
	}
	return otherwise
}
