package rpc

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/errdefs"
)

// A yamux frame has a header of 12 bytes, big endian:
//
//	version u8 = 0 | type u8 | flags u16 | stream u32 | length u32
//
// and, when its type is data, length bytes of it. A window update's length is what is added to the sender's window.
const (
	frameHeaderLen = 12

	frameData   = 0
	frameWindow = 1

	flagSYN = 1
	flagACK = 2
	flagFIN = 4
	flagRST = 8
)

type frameHeader [frameHeaderLen]byte

func (h *frameHeader) version() byte  { return h[0] }
func (h *frameHeader) kind() byte     { return h[1] }
func (h *frameHeader) flags() uint16  { return binary.BigEndian.Uint16(h[2:]) }
func (h *frameHeader) stream() uint32 { return binary.BigEndian.Uint32(h[4:]) }
func (h *frameHeader) length() uint32 { return binary.BigEndian.Uint32(h[8:]) }

// guard stands between yamux on the host and the guest's bytes. It lets a frame through only if an honest guest could
// have sent it at that moment: no streams of its own, no pings, no data on streams that the host has not opened or that
// the guest has closed, no more window than the host has used. So the number of frames is bounded by what the host
// itself sends and reads, and yamux never gets into the states in which it starts a goroutine per frame or discards
// gigabytes.
//
// It relies on how yamux writes: each header in one Write of its own, the frame's data in the next.
type guard struct {
	conn io.ReadWriteCloser
	r    *bufio.Reader

	// Of the reading side, used by yamux's receiver only.
	header []byte // what is left to hand out of a header that was checked
	body   uint32 // what is left to hand out of the frame's data

	// Of the writing side, used by yamux's sender only.
	inBody bool

	mu      sync.Mutex
	streams map[uint32]*streamState // guarded by mu
	highest uint32                  // guarded by mu; the last stream the host opened
	late    uint32                  // guarded by mu; frames that may still come for streams that are gone
	err     error                   // guarded by mu; the first violation, or why reading ended
}

type streamState struct {
	sent     uint64 // bytes from the host
	granted  uint64 // window from the guest, beyond the initial one
	received uint64 // bytes from the guest
	allowed  uint64 // window from the host, beyond the initial one
	acked    bool
	hostFIN  bool
	fin      bool // the guest's
}

// lateFrames is how many window updates an honest guest sends for a stream that both ends have closed: one for each
// half of the window that it still reads from its buffer.
const lateFrames = 2

func newGuard(conn io.ReadWriteCloser) *guard {
	return &guard{conn: conn, r: bufio.NewReaderSize(conn, 64<<10), streams: make(map[uint32]*streamState)}
}

func (g *guard) Close() error { return g.conn.Close() }

// cause returns why the session can't go on, or nil.
func (g *guard) cause() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

func (g *guard) fail(err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
	}
	return err
}

// Read hands out checked frames.
func (g *guard) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(g.header) == 0 && g.body == 0 {
		var h frameHeader
		if _, err := io.ReadFull(g.r, h[:]); err != nil {
			return 0, g.fail(err)
		}
		if err := g.check(&h); err != nil {
			return 0, g.fail(err)
		}
		g.header = h[:]
		if h.kind() == frameData {
			g.body = h.length()
		}
	}
	if len(g.header) > 0 {
		n := copy(p, g.header)
		g.header = g.header[n:]
		return n, nil
	}
	n, err := g.r.Read(p[:min(len(p), int(g.body))])
	g.body -= uint32(n)
	if err != nil {
		return n, g.fail(err)
	}
	return n, nil
}

// Write notes what the host sends, and sends it.
func (g *guard) Write(p []byte) (int, error) {
	if g.inBody {
		g.inBody = false
	} else if len(p) == frameHeaderLen {
		h := frameHeader(p)
		g.note(&h)
		g.inBody = h.kind() == frameData && h.length() > 0
	}
	n, err := g.conn.Write(p)
	if err != nil {
		return n, g.fail(err)
	}
	return n, nil
}

// note records a frame from the host.
func (g *guard) note(h *frameHeader) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if h.kind() > frameWindow {
		return
	}
	id := h.stream()
	if h.flags()&flagSYN != 0 {
		g.streams[id] = &streamState{}
		g.highest = max(g.highest, id)
	}
	s := g.streams[id]
	if s == nil {
		return
	}
	if h.kind() == frameData {
		s.sent += uint64(h.length())
	} else {
		s.allowed += uint64(h.length())
	}
	if h.flags()&flagFIN != 0 {
		s.hostFIN = true
		g.forget(id, s)
	}
}

// check tells whether the guest may send this frame now. It holds for a data frame's size before any of its data is read.
func (g *guard) check(h *frameHeader) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if h.version() != 0 || h.kind() > frameWindow {
		return violation(h, "is of no kind that a guest sends")
	}
	if h.flags()&^(flagACK|flagFIN|flagRST) != 0 {
		return violation(h, "opens a stream or has unknown flags")
	}
	id := h.stream()
	if id%2 == 0 || id > g.highest {
		return violation(h, "is for a stream that was never opened")
	}
	s := g.streams[id]
	if s == nil {
		if g.late == 0 || h.kind() != frameWindow || h.flags() != 0 {
			return violation(h, "is for a stream that has ended")
		}
		g.late--
		return nil
	}
	if err := s.check(h); err != nil {
		return err
	}
	if h.flags()&flagFIN != 0 {
		s.fin = true
		g.forget(id, s)
	}
	if h.flags()&flagRST != 0 {
		delete(g.streams, id)
	}
	return nil
}

func (s *streamState) check(h *frameHeader) error {
	if h.flags()&flagACK != 0 {
		if s.acked {
			return violation(h, "acknowledges a stream twice")
		}
		s.acked = true
	} else if h.kind() == frameWindow && h.flags() == 0 && h.length() == 0 {
		return violation(h, "says nothing")
	}
	if s.fin && h.flags()&flagFIN != 0 {
		return violation(h, "ends a stream twice")
	}
	if h.kind() == frameWindow {
		s.granted += uint64(h.length())
		if s.granted > s.sent {
			return violation(h, "grants more window than was used")
		}
		return nil
	}
	if s.fin {
		return violation(h, "is for a direction that has ended")
	}
	if h.length() == 0 && h.flags() == 0 {
		return violation(h, "says nothing")
	}
	s.received += uint64(h.length())
	if s.received > s.allowed+window {
		return violation(h, "is larger than the window")
	}
	return nil
}

// forget drops a stream that both ends have closed. The caller holds mu.
func (g *guard) forget(id uint32, s *streamState) {
	if s.fin && s.hostFIN {
		delete(g.streams, id)
		g.late = min(g.late+lateFrames, 1<<16)
	}
}

func violation(h *frameHeader, what string) error {
	return fmt.Errorf("frame from the guest (type %d, flags %#x, stream %d, length %d) %s: %w",
		h.kind(), h.flags(), h.stream(), h.length(), what, errdefs.ErrInvalidArgument)
}
