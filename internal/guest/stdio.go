package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	guestapi "bulkhead.dev/bulkhead/api/guest"
)

// streams hands out the data streams of the channel; rpc.Guest does.
type streams interface {
	Take(ctx context.Context, id uint64) (net.Conn, error)
	// Drop says that nobody will take a stream.
	Drop(id uint64)
}

// dropStdio drops the streams of a process that could not be made.
func dropStdio(s streams, io *guestapi.Stdio) {
	for _, id := range []uint64{io.GetStdin(), io.GetStdout(), io.GetStderr()} {
		s.Drop(id)
	}
}

const (
	pumpBuffer = 32 << 10
	// orphanGrace is how long output must have been silent, after the process has ended, until the agent holds that only
	// processes left in the background keep it open.
	orphanGrace = 200 * time.Millisecond
)

// longAgo is a deadline that ends reads and writes at once.
func longAgo() time.Time { return time.Unix(1, 0) }

// stdio joins the standard streams of a process to data streams. Each direction is a goroutine that moves bytes as they
// come and waits while the reader is behind.
type stdio struct {
	terminal bool
	width    uint16
	height   uint16

	ctx    context.Context // ends the waits for streams that never come
	cancel context.CancelFunc
	take   func(ctx context.Context, id uint64) (net.Conn, error)
	ids    [3]uint64

	child [3]*os.File // the process's ends, until it has them; nil: /dev/null

	mu      sync.Mutex
	master  *os.File // guarded by mu; the terminal
	in      *input   // guarded by mu
	outputs []*output
}

// newStdio makes what a process of these streams needs. A terminal is attached later.
func newStdio(s streams, want *guestapi.Stdio) (*stdio, error) {
	ctx, cancel := context.WithCancel(context.Background())
	io := &stdio{
		terminal: want.GetTerminal(), width: uint16(min(want.GetWidth(), 65535)), height: uint16(min(want.GetHeight(), 65535)),
		ctx: ctx, cancel: cancel, take: s.Take,
		ids: [3]uint64{want.GetStdin(), want.GetStdout(), want.GetStderr()},
	}
	if io.terminal {
		if io.ids[2] != 0 {
			cancel()
			return nil, fmt.Errorf("a terminal has no stderr: %w", errdefs.ErrInvalidArgument)
		}
		return io, nil
	}
	for i, id := range io.ids {
		if id == 0 {
			continue
		}
		r, w, err := os.Pipe()
		if err != nil {
			io.close()
			return nil, fmt.Errorf("making a pipe: %w", err)
		}
		if i == 0 {
			io.child[i] = r
			io.in = io.pumpIn(w, id, true)
		} else {
			io.child[i] = w
			io.outputs = append(io.outputs, io.pumpOut(r, id))
		}
	}
	return io, nil
}

// started closes the process's ends here, so that the pipes end when the process's own do.
func (s *stdio) started() {
	for i, f := range s.child {
		if f != nil {
			f.Close()
			s.child[i] = nil
		}
	}
}

// attach begins to pump a terminal. The file is its master side.
func (s *stdio) attach(master *os.File) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.master = master
	s.outputs = append(s.outputs, s.pumpOut(master, s.ids[1])) // without a stream, too: the terminal must be read
	if s.ids[0] != 0 {
		s.in = s.pumpIn(master, s.ids[0], false)
	}
	if s.width != 0 && s.height != 0 {
		return setSize(master, s.width, s.height)
	}
	return nil
}

func setSize(master *os.File, width, height uint16) error {
	raw, err := master.SyscallConn()
	if err != nil {
		return err
	}
	var ioctlErr error
	err = raw.Control(func(fd uintptr) {
		ioctlErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
	})
	if err := errors.Join(err, ioctlErr); err != nil {
		return fmt.Errorf("setting the terminal's size to %d×%d: %w", width, height, err)
	}
	return nil
}

// sized adds the terminal's size to an OCI process. The runtime starts an exec's program at once, before the agent has the
// terminal: a size that is set then comes too late for a program that looks at it first.
func (s *stdio) sized(config []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.terminal || s.width == 0 || s.height == 0 {
		return config, nil
	}
	var process object
	if err := json.Unmarshal(config, &process); err != nil {
		return nil, fmt.Errorf("process: %w", err)
	}
	process.set("consoleSize", specs.Box{Width: uint(s.width), Height: uint(s.height)})
	return json.Marshal(process)
}

// resize sets the terminal's size, at once or when it is attached.
func (s *stdio) resize(width, height uint32) error {
	if !s.terminal {
		return fmt.Errorf("resizing: there is no terminal: %w", errdefs.ErrFailedPrecondition)
	}
	if width > 65535 || height > 65535 {
		return fmt.Errorf("terminal size %d×%d: %w", width, height, errdefs.ErrInvalidArgument)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.width, s.height = uint16(width), uint16(height)
	if s.master == nil {
		return nil
	}
	return setSize(s.master, s.width, s.height)
}

// finish returns when all that the process has written, which has ended, was sent to the host, and ends the streams.
func (s *stdio) finish() {
	s.mu.Lock()
	in, outputs := s.in, s.outputs
	s.mu.Unlock()
	if in != nil {
		in.stop()
	}
	for _, o := range outputs {
		o.settle()
	}
}

// close lets go of everything.
func (s *stdio) close() {
	s.cancel()
	s.started()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in != nil {
		s.in.stop()
	}
	for _, o := range s.outputs {
		o.abandon()
	}
	if s.master != nil {
		s.master.Close()
	}
}

// input carries a stream to a process.
type input struct {
	dst      *os.File
	closeDst bool // the end of the stream is the end of file for the process
	cancel   context.CancelFunc

	mu      sync.Mutex
	conn    net.Conn // guarded by mu
	stopped bool     // guarded by mu
}

func (s *stdio) pumpIn(dst *os.File, id uint64, closeDst bool) *input {
	ctx, cancel := context.WithCancel(s.ctx)
	in := &input{dst: dst, closeDst: closeDst, cancel: cancel}
	go in.run(ctx, s.take, id)
	return in
}

func (in *input) run(ctx context.Context, take func(context.Context, uint64) (net.Conn, error), id uint64) {
	defer in.cancel()
	conn, err := take(ctx, id)
	if err != nil {
		in.endOfFile()
		return
	}
	defer conn.Close()
	in.mu.Lock()
	in.conn = conn
	if in.stopped {
		_ = conn.SetReadDeadline(longAgo())
	}
	in.mu.Unlock()
	_, _ = io.CopyBuffer(struct{ io.Writer }{in.dst}, struct{ io.Reader }{conn}, make([]byte, pumpBuffer))
	in.endOfFile()
	// The process doesn't read any more, but the host may still write: it must not stall.
	_ = conn.SetReadDeadline(time.Time{})
	_, _ = io.Copy(io.Discard, conn)
}

func (in *input) endOfFile() {
	if in.closeDst {
		in.dst.Close()
	}
}

// stop ends the pump when the process has ended.
func (in *input) stop() {
	in.cancel()
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.stopped {
		return
	}
	in.stopped = true
	if in.conn != nil {
		_ = in.conn.SetReadDeadline(longAgo())
	}
	if in.closeDst {
		in.dst.Close()
	} else {
		_ = in.dst.SetWriteDeadline(longAgo())
	}
}

// output carries what a process writes to a stream.
type output struct {
	src  *os.File
	done chan struct{} // closed at the end of file, when all was sent

	busy    atomic.Bool // bytes were read and not sent yet
	last    atomic.Int64
	discard atomic.Bool // nobody reads the stream

	mu    sync.Mutex
	conn  net.Conn // guarded by mu
	ended bool     // guarded by mu; the host has been told the end
}

func (s *stdio) pumpOut(src *os.File, id uint64) *output {
	o := &output{src: src, done: make(chan struct{})}
	o.last.Store(time.Now().UnixNano())
	go o.run(s.ctx, s.take, id)
	return o
}

func (o *output) run(ctx context.Context, take func(context.Context, uint64) (net.Conn, error), id uint64) {
	defer close(o.done)
	defer o.end()
	if id == 0 {
		o.discard.Store(true)
	} else if conn, err := take(ctx, id); err != nil {
		o.discard.Store(true)
	} else {
		o.mu.Lock()
		o.conn = conn
		o.mu.Unlock()
		go o.watch(conn)
	}
	buf := make([]byte, pumpBuffer)
	for {
		n, err := o.src.Read(buf)
		if n > 0 {
			o.busy.Store(true)
			o.send(buf[:n])
			o.last.Store(time.Now().UnixNano())
			o.busy.Store(false)
		}
		if err != nil { // the end of a pipe, or EIO: that of a terminal
			return
		}
	}
}

func (o *output) send(b []byte) {
	if o.discard.Load() {
		return
	}
	o.mu.Lock()
	conn := o.conn
	o.mu.Unlock()
	if _, err := conn.Write(b); err != nil {
		o.discard.Store(true)
	}
}

// watch notices when the host closes a stream that it reads: the process's output is then thrown away, so that the
// process doesn't stall.
func (o *output) watch(conn net.Conn) {
	_, _ = io.Copy(io.Discard, conn)
	o.discard.Store(true)
	_ = conn.SetWriteDeadline(longAgo())
}

// end tells the host that nothing more comes.
func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return
	}
	o.ended = true
	if o.conn != nil {
		o.conn.Close()
	}
}

// settle returns when everything was sent that the process, which has ended, has written. That is at the end of file; or,
// when a process left in the background keeps the output open, once nothing has come for a while. What comes later is
// thrown away.
func (o *output) settle() {
	ticker := time.NewTicker(orphanGrace / 4)
	defer ticker.Stop()
	ended := time.Now().UnixNano()
	for {
		select {
		case <-o.done:
			return
		case <-ticker.C:
		}
		silent := time.Now().UnixNano() - max(o.last.Load(), ended)
		if !o.busy.Load() && silent > orphanGrace.Nanoseconds() && o.waiting() == 0 {
			o.discard.Store(true)
			o.end()
			return
		}
	}
}

// waiting returns how many bytes have been written and not been read yet.
func (o *output) waiting() int {
	raw, err := o.src.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	_ = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n
}

// abandon ends the pump whatever comes.
func (o *output) abandon() {
	o.discard.Store(true)
	o.mu.Lock()
	if o.conn != nil {
		_ = o.conn.SetWriteDeadline(longAgo())
	}
	o.mu.Unlock()
	o.src.Close()
}
