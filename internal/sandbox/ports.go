package sandbox

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	guestapi "bulkhead.dev/bulkhead/api/guest"
)

const (
	// maxForwarded is how many connections are carried into the guest at once, well within the streams that a channel has.
	maxForwarded = 128
	// forwardTimeout is how long the guest may take to connect, and to be told of an end.
	forwardTimeout = 30 * time.Second
)

// servePorts carries connections to the namespace's loopback address into the guest, until the network is detached.
func (s *Sandbox) servePorts() {
	switch {
	case s.net == nil:
	case s.net.loopback == nil:
		if s.net.noLoopback != nil {
			s.deps.Logger.Warn("ports can't be forwarded to this pod", "sandbox", s.spec.ID, "error", s.net.noLoopback)
		}
	default:
		go s.acceptPorts(s.net.loopback)
	}
}

func (s *Sandbox) acceptPorts(listener *net.TCPListener) {
	places := make(chan struct{}, maxForwarded)
	for {
		conn, err := listener.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			s.deps.Logger.Warn("accepting a connection to a port of the pod", "sandbox", s.spec.ID, "error", err)
			select {
			case <-time.After(time.Second): // what it lacks may come back
				continue
			case <-s.forwarding.Done():
				return
			}
		}
		select {
		case places <- struct{}{}: // until there is one, the others wait in the listener's queue
		case <-s.forwarding.Done():
			reset(conn)
			return
		}
		go func() {
			defer func() { <-places }()
			s.forward(conn)
		}()
	}
}

// forward carries one connection into the guest. Nobody listening there ends it with a reset, as near to a refusal as is left.
func (s *Sandbox) forward(conn *net.TCPConn) {
	stream, id, err := s.dialGuest(conn)
	if err != nil {
		s.deps.Logger.Debug("a connection is not forwarded", "sandbox", s.spec.ID, "error", err)
		reset(conn)
		return
	}
	defer context.AfterFunc(s.forwarding, func() {
		conn.Close()
		_ = stream.SetDeadline(time.Unix(1, 0)) // long ago; it never fails
	})()
	var both sync.WaitGroup
	both.Go(func() {
		_, err := io.Copy(stream, conn)
		stream.Close()
		if err != nil && s.forwarding.Err() == nil {
			s.hangUp(id) // the client is gone, and the guest's end may go on for ever
		}
	})
	both.Go(func() {
		if _, err := io.Copy(conn, stream); err != nil {
			if s.forwarding.Err() != nil {
				return // the guest ends with all of its connections
			}
			s.hangUp(id)
			drain(stream)
		}
		_ = conn.CloseWrite() // it may have ended
	})
	both.Wait()
	conn.Close()
}

// dialGuest connects a new stream with the port of the guest that the connection was made to.
func (s *Sandbox) dialGuest(conn *net.TCPConn) (net.Conn, uint64, error) {
	port, err := s.net.port(conn)
	if err != nil {
		return nil, 0, err
	}
	ctx, cancel := context.WithTimeout(s.forwarding, forwardTimeout)
	defer cancel()
	id := s.streams.Add(1)
	stream, err := s.channel.Open(ctx, id)
	if err != nil {
		return nil, 0, err
	}
	err = s.call(ctx, "connect to a port of the pod", func(ctx context.Context) error {
		_, err := s.agent.Dial(ctx, &guestapi.DialRequest{Port: uint32(port), Stream: id})
		return err
	})
	if err != nil {
		stream.Close()
		go func() {
			s.hangUp(id) // it may have come to something after all
			drain(stream)
		}()
		return nil, 0, err
	}
	return stream, id, nil
}

func (s *Sandbox) hangUp(stream uint64) {
	ctx, cancel := context.WithTimeout(s.life, forwardTimeout)
	defer cancel()
	err := s.call(ctx, "end a connection to a port of the pod", func(ctx context.Context) error {
		_, err := s.agent.HangUp(ctx, &guestapi.HangUpRequest{Stream: stream})
		return err
	})
	if err != nil {
		s.deps.Logger.Debug("a connection may go on in the guest", "sandbox", s.spec.ID, "error", err)
	}
}

// drain reads what was under way when a connection was hung up, and the end after it, which makes room for another stream. A guest that
// sends more than that is let wait.
func drain(stream net.Conn) { _, _ = io.CopyN(io.Discard, stream, 1<<20) }

// reset closes a connection so that its client sees an error and not an end.
func reset(conn *net.TCPConn) {
	_ = conn.SetLinger(0) // else it is an end
	conn.Close()
}
