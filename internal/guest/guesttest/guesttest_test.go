package guesttest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	guestapi "bulkhead.dev/bulkhead/api/guest"
	"bulkhead.dev/bulkhead/internal/guest/guesttest"
	"bulkhead.dev/bulkhead/internal/guest/rpc"
)

func connect(t *testing.T) (context.Context, *guesttest.Agent, *rpc.Host) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	hostConn, guestConn := net.Pipe()
	agent := guesttest.New()
	served := make(chan struct{})
	go func() {
		defer close(served)
		agent.Serve(guestConn)
	}()
	host, err := rpc.NewHost(hostConn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		host.Close()
		<-served
		cancel()
	})
	return ctx, agent, host
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func create(ctx context.Context, t *testing.T, host *rpc.Host, id string, stdio *guestapi.Stdio, args ...string) {
	t.Helper()
	spec := specs.Spec{Process: &specs.Process{Args: args}}
	if _, err := host.Agent().CreateContainer(ctx, &guestapi.CreateContainerRequest{Id: id, Spec: marshal(t, spec), Stdio: stdio}); err != nil {
		t.Fatal(err)
	}
}

func TestLifecycle(t *testing.T) {
	ctx, agent, host := connect(t)
	a := host.Agent()
	create(ctx, t, host, "c", &guestapi.Stdio{Stdin: 1, Stdout: 2}, "cat")
	in, _ := host.Open(ctx, 1)
	out, _ := host.Open(ctx, 2)
	if _, err := a.Start(ctx, &guestapi.ProcessRequest{Container: "c"}); err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("0123456789"), 100_000)
	go func() {
		in.Write(data)
		in.Close()
	}()
	if got, err := io.ReadAll(out); err != nil || !bytes.Equal(got, data) {
		t.Errorf("cat gave back %d bytes, %v", len(got), err)
	}
	w, err := a.Wait(ctx, &guestapi.ProcessRequest{Container: "c"})
	if err != nil || w.Status != 0 {
		t.Errorf("Wait = %v, %v", w, err)
	}
	if _, err := a.Signal(ctx, &guestapi.SignalRequest{Container: "c", Signal: 9}); !errdefs.IsNotFound(err) {
		t.Errorf("Signal after the end = %v", err)
	}
	if _, err := a.Delete(ctx, &guestapi.ProcessRequest{Container: "c"}); err != nil {
		t.Error(err)
	}
	if ids := agent.Containers(); len(ids) != 0 {
		t.Errorf("containers left: %v", ids)
	}
	if n := len(agent.Requests("Start")); n != 1 {
		t.Errorf("Start was logged %d times", n)
	}
}

func TestExec(t *testing.T) {
	ctx, _, host := connect(t)
	a := host.Agent()
	create(ctx, t, host, "c", nil, "sleep")
	exec := func(id string, stdio *guestapi.Stdio, args ...string) error {
		_, err := a.CreateExec(ctx, &guestapi.CreateExecRequest{
			Container: "c", Exec: id, Process: marshal(t, specs.Process{Args: args}), Stdio: stdio,
		})
		return err
	}
	if err := exec("early", nil, "exit", "0"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec before start = %v", err)
	}
	if _, err := a.Start(ctx, &guestapi.ProcessRequest{Container: "c"}); err != nil {
		t.Fatal(err)
	}
	if err := exec("e", &guestapi.Stdio{Stderr: 3}, "err", "hello"); err != nil {
		t.Fatal(err)
	}
	errs, _ := host.Open(ctx, 3)
	if _, err := a.Start(ctx, &guestapi.ProcessRequest{Container: "c", Exec: "e"}); err != nil {
		t.Fatal(err)
	}
	if b, _ := io.ReadAll(errs); string(b) != "hello\n" {
		t.Errorf("stderr = %q", b)
	}
	if err := exec("m", nil, "missing"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Start(ctx, &guestapi.ProcessRequest{Container: "c", Exec: "m"}); !errdefs.IsNotFound(err) {
		t.Errorf("missing program = %v", err)
	}
	if _, err := a.Delete(ctx, &guestapi.ProcessRequest{Container: "c"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Delete while running = %v", err)
	}
	if _, err := a.Signal(ctx, &guestapi.SignalRequest{Container: "c", Signal: uint32(syscall.SIGTERM)}); err != nil {
		t.Error(err)
	}
	if w, err := a.Wait(ctx, &guestapi.ProcessRequest{Container: "c"}); err != nil || w.Status != 128+15 {
		t.Errorf("Wait = %v, %v", w, err)
	}
}

func TestOOMAndMisbehaviour(t *testing.T) {
	ctx, agent, host := connect(t)
	a := host.Agent()
	create(ctx, t, host, "c", nil, "sleep")
	if _, err := a.Start(ctx, &guestapi.ProcessRequest{Container: "c"}); err != nil {
		t.Fatal(err)
	}
	if err := agent.OOM("c"); err != nil {
		t.Fatal(err)
	}
	if e, err := a.NextEvent(ctx, &guestapi.Empty{}); err != nil || e.GetOom().GetContainer() != "c" {
		t.Errorf("NextEvent = %v, %v", e, err)
	}
	if w, err := a.Wait(ctx, &guestapi.ProcessRequest{Container: "c"}); err != nil || w.Status != 137 {
		t.Errorf("Wait = %v, %v", w, err)
	}
	agent.Fail("Stats", errdefs.ErrNotImplemented)
	if _, err := a.Stats(ctx, &guestapi.ContainerRequest{Container: "c"}); !errdefs.IsNotImplemented(err) {
		t.Errorf("Stats = %v", err)
	}
	agent.Hang("Pids")
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := a.Pids(short, &guestapi.ContainerRequest{Container: "c"}); !errdefs.IsDeadlineExceeded(err) {
		t.Errorf("Pids = %v", err)
	}
}
