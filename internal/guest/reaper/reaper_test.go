package reaper

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// one is the reaper of the test process: there must be one only.
var one *Reaper

func TestMain(m *testing.M) {
	// As PID 1 would, inherit the processes that others leave behind.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	one = New()
	code := m.Run()
	one.Close()
	os.Exit(code)
}

func wait(t *testing.T, c *Child) Exit {
	t.Helper()
	select {
	case <-c.Done():
		return c.Exit()
	case <-time.After(time.Minute):
		t.Fatalf("process %d doesn't end", c.PID())
		return Exit{}
	}
}

func sh(t *testing.T, script string, files ...*os.File) *Child {
	t.Helper()
	c, err := one.Start("/bin/sh", []string{"sh", "-c", script}, nil, files...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestStatuses(t *testing.T) {
	for script, want := range map[string]uint32{
		"exit 0":                0,
		"exit 7":                7,
		"exit 255":              255,
		"kill -TERM $$":         128 + 15,
		"kill -KILL $$; exit 3": 128 + 9,
	} {
		t.Run(script, func(t *testing.T) {
			if got := wait(t, sh(t, script)); got.Status != want || got.At.IsZero() {
				t.Errorf("got %+v, want status %d", got, want)
			}
		})
	}
}

func TestMissingProgram(t *testing.T) {
	if _, err := one.Start("/nonexistent", []string{"x"}, nil); err == nil {
		t.Fatal("no error")
	}
	wait(t, sh(t, "exit 0")) // the reaper goes on
}

func TestManyAtOnce(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			c, err := one.Start("/bin/sh", []string{"sh", "-c", "exit " + strconv.Itoa(i)}, nil)
			if err != nil {
				t.Error(err)
				return
			}
			if got := c.Exit().Status; got != uint32(i) {
				t.Errorf("child %d ended with %d", i, got)
			}
		})
	}
	wg.Wait()
}

// orphan starts a shell that leaves a process behind, and returns that process's pid once the shell has ended: not before,
// since the shell might wait for it itself. The process runs script once it is released.
func orphan(t *testing.T, script string) (pid int, release func()) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	heldRead, heldWrite, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := sh(t, "(cat <&3; "+script+") >/dev/null & echo $!", nil, w, nil, heldRead)
	w.Close()
	heldRead.Close()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(line)); err != nil {
		t.Fatal(err)
	}
	wait(t, c)
	return pid, func() { heldWrite.Close() }
}

func TestOrphanThatEndsBeforeItIsClaimed(t *testing.T) {
	hold := one.Hold()
	defer hold.Release()
	pid, release := orphan(t, "exit 42")
	release()
	for deadline := time.Now().Add(time.Minute); unix.Kill(pid, 0) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("orphan doesn't end")
		}
	}
	c, err := hold.Child(pid)
	if err != nil {
		t.Fatal(err)
	}
	if got := wait(t, c).Status; got != 42 {
		t.Errorf("status %d, want 42", got)
	}
	if err := c.Signal(syscall.SIGTERM); !errdefs.IsNotFound(err) {
		t.Errorf("Signal after the end = %v", err)
	}
	hold.Release()
	one.mu.Lock()
	defer one.mu.Unlock()
	if one.holds != 0 || len(one.unclaimed) != 0 {
		t.Errorf("%d holds, %d statuses kept", one.holds, len(one.unclaimed))
	}
}

func TestOrphanThatIsSignalled(t *testing.T) {
	hold := one.Hold()
	pid, release := orphan(t, "exec sleep 100")
	release()
	c, err := hold.Child(pid)
	hold.Release()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := wait(t, c).Status; got != 128+15 {
		t.Errorf("status %d, want 143", got)
	}
}

func TestUnknownProcess(t *testing.T) {
	hold := one.Hold()
	defer hold.Release()
	if _, err := hold.Child(1 << 22); err == nil {
		t.Error("a process that never was is registered")
	}
}
