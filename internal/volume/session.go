package volume

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"sync"

	"bulkhead.dev/bulkhead/internal/volume/relay"
	"github.com/containerd/errdefs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// maxRequests bounds the requests that are answered at once: each may block on a host file system, and none of
	// them holds up the others.
	maxRequests = 32
	// lengthSize is what precedes a message on the stream.
	lengthSize = 4
)

// session answers the messages of one guest.
type session struct {
	protocol *fuse.ProtocolServer
	conn     io.ReadWriter
	in       *bufio.Reader
	slots    chan struct{}
	buffers  sync.Pool // of []byte with lengthSize+relay.MaxMessage bytes
	started  bool

	write   sync.Mutex
	failure error // guarded by write: the first failed reply
}

func newSession(t *table, conn io.ReadWriter) *session {
	s := &session{conn: conn, in: bufio.NewReaderSize(conn, 16<<10), slots: make(chan struct{}, maxRequests)}
	s.buffers.New = func() any {
		b := make([]byte, lengthSize+relay.MaxMessage)
		return &b
	}
	s.protocol = fuse.NewProtocolServer(&fileSystem{RawFileSystem: fuse.NewDefaultRawFileSystem(), table: t}, &fuse.MountOptions{
		MaxWrite:          relay.MaxData,
		MaxBackground:     maxRequests / 2,
		ExtraCapabilities: fuse.CAP_READDIRPLUS_AUTO,
		// Files are always opened, and by us; ids are the guest's.
		DisabledCapabilities: fuse.CAP_NO_OPEN_SUPPORT | fuse.CAP_PASSTHROUGH | fuse.CAP_ALLOW_IDMAP,
		Logger:               log.New(io.Discard, "", 0), // what a guest sends must not fill the host's logs
		PanicHandler:         func(any) fuse.Status { return fuse.EIO },
	})
	return s
}

// run reads messages until the stream ends.
func (s *session) run() error {
	for {
		message, buffer, err := s.read()
		if errors.Is(err, io.EOF) {
			return s.failed()
		}
		if err != nil {
			return err
		}
		if err := s.dispatch(message, buffer); err != nil {
			return err
		}
		if err := s.failed(); err != nil {
			return err
		}
	}
}

// read reads one message. The buffer behind it is nil for a small message, otherwise goes back to s.buffers.
func (s *session) read() ([]byte, *[]byte, error) {
	var length [lengthSize]byte
	if _, err := io.ReadFull(s.in, length[:]); err != nil {
		return nil, nil, err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n < requestHeader || n > relay.MaxMessage {
		return nil, nil, fmt.Errorf("message of %d bytes, possible are %d to %d: %w", n, requestHeader, relay.MaxMessage, errdefs.ErrInvalidArgument)
	}
	var message []byte
	var buffer *[]byte
	if n <= 4096 {
		message = make([]byte, n)
	} else {
		buffer = s.buffers.Get().(*[]byte)
		message = (*buffer)[:n]
	}
	if _, err := io.ReadFull(s.in, message); err != nil {
		return nil, nil, fmt.Errorf("read a message: %w", unexpected(err))
	}
	return message, buffer, nil
}

// unexpected says that the end of the stream came within a message.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// dispatch answers a message, most often in a goroutine of its own.
func (s *session) dispatch(message []byte, buffer *[]byte) error {
	r, errno, ok := admit(message)
	switch {
	case ok && errno == 0 && (r.operation == opInit) == s.started:
		// INIT comes first and once: it says how everything else is read.
		errno = unix.EIO
	case ok && errno == 0 && r.operation == opInit:
		s.started = true
		defer s.recycle(buffer)
		return s.answer(r)
	}
	if !ok || errno != 0 {
		defer s.recycle(buffer)
		if !ok || r.operation == opForget || r.operation == opBatchForget {
			return nil
		}
		return s.reply(appendError(make([]byte, lengthSize), r.unique, errno))
	}
	s.slots <- struct{}{}
	go func() {
		defer func() { <-s.slots }()
		defer s.recycle(buffer)
		if err := s.answer(r); err != nil {
			s.fail(err)
		}
	}()
	return nil
}

func (s *session) recycle(buffer *[]byte) {
	if buffer != nil {
		s.buffers.Put(buffer)
	}
}

// answer carries a request out and sends its reply. A defect in the protocol code ends the session, not the process.
func (s *session) answer(r request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("answer operation %d: %v", r.operation, p)
		}
	}()
	var out []byte
	if r.room <= 8192 {
		out = make([]byte, lengthSize+r.room)
	} else {
		buffer := s.buffers.Get().(*[]byte)
		defer s.buffers.Put(buffer)
		out = (*buffer)[:lengthSize+r.room]
	}
	n, status := s.protocol.HandleRequest([][]byte{r.message}, [][]byte{out[lengthSize:]})
	if !status.Ok() {
		return s.reply(appendError(out[:lengthSize], r.unique, unix.EIO))
	}
	if n == 0 {
		return nil // as for FORGET
	}
	return s.reply(out[:lengthSize+n])
}

// reply sends a message; b begins with room for its length.
func (s *session) reply(b []byte) error {
	binary.BigEndian.PutUint32(b, uint32(len(b)-lengthSize))
	s.write.Lock()
	defer s.write.Unlock()
	if s.failure != nil {
		return s.failure
	}
	if _, err := s.conn.Write(b); err != nil {
		s.failure = fmt.Errorf("send a reply: %w", err)
	}
	return s.failure
}

func (s *session) failed() error {
	s.write.Lock()
	defer s.write.Unlock()
	return s.failure
}

// fail ends the session from within a request: the next message that is read, or the end of the stream, shows it.
func (s *session) fail(err error) {
	s.write.Lock()
	defer s.write.Unlock()
	if s.failure == nil {
		s.failure = err
	}
}
