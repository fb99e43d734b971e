package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	guestapi "bulkhead.dev/bulkhead/api/guest"
	"bulkhead.dev/bulkhead/internal/guest/guesttest"
	"bulkhead.dev/bulkhead/internal/guest/rpc"
	"bulkhead.dev/bulkhead/internal/vmm/vmmtest"
)

// hostile is an agent that answers what nobody should believe.
type hostile struct {
	*guesttest.Agent
	protocol uint32
	pid      uint32
	events   chan struct{} // one for each event that was asked for
}

func (h *hostile) Hello(context.Context, *guestapi.HelloRequest) (*guestapi.HelloResponse, error) {
	return &guestapi.HelloResponse{
		Protocol: h.protocol, KernelRelease: strings.Repeat("6\x1b[2J", 1000), AgentVersion: "\x00\u202e",
	}, nil
}

func (h *hostile) CreateContainer(ctx context.Context, r *guestapi.CreateContainerRequest) (*guestapi.CreateResponse, error) {
	answer, err := h.Agent.CreateContainer(ctx, r)
	if err == nil && h.pid != 0 {
		answer.Pid = h.pid
	}
	return answer, err
}

func (h *hostile) Start(context.Context, *guestapi.ProcessRequest) (*guestapi.StartResponse, error) {
	return &guestapi.StartResponse{Pid: 7}, nil
}

func (h *hostile) Wait(context.Context, *guestapi.ProcessRequest) (*guestapi.WaitResponse, error) {
	return &guestapi.WaitResponse{Status: math.MaxUint32, ExitedNanos: math.MinInt64}, nil
}

func (h *hostile) Pids(context.Context, *guestapi.ContainerRequest) (*guestapi.PidsResponse, error) {
	answer := &guestapi.PidsResponse{Processes: []*guestapi.PidInfo{{Pid: 0}, {Pid: math.MaxUint32}, {Pid: 9, Exec: "not-ours"}}}
	for i := range 80_000 {
		answer.Processes = append(answer.Processes, &guestapi.PidInfo{Pid: uint32(i%maxPID) + 1})
	}
	return answer, nil
}

func (h *hostile) NextEvent(ctx context.Context, _ *guestapi.Empty) (*guestapi.Event, error) {
	select {
	case h.events <- struct{}{}:
	default:
	}
	return &guestapi.Event{Kind: &guestapi.Event_Oom{Oom: &guestapi.OOM{Container: "nobody's"}}}, nil
}

// serve replaces the world's guest.
func (w *world) serve(serve func(conn net.Conn)) {
	w.fake = vmmtest.NewFake(serve)
	w.deps.Driver = w.fake
}

func (h *hostile) serve(conn net.Conn) {
	guest, err := rpc.NewGuest(conn)
	if err != nil {
		return
	}
	defer guest.Close()
	guest.Serve(context.Background(), h)
}

func TestHostileAnswers(t *testing.T) {
	w := newWorld(t)
	h := &hostile{Agent: w.agent, protocol: guestapi.Version, events: make(chan struct{}, 1000)}
	w.serve(h.serve)
	s := w.start()
	info, err := s.Info(t.Context())
	if err != nil || len(info.KernelRelease) > 4*maxText || strings.Contains(info.KernelRelease+info.AgentVersion, "\x1b") {
		t.Errorf("Info = %+v, %v", info, err)
	}
	spec := w.container("one", "sleep")
	spec.Stdin, spec.Stdout, spec.Stderr = false, false, false
	p, err := s.CreateContainer(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	mustStart(t, p)
	if exit := mustWait(t, p); exit.Status != 255 || time.Since(exit.At) > time.Minute {
		t.Errorf("exit %+v", exit)
	}
	pids, err := s.Pids(t.Context(), "one")
	if err != nil || len(pids) != maxPids || pids[0] != (Pid{PID: 9}) {
		t.Errorf("%d pids, the first %v; %v", len(pids), pids[:1], err)
	}
	// Endless events: some are asked for, not as many as the guest can make up, and none is told.
	for range 3 {
		<-h.events
	}
	select {
	case e := <-s.Events():
		t.Errorf("event %+v", e)
	default:
	}
	if n := len(h.events); n > 500 {
		t.Errorf("%d events were asked for", n)
	}

	h.pid = math.MaxUint32
	if _, err := s.CreateContainer(t.Context(), w.container("two", "sleep")); !errdefs.IsInternal(err) {
		t.Errorf("impossible pid: %v", err)
	}
	if ids := w.agent.Containers(); len(ids) != 1 {
		t.Errorf("containers in the guest: %v", ids)
	}
}

func TestProtocolVersion(t *testing.T) {
	w := newWorld(t)
	h := &hostile{Agent: w.agent, protocol: 2}
	w.serve(h.serve)
	if _, err := start(t.Context(), w.deps, w.spec, w.host()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start: %v", err)
	}
	w.checkClean()
}

// TestBrokenChannel: a guest that ends its channel, or sends what it must not, is ended, and its pod learns why.
func TestBrokenChannel(t *testing.T) {
	endings := map[string]func(conn net.Conn){
		"closes":        func(conn net.Conn) { conn.Close() },
		"sends garbage": func(conn net.Conn) { fmt.Fprint(conn, strings.Repeat("garbage ", 100)) },
	}
	for name, end := range endings {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			now := make(chan struct{})
			w.serve(func(conn net.Conn) {
				go func() {
					<-now
					end(conn)
				}()
				w.agent.Serve(conn)
			})
			s := w.start()
			p := w.create(s, "one", "sleep")
			mustStart(t, p)
			close(now)
			if _, err := p.Wait(t.Context()); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "channel to the guest") || !strings.Contains(err.Error(), "this guest is a fake") {
				t.Errorf("Wait: %v", err)
			}
			if err := s.Stop(t.Context()); err != nil {
				t.Error(err)
			}
			w.checkClean()
		})
	}
	t.Run("before it says hello", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.serve(func(conn net.Conn) { io.Copy(io.Discard, io.LimitReader(conn, 1)); conn.Close() })
		if _, err := start(t.Context(), w.deps, w.spec, w.host()); !errdefs.IsUnavailable(err) {
			t.Errorf("start: %v", err)
		}
		w.checkClean()
	})
}

func TestConsoleIsQuoted(t *testing.T) {
	err := withConsole(errRefused, &shouter{})
	if text := err.Error(); !errdefs.IsAborted(err) || len(text) > 12<<10 || strings.ContainsAny(text, "\x1b\n") {
		t.Errorf("%d bytes: %.200s", len(text), text)
	}
}

// shouter has a console full of escape sequences.
type shouter struct{ processVM }

func (*shouter) ConsoleTail() string { return string(bytes.Repeat([]byte("\x1b[31m\n"), 10_000)) }
