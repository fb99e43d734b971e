package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/hashicorp/yamux"

	guestapi "bulkhead.dev/bulkhead/api/guest"
)

// Guest is the agent's end of the channel.
type Guest struct {
	session *yamux.Session
	calls   chan *yamux.Stream

	mu      sync.Mutex
	called  bool                          // guarded by mu; the calls stream has come
	untaken map[uint64]*yamux.Stream      // guarded by mu; streams that no call has asked for yet
	waiting map[uint64]chan *yamux.Stream // guarded by mu; calls whose stream has not come yet
	dropped map[uint64]bool               // guarded by mu; streams that nobody wants and that have not come yet
	order   []uint64                      // guarded by mu; the same, the oldest first
}

// NewGuest begins the guest's end of a session on conn, which it owns from then on.
func NewGuest(conn io.ReadWriteCloser) (*Guest, error) {
	session, err := yamux.Server(conn, config())
	if err != nil {
		return nil, fmt.Errorf("beginning a session with the host: %w", err)
	}
	g := &Guest{
		session: session,
		calls:   make(chan *yamux.Stream, 1),
		untaken: make(map[uint64]*yamux.Stream),
		waiting: make(map[uint64]chan *yamux.Stream),
		dropped: make(map[uint64]bool),
	}
	go g.accept()
	return g, nil
}

// Serve answers calls with svc until the session ends, and then returns why, or until ctx is done. Each call runs in a
// goroutine of its own; errors of the classes of errdefs keep their class.
func (g *Guest) Serve(ctx context.Context, svc guestapi.AgentService) error {
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(
		func(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
			resp, err := method(ctx, unmarshal)
			return resp, toStatus(err)
		}))
	if err != nil {
		return fmt.Errorf("making the call server: %w", err)
	}
	defer server.Close()
	guestapi.RegisterAgentService(server, svc)

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { g.session.Close() })
	defer stop()
	err = server.Serve(ctx, &callsListener{g: g})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("serving calls: %w", err)
}

// Take returns the data stream with this id, and waits for it to come. A stream can be taken once. When ctx ends the wait,
// the stream is dropped.
func (g *Guest) Take(ctx context.Context, id uint64) (net.Conn, error) {
	if id == 0 {
		return nil, fmt.Errorf("taking a stream: id 0: %w", errdefs.ErrInvalidArgument)
	}
	g.mu.Lock()
	if s := g.untaken[id]; s != nil {
		delete(g.untaken, id)
		g.mu.Unlock()
		return s, nil
	}
	if g.waiting[id] != nil {
		g.mu.Unlock()
		return nil, fmt.Errorf("taking stream %d: somebody else waits for it: %w", id, errdefs.ErrAlreadyExists)
	}
	ch := make(chan *yamux.Stream, 1)
	g.waiting[id] = ch
	g.mu.Unlock()

	select {
	case s := <-ch:
		return s, nil
	case <-g.session.CloseChan():
		return nil, fmt.Errorf("taking stream %d: session ended: %w", id, errdefs.ErrUnavailable)
	case <-ctx.Done():
	}
	g.mu.Lock()
	delete(g.waiting, id)
	g.mu.Unlock()
	select {
	case s := <-ch: // it came at the last moment
		refuse(s)
	default:
		g.Drop(id)
	}
	return nil, fmt.Errorf("taking stream %d: %w", id, ctx.Err())
}

// Drop says that nobody will take a data stream: it is ended, now or when it comes, and what the host sends on it is
// thrown away. Of streams that never come, the last maxDropped are remembered.
func (g *Guest) Drop(id uint64) {
	if id == 0 {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.untaken[id]; s != nil {
		delete(g.untaken, id)
		refuse(s)
		return
	}
	if g.waiting[id] != nil || g.dropped[id] {
		return
	}
	if len(g.order) >= maxDropped {
		delete(g.dropped, g.order[0])
		g.order = g.order[1:]
	}
	g.dropped[id] = true
	g.order = append(g.order, id)
}

// Close ends the session and closes the connection below it. It is idempotent.
func (g *Guest) Close() error { return g.session.Close() }

// accept sorts incoming streams until the session ends.
func (g *Guest) accept() {
	slots := make(chan struct{}, maxUntaken) // bounds the goroutines that wait for a header
	for {
		s, err := g.session.AcceptStream()
		if err != nil {
			return
		}
		slots <- struct{}{}
		go func() {
			defer func() { <-slots }()
			if err := g.sort(s); err != nil {
				refuse(s)
			}
		}()
	}
}

// sort reads a stream's header and puts the stream where it belongs.
func (g *Guest) sort(s *yamux.Stream) error {
	var b [headerLen]byte
	if _, err := io.ReadFull(s, b[:]); err != nil {
		return fmt.Errorf("reading a stream's header: %w", err)
	}
	kind, id, err := parseHeader(b)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if kind == kindCalls {
		if g.called {
			return errors.New("second calls stream")
		}
		g.called = true
		g.calls <- s
		return nil
	}
	if ch := g.waiting[id]; ch != nil {
		delete(g.waiting, id)
		ch <- s
		return nil
	}
	if g.dropped[id] {
		return fmt.Errorf("stream %d was dropped", id)
	}
	if g.untaken[id] != nil || len(g.untaken) >= maxUntaken {
		return fmt.Errorf("stream %d comes twice or is one too many", id)
	}
	g.untaken[id] = s
	return nil
}

// callsListener hands ttrpc the calls stream; then it waits for the session's end.
type callsListener struct{ g *Guest }

func (l *callsListener) Accept() (net.Conn, error) {
	select {
	case s := <-l.g.calls:
		return s, nil
	case <-l.g.session.CloseChan():
		return nil, fmt.Errorf("session ended: %w", errdefs.ErrUnavailable)
	}
}

func (l *callsListener) Close() error   { return nil }
func (l *callsListener) Addr() net.Addr { return l.g.session.Addr() }
