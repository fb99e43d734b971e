package rpc

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/yamux"
)

// A ttrpc message has a header of 10 bytes, big endian: length u32 | call u32 | type u8 | flags u8.
const (
	messageHeaderLen = 10
	maxMessage       = 4 << 20

	messageRequest  = 1
	messageResponse = 2
)

// messageScanner finds the headers in a stream of ttrpc messages that arrives in pieces of any size.
type messageScanner struct {
	header [messageHeaderLen]byte
	have   int
	body   uint32
}

// scan takes the next piece, and calls visit for each header that it completes, until visit returns an error.
func (m *messageScanner) scan(p []byte, visit func(length, call uint32, kind byte) error) error {
	for len(p) > 0 {
		if m.body > 0 {
			n := min(len(p), int(m.body))
			m.body -= uint32(n)
			p = p[n:]
			continue
		}
		n := copy(m.header[m.have:], p)
		m.have += n
		p = p[n:]
		if m.have < messageHeaderLen {
			return nil
		}
		m.have = 0
		m.body = binary.BigEndian.Uint32(m.header[:4])
		if err := visit(m.body, binary.BigEndian.Uint32(m.header[4:8]), m.header[8]); err != nil {
			return err
		}
	}
	return nil
}

// callsConn is the host's end of the calls stream. It opens the stream with the first call, since the guest may not run
// before that, and lets through one answer per call, each of a size that ttrpc takes. (ttrpc itself discards what is
// too long, up to 4 GiB, and logs each answer that nobody asked for.)
type callsConn struct {
	*yamux.Stream // for the methods of net.Conn that nobody calls; set once opened is closed
	session       *yamux.Session
	guard         *guard
	opened        chan struct{}
	open          sync.Once
	openErr       error // set once opened is closed

	out messageScanner // used by the writer only
	in  messageScanner // used by the reader only

	mu      sync.Mutex
	pending map[uint32]struct{} // guarded by mu; calls without an answer
}

var _ net.Conn = (*callsConn)(nil)

func newCallsConn(session *yamux.Session, guard *guard) *callsConn {
	return &callsConn{session: session, guard: guard, opened: make(chan struct{}), pending: make(map[uint32]struct{})}
}

func (c *callsConn) Write(p []byte) (int, error) {
	c.open.Do(func() {
		defer close(c.opened)
		c.Stream, c.openErr = c.session.OpenStream()
		if c.openErr == nil {
			_, c.openErr = c.Stream.Write(appendHeader(nil, kindCalls, 0))
		}
	})
	if c.openErr != nil {
		return 0, fmt.Errorf("opening the calls stream: %w", c.openErr)
	}
	err := c.out.scan(p, func(_, call uint32, kind byte) error {
		if kind == messageRequest {
			c.mu.Lock()
			c.pending[call] = struct{}{}
			c.mu.Unlock()
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return c.Stream.Write(p)
}

func (c *callsConn) Read(p []byte) (int, error) {
	select {
	case <-c.opened:
	case <-c.session.CloseChan():
		return 0, net.ErrClosed
	}
	if c.openErr != nil {
		return 0, c.openErr
	}
	n, err := c.Stream.Read(p)
	if verr := c.in.scan(p[:n], c.answered); verr != nil {
		_ = c.guard.fail(verr)
		c.session.Close()
		return 0, verr
	}
	return n, err
}

// answered tells whether the guest may send this message now.
func (c *callsConn) answered(length, call uint32, kind byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.pending[call]
	if !ok || kind != messageResponse || length > maxMessage {
		return fmt.Errorf("message from the guest (type %d, call %d, length %d) answers no call: %w",
			kind, call, length, errdefs.ErrInvalidArgument)
	}
	delete(c.pending, call)
	return nil
}

// Close ends the stream if it was opened. It never opens it.
func (c *callsConn) Close() error {
	select {
	case <-c.opened:
	default:
		return nil
	}
	if c.openErr != nil {
		return nil
	}
	return c.Stream.Close()
}
