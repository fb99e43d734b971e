package guest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	guestapi "bulkhead.dev/bulkhead/api/guest"
	"bulkhead.dev/bulkhead/internal/guest/rpc"
)

// channel returns both ends of a session.
func channel(t *testing.T) (*rpc.Host, *rpc.Guest) {
	t.Helper()
	h, g := net.Pipe()
	host, err := rpc.NewHost(h)
	if err != nil {
		t.Fatal(err)
	}
	guest, err := rpc.NewGuest(g)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { host.Close(); guest.Close() })
	return host, guest
}

func open(t *testing.T, host *rpc.Host, id uint64) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := host.Open(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestStdioCarriesAll(t *testing.T) {
	host, guest := channel(t)
	s, err := newStdio(guest, &guestapi.Stdio{Stdin: 1, Stdout: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	in, out := open(t, host, 1), open(t, host, 2)
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	var g errgroup.Group
	g.Go(func() error { // the process: cat
		_, err := io.Copy(s.child[1], s.child[0])
		s.started()
		s.finish()
		return err
	})
	g.Go(func() error {
		_, err := in.Write(data)
		return errors.Join(err, in.Close())
	})
	got, err := io.ReadAll(out)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}

// TestStdioFinishWaitsForSlowHost: what a process has written before it ended is sent, however slow the host reads.
func TestStdioFinishWaitsForSlowHost(t *testing.T) {
	host, guest := channel(t)
	s, err := newStdio(guest, &guestapi.Stdio{Stdout: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	out := open(t, host, 1)
	const size = 2 << 20 // more than the windows and the pipe hold
	written := make(chan error, 1)
	go func() {
		_, err := s.child[1].Write(make([]byte, size))
		written <- err
		s.started()
	}()
	finished := make(chan struct{})
	go func() {
		<-written
		s.finish()
		close(finished)
	}()
	select {
	case <-finished:
		t.Fatal("finished before anything was read")
	case <-time.After(3 * orphanGrace):
	}
	if n, err := io.Copy(io.Discard, out); err != nil || n != size {
		t.Errorf("%d bytes, %v", n, err)
	}
	<-finished
}

// TestStdioBackgroundProcess: a process that holds the output open doesn't hold up the end of another.
func TestStdioBackgroundProcess(t *testing.T) {
	host, guest := channel(t)
	s, err := newStdio(guest, &guestapi.Stdio{Stdout: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	out := open(t, host, 1)
	if _, err := s.child[1].Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	s.finish() // though child[1] is open
	if b, err := io.ReadAll(out); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	// It can go on writing.
	for range 64 {
		if _, err := s.child[1].Write(make([]byte, 64<<10)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStdioHostGoesAway: a process doesn't stall when nobody reads its output any more.
func TestStdioHostGoesAway(t *testing.T) {
	host, guest := channel(t)
	s, err := newStdio(guest, &guestapi.Stdio{Stdout: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	open(t, host, 1).Close()
	for range 64 {
		if _, err := s.child[1].Write(make([]byte, 64<<10)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStdioProcessDoesNotRead: the host doesn't stall when the process doesn't read its input.
func TestStdioProcessDoesNotRead(t *testing.T) {
	host, guest := channel(t)
	s, err := newStdio(guest, &guestapi.Stdio{Stdin: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	in := open(t, host, 1)
	s.started() // the process has ended
	s.finish()
	in.SetWriteDeadline(time.Now().Add(time.Minute))
	if _, err := in.Write(make([]byte, 2<<20)); err != nil {
		t.Errorf("Write: %v", err)
	}
}

func TestStdioOfNothing(t *testing.T) {
	_, guest := channel(t)
	s, err := newStdio(guest, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.child != [3]*os.File{} {
		t.Error("there are files")
	}
	s.finish()
	s.close()
	if err := s.resize(1, 1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("resize = %v", err)
	}
	if _, err := newStdio(guest, &guestapi.Stdio{Terminal: true, Stderr: 3}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("terminal with stderr: %v", err)
	}
}

// TestStdioStreamsThatNeverCome: a process can end and be deleted though the host has opened none of its streams.
func TestStdioStreamsThatNeverCome(t *testing.T) {
	_, guest := channel(t)
	s, err := newStdio(guest, &guestapi.Stdio{Stdin: 1, Stdout: 2, Stderr: 3})
	if err != nil {
		t.Fatal(err)
	}
	s.started()
	s.finish()
	s.close()
}

func TestEventQueue(t *testing.T) {
	q := newEventQueue()
	oom := func(id string) *guestapi.Event {
		return &guestapi.Event{Kind: &guestapi.Event_Oom{Oom: &guestapi.OOM{Container: id}}}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	old := make(chan error, 1)
	go func() {
		_, err := q.next(ctx)
		old <- err
	}()
	for { // until the older call waits
		q.mu.Lock()
		waiting := q.newer != nil
		q.mu.Unlock()
		if waiting {
			break
		}
		time.Sleep(time.Millisecond)
	}
	got := make(chan string, 1)
	go func() {
		e, err := q.next(ctx)
		if err != nil {
			got <- err.Error()
			return
		}
		got <- e.GetOom().GetContainer()
	}()
	if err := <-old; !errdefs.IsAborted(err) {
		t.Errorf("the older call ended with %v", err)
	}
	q.add(oom("a"))
	if id := <-got; id != "a" {
		t.Errorf("event %q", id)
	}
	for range maxEvents + 10 {
		q.add(oom("b"))
	}
	if n := len(q.queue); n != maxEvents {
		t.Errorf("%d events are kept", n)
	}
}

func TestUndo(t *testing.T) {
	var order []int
	fail := errors.New("busy")
	var u undo
	for i := range 3 {
		u.add(func() error {
			order = append(order, i)
			if i == 1 {
				return fail
			}
			return nil
		})
	}
	if err := u.run(); !errors.Is(err, fail) {
		t.Errorf("run = %v", err)
	}
	fail = nil
	if err := u.run(); err != nil {
		t.Errorf("run again = %v", err)
	}
	want := []int{2, 1, 0, 1}
	for i := range want {
		if i >= len(order) || order[i] != want[i] {
			t.Fatalf("order %v, want %v", order, want)
		}
	}
}

func TestSized(t *testing.T) {
	const config = `{"args":["a"],"consoleSize":{"height":1,"width":1},"cwd":"/"}`
	for name, tc := range map[string]struct {
		io   *stdio
		want string
	}{
		"no terminal": {&stdio{width: 80, height: 24}, config},
		"no size":     {&stdio{terminal: true}, config},
		"a size":      {&stdio{terminal: true, width: 80, height: 24}, `{"args":["a"],"consoleSize":{"height":24,"width":80},"cwd":"/"}`},
	} {
		if got, err := tc.io.sized([]byte(config)); err != nil || string(got) != tc.want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
}
