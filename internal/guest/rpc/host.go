package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/hashicorp/yamux"

	guestapi "bulkhead.dev/bulkhead/api/guest"
)

// Host is the sandbox's end of the channel to a guest.
type Host struct {
	guard   *guard
	session *yamux.Session
	client  *ttrpc.Client
	agent   guestapi.AgentService

	opening   chan struct{} // a place for each stream that is being opened
	abandoned atomic.Int64  // calls that were given up and still wait to be sent
}

// NewHost begins a session on conn, which it owns from then on. The guest need not run yet: calls wait for it.
func NewHost(conn io.ReadWriteCloser) (*Host, error) {
	guard := newGuard(conn)
	session, err := yamux.Client(guard, config())
	if err != nil {
		return nil, fmt.Errorf("beginning a session with the guest: %w", err)
	}
	h := &Host{guard: guard, session: session, opening: make(chan struct{}, maxOpening)}
	h.client = ttrpc.NewClient(newCallsConn(session, guard), ttrpc.WithUnaryClientInterceptor(h.intercept))
	h.agent = guestapi.NewAgentClient(h.client)
	return h, nil
}

// Agent returns the guest's agent. Its errors are of the classes of errdefs, ErrUnavailable once the session has ended.
// A call whose context ends is given up here; the guest is not told and may still carry it out.
func (h *Host) Agent() guestapi.AgentService { return h.agent }

// Open opens the data stream with this id, which must not be 0 and not have been used before. It is ErrResourceExhausted when
// there are too many streams that the guest has not ended.
func (h *Host) Open(ctx context.Context, id uint64) (net.Conn, error) {
	if id == 0 {
		return nil, fmt.Errorf("opening a stream to the guest: id 0: %w", errdefs.ErrInvalidArgument)
	}
	select {
	case h.opening <- struct{}{}:
	case <-h.session.CloseChan():
		return nil, fmt.Errorf("opening stream %d to the guest: %w", id, h.unavailable())
	case <-ctx.Done():
		return nil, fmt.Errorf("opening stream %d to the guest: %w", id, ctx.Err())
	}
	if h.session.NumStreams() >= maxStreams {
		<-h.opening
		return nil, fmt.Errorf("opening stream %d to the guest: it has not ended %d others: %w", id, maxStreams, errdefs.ErrResourceExhausted)
	}
	type result struct {
		stream *yamux.Stream
		err    error
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-h.opening }()
		s, err := h.session.OpenStream()
		if err == nil {
			if _, err = s.Write(appendHeader(nil, kindData, id)); err != nil {
				s.Close()
			}
		}
		done <- result{s, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, fmt.Errorf("opening stream %d to the guest: %w: %w", id, r.err, h.unavailable())
		}
		return r.stream, nil
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				refuse(r.stream)
			}
		}()
		return nil, fmt.Errorf("opening stream %d to the guest: %w", id, ctx.Err())
	}
}

// Done is closed when the session has ended; nothing works from then on.
func (h *Host) Done() <-chan struct{} { return h.session.CloseChan() }

// Err returns why the session has ended: nil while it lasts and after Close, an error of class ErrInvalidArgument when
// the guest sent what it must not, another error when the connection ended.
func (h *Host) Err() error {
	select {
	case <-h.session.CloseChan():
	default:
		return nil
	}
	err := h.guard.cause()
	if err == nil || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}

// Close ends the session and closes the connection below it. It is idempotent.
func (h *Host) Close() error {
	err := h.session.Close() // first: it frees whoever waits for a guest that doesn't read
	h.client.Close()
	return err
}

func (h *Host) unavailable() error {
	if err := h.guard.cause(); err != nil {
		return fmt.Errorf("channel to the guest ended: %w: %w", err, errdefs.ErrUnavailable)
	}
	return errdefs.ErrUnavailable
}

// intercept gives calls up when their context ends, also those that wait for a guest that reads nothing, and turns errors
// into errdefs.
func (h *Host) intercept(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, _ *ttrpc.UnaryClientInfo, next ttrpc.Invoker) error {
	answer := &ttrpc.Response{}
	done := make(chan error, 1)
	go func() { done <- next(ctx, req, answer) }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		h.abandon(done)
		return fmt.Errorf("guest: %s: %w", req.Method, ctx.Err())
	}
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return fmt.Errorf("guest: %s: %w", req.Method, ctx.Err())
	default:
		return fmt.Errorf("guest: %s: %w: %w", req.Method, err, h.unavailable())
	}
	if err := fromStatus(answer.Status); err != nil {
		return fmt.Errorf("guest: %s: %w", req.Method, err)
	}
	resp.Status, resp.Payload = answer.Status, answer.Payload
	return nil
}

// abandon leaves a call to itself. A guest that has very many of them wait reads nothing any more, and is ended.
func (h *Host) abandon(done <-chan error) {
	if h.abandoned.Add(1) > maxAbandoned {
		_ = h.guard.fail(fmt.Errorf("the guest has not read more than %d calls: %w", maxAbandoned, errdefs.ErrUnavailable))
		h.session.Close()
	}
	go func() {
		<-done //nolint:errcheck // nobody waits for it any more
		h.abandoned.Add(-1)
	}()
}
