package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	guestapi "bulkhead.dev/bulkhead/api/guest"
)

const (
	// maxDialed is how many connections the host may have with the pod's ports.
	maxDialed = 256
	// dialTimeout is for one address. Loopback answers at once, unless the listener's queue is full.
	dialTimeout = 10 * time.Second
)

// streamTaker hands out the data streams of the channel.
type streamTaker interface {
	Take(ctx context.Context, id uint64) (net.Conn, error)
	Drop(id uint64)
}

// ports connects data streams with the pod's ports.
type ports struct {
	streams streamTaker

	mu     sync.Mutex
	dialed map[uint64]net.Conn // by the stream; nil while it is being made
}

// Dial implements the service.
func (a *Agent) Dial(ctx context.Context, r *guestapi.DialRequest) (*guestapi.Empty, error) {
	if err := a.ports.dial(ctx, r.Port, r.Stream); err != nil {
		return nil, err
	}
	return &guestapi.Empty{}, nil
}

// HangUp implements the service.
func (a *Agent) HangUp(_ context.Context, r *guestapi.HangUpRequest) (*guestapi.Empty, error) {
	a.ports.hangUp(r.Stream)
	return &guestapi.Empty{}, nil
}

func (p *ports) dial(ctx context.Context, port uint32, stream uint64) (err error) {
	if err := p.reserve(port, stream); err != nil {
		p.streams.Drop(stream)
		return err
	}
	defer func() {
		if err != nil {
			p.forget(stream)
		}
	}()
	conn, err := dialLoopback(ctx, port)
	if err != nil {
		p.streams.Drop(stream)
		return err
	}
	s, err := p.streams.Take(ctx, stream)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	if !p.keep(stream, conn) {
		s.Close()
		return errors.Join(fmt.Errorf("stream %d was hung up: %w", stream, errdefs.ErrAborted), conn.Close())
	}
	go func() {
		defer p.forget(stream)
		join(conn, s)
	}()
	return nil
}

func (p *ports) reserve(port uint32, stream uint64) error {
	if port < 1 || port > 65535 || stream == 0 {
		return fmt.Errorf("port %d, stream %d: %w", port, stream, errdefs.ErrInvalidArgument)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.dialed[stream]; ok {
		return fmt.Errorf("stream %d is a connection already: %w", stream, errdefs.ErrAlreadyExists)
	}
	if len(p.dialed) >= maxDialed {
		return fmt.Errorf("there are %d connections: %w", maxDialed, errdefs.ErrResourceExhausted)
	}
	p.dialed[stream] = nil
	return nil
}

// keep notes the connection that was made for a stream, unless it was hung up meanwhile.
func (p *ports) keep(stream uint64, conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.dialed[stream]; !ok {
		return false
	}
	p.dialed[stream] = conn
	return true
}

func (p *ports) forget(stream uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.dialed, stream)
}

// hangUp closes the connection, on which its two directions end.
func (p *ports) hangUp(stream uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if conn := p.dialed[stream]; conn != nil {
		conn.Close()
	} else {
		delete(p.dialed, stream) // it is being made
	}
}

// dialLoopback takes the first of the loopback addresses at which somebody listens.
func dialLoopback(ctx context.Context, port uint32) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	var errs []error
	for _, address := range []string{"127.0.0.1", "::1"} {
		conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(address, strconv.FormatUint(uint64(port), 10)))
		if err == nil {
			return conn.(*net.TCPConn), nil //nolint:forcetypeassert // it is what a Dialer makes for tcp
		}
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return nil, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
}

// join carries both directions of a connection, each to its own end.
func join(conn *net.TCPConn, stream net.Conn) {
	var both sync.WaitGroup
	both.Go(func() {
		if _, err := io.Copy(conn, stream); err != nil {
			conn.Close() // the program has closed its end, or the host hung up
			_, _ = io.Copy(io.Discard, stream)
			return
		}
		_ = conn.CloseWrite() // it may have ended
	})
	both.Go(func() {
		_, _ = io.Copy(stream, conn) // however it ends, the host is told by the end of the stream
		stream.Close()
	})
	both.Wait()
	conn.Close()
}
