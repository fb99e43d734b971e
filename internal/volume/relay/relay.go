// Package relay is the guest's half of package volume: it mounts a FUSE file system and carries the kernel's messages
// over a stream to the host, which answers them.
//
//	kernel ─► /dev/fuse ─► relay ─► conn ─► host (package volume)
//
// On the stream each message is preceded by its length as a 32-bit big-endian number. The relay does not look into
// messages. It imports nothing but golang.org/x/sys/unix beside the standard library, since it is part of the agent.
package relay

import (
	"io"

	"golang.org/x/sys/unix"
)

// Session is a mounted file system whose messages are being carried.
type Session struct {
	done chan struct{}
}

// Mount mounts the file system that the host serves over conn at target, an existing directory, and carries messages
// until conn or the mount ends. It returns when the mount is made; the first access waits for the host.
func Mount(target string, conn io.ReadWriteCloser) (*Session, error) {
	return nil, unix.ENOSYS
}

// Done is closed when no more messages are carried.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err says why the session ended: nil while it goes on and after an unmount.
func (s *Session) Err() error { return nil }

// Close unmounts, lazily when something still uses the mount, and closes conn. It may be called more than once.
func (s *Session) Close() error { return nil }
