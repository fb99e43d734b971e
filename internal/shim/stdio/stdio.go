// Package stdio joins the streams of a process in the guest to the files that containerd's client named for them.
//
//	client ── fifo ──► stdin pump ──► stream to the guest
//	client ◄─ fifo ── stdout pump ◄── stream from the guest
//	client ◄─ fifo ── stderr pump ◄── stream from the guest
//
// Each stream has a pump of its own, so a client that doesn't read one of them holds up that one alone. A pump takes no more
// from the guest than its reader takes from it; nothing is kept but one buffer.
//
// Fifos outlive their client. The shim holds both ends of each: while containerd is restarted, and while nobody is attached,
// output waits in the fifo, and stdin doesn't end. The one end of stdin is [Set.CloseStdin].
//
// A name is a fifo's path, or "file:///path" for output, which is appended to a file. Other schemes (binary://, for logging
// programs) are refused: they would have to run on the host in the name of the pod.
package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

const (
	bufferSize = 32 << 10
	// readerPatience is how long the client may take to open its end of an output fifo. containerd opens it before it asks
	// for the process, so this is short.
	readerPatience = 10 * time.Second
)

// Names are the files of a process's streams; empty: none.
type Names struct {
	Stdin, Stdout, Stderr string
	Terminal              bool
}

// Set holds the open files of one process. Its methods may be called from several goroutines.
type Set struct {
	names Names

	mu     sync.Mutex
	stdin  *os.File // read end
	keeper *os.File // write end of the same fifo: while it is open, stdin doesn't end
	outs   [2]*output
	closed bool

	moved atomic.Int64 // bytes of output written, a sign of life
	pumps sync.WaitGroup
	done  chan struct{} // closed when all output is written; nil before Attach
}

// output is where one output stream goes.
type output struct {
	file   *os.File
	reader *os.File // the other end of the fifo, never read from
}

// Open opens the files. For an output fifo it waits until the client has opened its end, for else what a process says at once
// could be lost. Errors: ErrInvalidArgument for a name that can't be used, ErrNotFound for a fifo that doesn't exist,
// ErrFailedPrecondition for one that nobody reads.
func Open(ctx context.Context, names Names) (*Set, error) {
	if names.Terminal && names.Stderr != "" {
		// A client that asks for both gets what a terminal has: one output.
		names.Stderr = ""
	}
	s := &Set{names: names}
	if err := s.open(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *Set) open(ctx context.Context) (err error) {
	for i, name := range []string{s.names.Stdout, s.names.Stderr} {
		if name == "" {
			continue
		}
		if s.outs[i], err = openOutput(ctx, name); err != nil {
			return err
		}
	}
	if s.names.Stdin == "" {
		return nil
	}
	path, err := fifoPath(s.names.Stdin)
	if err != nil {
		return fmt.Errorf("stdin: %w", err)
	}
	if s.stdin, err = os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0); err != nil {
		return fmt.Errorf("open stdin: %w", class(err))
	}
	if s.keeper, err = os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0); err != nil {
		return fmt.Errorf("open stdin: %w", class(err))
	}
	return nil
}

// Names returns what the set was opened with.
func (s *Set) Names() Names { return s.names }

// HasStdin, HasStdout and HasStderr say which streams are wanted.
func (s *Set) HasStdin() bool { return s.stdin != nil }

// HasStdout says whether somebody wants the output.
func (s *Set) HasStdout() bool { return s.outs[0] != nil }

// HasStderr says whether somebody wants the error output.
func (s *Set) HasStderr() bool { return s.outs[1] != nil }

// Attach starts the pumps. It is called once and owns the streams: it closes stdin at its end, and the others when they have
// ended. An output without a stream ends at once.
func (s *Set) Attach(stdin io.WriteCloser, stdout, stderr io.ReadCloser) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = make(chan struct{})
	if s.stdin != nil && stdin != nil {
		go pumpInput(stdin, s.stdin)
	}
	for i, stream := range []io.ReadCloser{stdout, stderr} {
		out := s.outs[i]
		if out == nil {
			continue
		}
		if stream == nil { // nothing will ever come: the client is told so
			out.close()
			continue
		}
		s.pumps.Go(func() { s.pumpOutput(out, stream) })
	}
	go func() {
		s.pumps.Wait()
		close(s.done)
	}()
}

func pumpInput(to io.WriteCloser, from *os.File) {
	defer to.Close()
	// The reader is closed too: a client that goes on writing to a process that is gone learns of it.
	defer from.Close()
	buffer := make([]byte, bufferSize)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (s *Set) pumpOutput(to *output, from io.ReadCloser) {
	defer from.Close()
	defer to.close()
	buffer := make([]byte, bufferSize)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			written, err := to.file.Write(buffer[:n])
			s.moved.Add(int64(written))
			if err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// CloseStdin ends stdin: what is in the fifo still goes to the process, then its end of file. It is idempotent.
func (s *Set) CloseStdin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keeper == nil {
		return nil
	}
	err := s.keeper.Close()
	s.keeper = nil
	if err != nil {
		return fmt.Errorf("close stdin: %w", err)
	}
	return nil
}

// Drain returns true when all output of an ended process is written, and false when the client has taken nothing of it for
// as long as patience, or ctx has ended. The pumps go on in that case, until Close.
func (s *Set) Drain(ctx context.Context, patience time.Duration) bool {
	s.mu.Lock()
	done := s.done
	s.mu.Unlock()
	if done == nil {
		return true
	}
	for {
		before := s.moved.Load()
		timer := time.NewTimer(patience)
		select {
		case <-done:
			timer.Stop()
			return true
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
			if s.moved.Load() == before {
				return false
			}
		}
	}
}

// Close closes the files and so ends the pumps. It is idempotent.
func (s *Set) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	for _, f := range []*os.File{s.stdin, s.keeper} {
		if f != nil {
			f.Close()
		}
	}
	s.keeper = nil
	for _, out := range s.outs {
		if out != nil {
			out.close()
		}
	}
}

func (o *output) close() {
	o.file.Close()
	if o.reader != nil {
		o.reader.Close()
	}
}

func openOutput(ctx context.Context, name string) (*output, error) {
	if path, ok, err := filePath(name); err != nil {
		return nil, err
	} else if ok {
		return openLog(path)
	}
	path, err := fifoPath(name)
	if err != nil {
		return nil, err
	}
	file, err := openWriter(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("open output fifo: %w", class(err))
	}
	reader, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("open output fifo: %w", class(err))
	}
	return &output{file: file, reader: reader}, nil
}

// openWriter opens a fifo for writing as soon as somebody reads it. A blocking open can't be given up, so it asks again.
func openWriter(ctx context.Context, path string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, readerPatience)
	defer cancel()
	for {
		file, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if !errors.Is(err, syscall.ENXIO) {
			return file, err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("nobody reads %s: %w", path, errdefs.ErrFailedPrecondition)
		}
	}
}

func openLog(path string) (*output, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of log file %s: %w", path, err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log file: %w", err)
	}
	return &output{file: file}, nil
}

// filePath returns the path of a "file:" name. Other schemes than fifo are an error; a bare path is none.
func filePath(name string) (string, bool, error) {
	if !strings.Contains(name, "://") {
		return "", false, nil
	}
	u, err := url.Parse(name)
	if err != nil {
		return "", false, fmt.Errorf("output %.200q: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	switch u.Scheme {
	case "fifo":
		return "", false, nil
	case "file":
		if u.Host != "" || !filepath.IsAbs(u.Path) {
			return "", false, fmt.Errorf("output %.200q: must name an absolute path, as file:///path: %w", name, errdefs.ErrInvalidArgument)
		}
		return u.Path, true, nil
	}
	return "", false, fmt.Errorf("output %.200q: scheme %q can't be used with a sandbox, only fifo and file: %w", name, u.Scheme, errdefs.ErrInvalidArgument)
}

// fifoPath returns the path of a name that must be a fifo. Opening anything else for reading and writing could block, or
// hand the pod a file of the host.
func fifoPath(name string) (string, error) {
	path := strings.TrimPrefix(name, "fifo://")
	info, err := os.Stat(path)
	if err != nil {
		return "", class(err)
	}
	if info.Mode()&fs.ModeNamedPipe == 0 {
		return "", fmt.Errorf("%s is not a fifo: %w", path, errdefs.ErrInvalidArgument)
	}
	return path, nil
}

func class(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return err
}
