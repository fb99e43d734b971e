// Package relay is the guest's half of package volume: it mounts a FUSE file system and carries the kernel's messages
// over a stream to the host, which answers them.
//
//	kernel ─► /dev/fuse ─► relay ─► conn ─► host (package volume)
//
// On the stream each message is preceded by its length as a 32-bit big-endian number, which does not count itself. The
// relay does not look into messages. It imports nothing but golang.org/x/sys/unix beside the standard library, since
// it is part of the agent.
//
// The process that carries messages must not itself start programs from the mount: while Go starts a child, the parent
// stands still until the child's execve is done, which waits for the relay. Start a program from elsewhere first (an
// OCI runtime) and let that one go on. Opening and reading files is safe.
package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// MaxData is the most that one read or write carries; the host tells it to the kernel.
	MaxData = 256 << 10
	// MaxMessage bounds a message in either direction: headers, names and MaxData.
	MaxMessage = MaxData + 16<<10
	// lengthSize is what precedes a message.
	lengthSize = 4
)

// Session is a mounted file system whose messages are being carried.
type Session struct {
	target string
	conn   io.ReadWriteCloser
	device *os.File
	done   chan struct{}
	end    sync.Once
	err    error // set before done is closed
	close  sync.Once
}

// pollFile is a file that go-fuse's protocol code, which the host runs, answers for in the root of every file system,
// without listing it.
const pollFile = ".go-fuse-epoll-hack"

// Mount mounts the file system that the host serves over conn at target, an existing directory, and carries messages
// until conn or the mount ends. It returns when the mount is made and the host has answered. conn is closed at the
// end, and on error.
func Mount(target string, conn io.ReadWriteCloser) (*Session, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open /dev/fuse: %w", err)
	}
	// The guest's kernel checks permissions; programs may be run from the mount, also with set-user-id bits, as from
	// the directory itself, but it has no devices.
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=%d", fd, MaxData)
	if err := unix.Mount("bulkhead", target, "fuse", unix.MS_NODEV, options); err != nil {
		unix.Close(fd)
		conn.Close()
		return nil, fmt.Errorf("mount volumes at %s: %w", target, err)
	}
	// Only a mounted device can be polled, so that the runtime may wait for it without a thread.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Unmount(target, unix.MNT_DETACH)
		unix.Close(fd)
		conn.Close()
		return nil, fmt.Errorf("open /dev/fuse: %w", err)
	}
	s := &Session{target: target, conn: conn, device: os.NewFile(uintptr(fd), "/dev/fuse"), done: make(chan struct{})}
	go func() { s.finish(s.requests()) }()
	go func() { s.finish(s.replies()) }()
	if err := forbidPoll(target); err != nil {
		s.Close()
		return nil, fmt.Errorf("mount volumes at %s: %w", target, err)
	}
	return s, nil
}

// forbidPoll lets the kernel learn that the file system doesn't answer POLL. Go's runtime adds every file that it opens
// to its epoll set; that would send a POLL, and hold the set's lock until the answer, which this process can't
// receive without that same set. poll(2) asks without a set. Afterwards the kernel doesn't ask any more.
func forbidPoll(target string) error {
	fd, err := unix.Open(target+"/"+pollFile, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("first access: %w", err)
	}
	defer unix.Close(fd)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	if errors.Is(err, unix.EINTR) {
		err = nil // it was sent
	}
	return err
}

// Done is closed when no more messages are carried.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err says why the session ended: nil while it goes on and after an unmount.
func (s *Session) Err() error {
	select {
	case <-s.done:
		return s.err
	default:
		return nil
	}
}

// Close unmounts, lazily when something still uses the mount, and closes conn. It may be called more than once.
func (s *Session) Close() error {
	var err error
	s.close.Do(func() {
		err = unix.Unmount(s.target, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(s.target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		s.finish(nil)
	})
	if err != nil {
		return fmt.Errorf("unmount volumes at %s: %w", s.target, err)
	}
	return nil
}

// finish ends both directions. Closing the device fails every request that still waits for its answer.
func (s *Session) finish(err error) {
	s.end.Do(func() {
		s.err = err
		s.device.Close()
		s.conn.Close()
		close(s.done)
	})
}

// requests carries the kernel's messages to the host.
func (s *Session) requests() error {
	// The kernel wants room for the largest message in every read.
	buf := make([]byte, lengthSize+MaxMessage)
	for {
		n, err := s.device.Read(buf[lengthSize:])
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINTR):
			continue // the request was given up before it was read
		case errors.Is(err, unix.ENODEV), errors.Is(err, io.EOF):
			return nil // unmounted
		case err != nil:
			return fmt.Errorf("read from the kernel: %w", err)
		}
		binary.BigEndian.PutUint32(buf, uint32(n))
		if _, err := s.conn.Write(buf[:lengthSize+n]); err != nil {
			return fmt.Errorf("write to the host: %w", err)
		}
	}
}

// replies carries the host's messages to the kernel.
func (s *Session) replies() error {
	buf := make([]byte, MaxMessage)
	for {
		if _, err := io.ReadFull(s.conn, buf[:lengthSize]); err != nil {
			return fmt.Errorf("read from the host: %w", err)
		}
		n := binary.BigEndian.Uint32(buf)
		if n > MaxMessage {
			return fmt.Errorf("message of %d bytes from the host, %d are possible", n, MaxMessage)
		}
		if _, err := io.ReadFull(s.conn, buf[:n]); err != nil {
			return fmt.Errorf("read from the host: %w", err)
		}
		// The kernel takes a message with one write or not at all.
		_, err := s.device.Write(buf[:n])
		switch {
		case err == nil, errors.Is(err, unix.ENOENT):
			// Nobody waits for that answer any more in the latter case.
		case errors.Is(err, unix.ENODEV):
			return nil
		default:
			return fmt.Errorf("write to the kernel: %w", err)
		}
	}
}
