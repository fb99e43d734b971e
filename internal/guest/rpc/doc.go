// Package rpc divides the one byte stream between the sandbox and the agent in the pod VM into calls and data streams.
//
// The transport below is whatever the VMM offers (a virtio-serial port, a vsock connection): one reliable, ordered
// stream of bytes. On it runs yamux, with the host as its client; every yamux stream is opened by the host and begins
// with a header of 16 bytes:
//
//	0       4      5        8                        16
//	+-------+------+--------+------------------------+
//	| magic | kind | zero   | id                     |
//	+-------+------+--------+------------------------+
//	 "BHS1"   u8     3 bytes  u64, big endian
//
// Kind 1 carries the calls of api/guest as ttrpc messages; there is one such stream and its id is 0. Kind 2 is a data
// stream: standard input, output or error of a process, a connection to a port, or the volumes' FUSE messages. The host chooses ids of data
// streams (not 0, none twice) and names them in calls; a stream and the call that names it may arrive in either order.
//
// Closing one end of a data stream is the end of file for the other end, and nothing else: the other direction stays
// open until its writer closes it. Every stream has a window of its own, so a reader that is slow stalls its own stream
// alone. There are no timeouts and no keepalives: a VM can be paused for hours.
//
// The guest is not trusted. On the host, every frame that the guest sends is checked against what it may send at that
// moment (see guard); a frame that can't be ends the session with an error, and nothing the guest sends makes the host
// keep more than the windows of the streams it has opened itself, and one call message of at most 4 MiB.
//
// Version history of the header:
//
//	"BHS1"  first version
package rpc

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/yamux"
)

const (
	headerLen = 16
	magic     = "BHS1"

	// window is what may be under way on a stream before its reader has taken any of it.
	window = 256 << 10
	// backlog is how many streams may be opened and not yet accepted.
	backlog = 256
	// maxUntaken is how many data streams the guest keeps for calls that are still to come.
	maxUntaken = 256
	// maxDropped is how many streams that nobody wants the guest remembers until they come.
	maxDropped = 1024
	// maxStreams is how many streams the host has at once: a guest that never ends its half of one keeps it, and what it has
	// sent on it, for ever. maxOpening is how many wait to be opened by a guest that reads nothing or acknowledges none, and
	// maxAbandoned how many calls that were given up wait for it.
	maxStreams   = 768
	maxOpening   = 16
	maxAbandoned = 1024
)

type kind uint8

const (
	kindCalls kind = 1
	kindData  kind = 2
)

// appendHeader appends the header of a stream to b.
func appendHeader(b []byte, k kind, id uint64) []byte {
	b = append(b, magic...)
	b = append(b, byte(k), 0, 0, 0)
	return binary.BigEndian.AppendUint64(b, id)
}

// parseHeader reads what appendHeader wrote. It refuses whatever appendHeader can't have written.
func parseHeader(b [headerLen]byte) (kind, uint64, error) {
	if string(b[:4]) != magic {
		return 0, 0, fmt.Errorf("stream header begins with %q, not %q: %w", b[:4], magic, errdefs.ErrInvalidArgument)
	}
	if b[5] != 0 || b[6] != 0 || b[7] != 0 {
		return 0, 0, fmt.Errorf("stream header has reserved bytes set: %w", errdefs.ErrInvalidArgument)
	}
	k, id := kind(b[4]), binary.BigEndian.Uint64(b[8:])
	switch {
	case k == kindCalls && id == 0, k == kindData && id != 0:
		return k, id, nil
	}
	return 0, 0, fmt.Errorf("stream header of kind %d with id %d: %w", k, id, errdefs.ErrInvalidArgument)
}

// silent discards what yamux would print: the guest could make it print without end.
type silent struct{}

func (silent) Print(...any)          {}
func (silent) Printf(string, ...any) {}
func (silent) Println(...any)        {}

func config() *yamux.Config {
	return &yamux.Config{
		AcceptBacklog:          backlog,
		KeepAliveInterval:      time.Hour, // must not be 0, but keepalives are off
		ConnectionWriteTimeout: math.MaxInt64,
		MaxStreamWindowSize:    window,
		Logger:                 silent{},
	}
}

// refuse ends a stream that nobody wants, and reads it to its end, so that its writer is not stalled.
func refuse(s *yamux.Stream) {
	go func() {
		s.Close()
		_, _ = io.Copy(io.Discard, s)
	}()
}
