package event

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/api/events"
	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// recorder is a Forwarder that fails as told, and then keeps what it gets.
type recorder struct {
	mu     sync.Mutex
	fail   func(attempt int) error
	tries  int
	got    []string
	closed bool
}

func (r *recorder) Forward(_ context.Context, e *types.Envelope) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tries++
	if r.fail != nil {
		if err := r.fail(r.tries); err != nil {
			return err
		}
	}
	var exit events.TaskExit
	if err := e.Event.UnmarshalTo(&exit); err != nil {
		return err
	}
	r.got = append(r.got, exit.ID)
	return nil
}

func (r *recorder) Close() error {
	r.closed = true
	return nil
}

func exit(id string) *events.TaskExit { return &events.TaskExit{ContainerID: "c", ID: id} }

func TestOrderIsKeptThroughFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{fail: func(n int) error {
			if n%3 != 0 {
				return errdefs.ErrUnavailable
			}
			return nil
		}}
		p := NewPublisher("default", r, slog.New(slog.DiscardHandler))
		var want []string
		for i := range 20 {
			p.Publish(exit(fmt.Sprint(i)))
			want = append(want, fmt.Sprint(i))
		}
		if err := p.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, r.got); diff != "" {
			t.Error(diff)
		}
		if !r.closed {
			t.Error("the forwarder was not closed")
		}
	})
}

func TestGivesUpAfterPatienceAndGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := &recorder{}
		r.fail = func(int) error {
			if time.Since(start) < 70*time.Second {
				return errdefs.ErrUnavailable
			}
			return nil
		}
		p := NewPublisher("default", r, slog.New(slog.DiscardHandler))
		p.Publish(exit("lost"))
		p.Publish(exit("kept"))
		if err := p.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"kept"}, r.got); diff != "" {
			t.Error(diff)
		}
	})
}

func TestRefusedForGoodIsNotTriedAgain(t *testing.T) {
	r := &recorder{fail: func(int) error { return errdefs.ErrInvalidArgument }}
	p := NewPublisher("default", r, slog.New(slog.DiscardHandler))
	p.Publish(exit("x"))
	if err := p.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if r.tries != 1 {
		t.Errorf("tried %d times, want 1", r.tries)
	}
}

func TestCloseGivesUpWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{fail: func(int) error { return errdefs.ErrUnavailable }}
		p := NewPublisher("default", r, slog.New(slog.DiscardHandler))
		p.Publish(exit("x"))
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := p.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close: %v, want a deadline exceeded", err)
		}
		p.Publish(exit("late")) // must neither panic nor block
		if err := p.Close(context.Background()); err != nil {
			t.Errorf("second Close: %v", err)
		}
	})
}

func TestPublishNeverBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{fail: func(int) error { return errdefs.ErrUnavailable }}
		p := NewPublisher("default", r, slog.New(slog.DiscardHandler))
		for range 2 * queueSize {
			p.Publish(exit("x"))
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		p.Close(ctx)
	})
}

func TestTopics(t *testing.T) {
	if _, ok := Topic(&events.ContainerCreate{}); ok {
		t.Error("an event that is no task's has a topic")
	}
	if topic, ok := Topic(&events.TaskOOM{}); !ok || topic != "/tasks/oom" {
		t.Errorf("Topic(TaskOOM) = %q, %v", topic, ok)
	}
}

type eventsServer chan *types.Envelope

func (s eventsServer) Forward(_ context.Context, r *eventsapi.ForwardRequest) (*emptypb.Empty, error) {
	s <- r.Envelope
	return &emptypb.Empty{}, nil
}

// serveEvents plays containerd's events service at path until the returned function is called.
func serveEvents(t *testing.T, path string, to eventsServer) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		t.Fatal(err)
	}
	eventsapi.RegisterTTRPCEventsService(server, to)
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(context.Background(), l)
	}()
	return func() {
		server.Close()
		<-done
	}
}

func TestSocketSurvivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	got := make(eventsServer, 8)
	stop := serveEvents(t, path, got)
	p := NewPublisher("ns1", NewSocket("unix://"+path), slog.New(slog.DiscardHandler))
	p.Publish(exit("before"))
	first := <-got
	if first.Namespace != "ns1" || first.Topic != "/tasks/exit" || first.Event.TypeUrl != "containerd.events.TaskExit" {
		t.Errorf("envelope %v", first)
	}
	stop()
	p.Publish(exit("meanwhile"))
	stop = serveEvents(t, path, got)
	defer stop()
	var second events.TaskExit
	if err := (<-got).Event.UnmarshalTo(&second); err != nil || second.ID != "meanwhile" {
		t.Errorf("after the restart: %v, %v", &second, err)
	}
	if err := p.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestBinary(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "containerd")
	script := "#!/bin/sh\necho \"$@\" >" + dir + "/args\ncat >" + dir + "/event\n"
	if err := os.WriteFile(binary, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	p := NewPublisher("ns1", NewBinary(binary, "/run/c.sock"), slog.New(slog.DiscardHandler))
	p.Publish(exit("e1"))
	if err := p.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	args, err := os.ReadFile(dir + "/args")
	if want := "--address /run/c.sock publish --topic /tasks/exit --namespace ns1\n"; err != nil || string(args) != want {
		t.Errorf("arguments %q, %v; want %q", args, err, want)
	}
	data, err := os.ReadFile(dir + "/event")
	if err != nil {
		t.Fatal(err)
	}
	var event anypb.Any
	if err := proto.Unmarshal(data, &event); err != nil || event.TypeUrl != "containerd.events.TaskExit" {
		t.Errorf("event %v, %v", &event, err)
	}
	err = NewBinary(filepath.Join(dir, "missing"), "").Forward(context.Background(), &types.Envelope{Topic: "/tasks/exit"})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing binary: %v", err)
	}
}
