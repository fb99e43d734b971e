package task

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"

	"bulkhead.dev/bulkhead/internal/sandbox"
	"bulkhead.dev/bulkhead/internal/shim/stdio"
)

// hurry shortens what the guest of the rig's pod may take.
func (r *rig) hurry() {
	r.service.mu.Lock()
	defer r.service.mu.Unlock()
	r.service.pod.limits = limits{
		silence: 50 * time.Millisecond, output: 50 * time.Millisecond, execs: 50 * time.Millisecond,
		answer: 50 * time.Millisecond, end: 200 * time.Millisecond,
	}
}

// endOfHostilePod kills a pod's container and then the pod, as the CRI does: the sandbox comes only after the container has
// ended and is deleted.
func (r *rig) endOfHostilePod() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	r.task.Kill(ctx, &taskapi.KillRequest{ID: "c", Signal: uint32(syscall.SIGKILL)})
	r.wait("c", "")
	for {
		attempt, cancel := context.WithTimeout(ctx, time.Second)
		_, err := r.task.Delete(attempt, &taskapi.DeleteRequest{ID: "c"})
		cancel()
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			r.t.Fatalf("the container can't be deleted: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	r.task.Kill(ctx, &taskapi.KillRequest{ID: "p", Signal: uint32(syscall.SIGKILL)}) // it may have ended with its VM
	r.wait("p", "")
	if vms := r.fake.Running(); len(vms) != 0 {
		r.t.Errorf("VMs %q run", vms)
	}
}

func TestGuestThatDoesNotObeyEnds(t *testing.T) {
	tests := []struct {
		name   string
		misuse func(r *rig)
	}{
		{"no answer to the signal", func(r *rig) { r.agent.Hang("Signal") }},
		{"the signal is refused", func(r *rig) { r.agent.Fail("Signal", errors.New("no")) }},
		{"no answer to delete", func(r *rig) { r.agent.Hang("Delete") }},
		{"delete is refused", func(r *rig) { r.agent.Fail("Delete", errors.New("no")) }},
		{"an exec never starts", func(r *rig) {
			r.agent.Hang("Start")
			r.exec("c", "e", "sleep")
			ctx, cancel := context.WithCancel(r.t.Context())
			r.t.Cleanup(cancel)
			go r.task.Start(ctx, &taskapi.StartRequest{ID: "c", ExecID: "e"})
			for len(r.agent.Requests("Start")) < 2 {
				time.Sleep(time.Millisecond)
			}
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t)
			r.pauser("p")
			r.hurry()
			r.member("c", "p", "sleep")
			test.misuse(r)
			r.endOfHostilePod()
		})
	}
	t.Run("the exit is never told", func(t *testing.T) {
		r := newRig(t)
		r.pauser("p")
		r.hurry()
		r.agent.Hang("Wait")
		r.member("c", "p", "sleep")
		r.endOfHostilePod()
	})
	t.Run("the start of a container never ends", func(t *testing.T) {
		r := newRig(t)
		r.create("c", "sleep")
		r.hurry()
		r.agent.Hang("Start")
		go r.task.Start(t.Context(), &taskapi.StartRequest{ID: "c"})
		for len(r.agent.Requests("Start")) == 0 {
			time.Sleep(time.Millisecond)
		}
		r.task.Kill(t.Context(), &taskapi.KillRequest{ID: "c", Signal: uint32(syscall.SIGKILL)})
		r.wait("c", "")
	})
}

// chatterbox is a process that has ended and whose output goes on.
type chatterbox struct {
	Process
	Machine
	output io.ReadCloser
}

func (c chatterbox) Wait(context.Context) (sandbox.Exit, error) { return sandbox.Exit{}, nil }
func (c chatterbox) Stdin() io.WriteCloser                      { return nil }
func (c chatterbox) Stdout() io.ReadCloser                      { return c.output }
func (c chatterbox) Stderr() io.ReadCloser                      { return nil }

func TestOutputAfterTheEndDoesNotHoldUpTheExit(t *testing.T) {
	reader, writer := io.Pipe()
	defer writer.Close()
	go func() {
		for {
			if _, err := writer.Write([]byte("x")); err != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	set, err := stdio.Open(t.Context(), stdio.Names{Stdout: "file://" + filepath.Join(t.TempDir(), "log")})
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	fake := chatterbox{output: reader}
	pod := &pod{machine: fake, limits: limits{silence: patience, output: 20 * time.Millisecond, execs: patience}}
	c := newContainer("c", "", member, pod, &journal{}, slog.New(slog.DiscardHandler))
	c.init = newProcess(c, "", fake, set)
	if err := c.init.move(running); err != nil {
		t.Fatal(err)
	}
	go c.init.watch()
	select {
	case <-c.init.ended:
	case <-time.After(patience):
		t.Fatal("the exit is never told")
	}
}
