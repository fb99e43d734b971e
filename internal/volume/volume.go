// Package volume serves directories and files of the host to one virtual machine, as FUSE over the guest channel.
//
// How things flow:
//
//	guest: process ─► kernel ─► /dev/fuse ─► package relay ─┐   each message: u32 big-endian length, raw FUSE message
//	                                                        │
//	host:  Server.Serve ◄───────────── conn ◄───────────────┘
//	         │  admit: known operations, lengths that fit, INIT first and once   (admit.go)
//	         └─ bounded number of requests at once ─► go-fuse's protocol code ─► fileSystem   (fs*.go)
//	                                                                               └─ table of O_PATH descriptors (table.go)
//
// The session's root directory is virtual and lists the exports by name. Below it every inode the guest knows is held
// as an O_PATH descriptor; the guest can say only inode numbers and single names, never a path, and the host never
// follows a symbolic link for it. Only regular files and directories are ever opened.
//
// The guest is hostile: nodes, handles, messages and requests in flight are bounded, and a read-only export is enforced
// here. Who in the guest may do what is left to the guest's kernel (default_permissions): the wall stands between the
// export and the rest of the host. What the guest creates belongs to the user that created it in the guest.
package volume

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Server is one guest's file server. Exports may come and go while it serves.
type Server struct {
	table *table

	mu     sync.Mutex
	conn   io.Closer
	served bool
	closed bool
}

// Bounds of what one guest may hold on the host.
const (
	maxNodes   = 1 << 17
	maxHandles = 1 << 14
)

// NewServer returns a server without exports.
func NewServer() *Server {
	nodes, handles := maxNodes, maxHandles
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil && limit.Cur < maxNodes*2 {
		// The rest of the process needs descriptors as well.
		nodes, handles = int(limit.Cur/2), int(limit.Cur/8)
	}
	return &Server{table: newTable(nodes, handles)}
}

// Export adds source, a directory or a regular file of the host, under name to the session's root. Name is a single
// path element. Symbolic links in source are followed once, now; afterwards the object itself is held. The errors are
// errdefs.ErrInvalidArgument (bad name; neither a directory nor a regular file), errdefs.ErrNotFound and
// errdefs.ErrAlreadyExists.
func (s *Server) Export(name, source string, readonly bool) error {
	if err := checkName(name); err != nil {
		return fmt.Errorf("export %q: bad name: %w", name, errdefs.ErrInvalidArgument)
	}
	fd, err := unix.Open(source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("export %s: open %s: %w: %w", name, source, err, errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("export %s: open %s: %w", name, source, err)
	}
	e := &export{name: name, readonly: readonly, fd: fd}
	if err := s.add(e, source); err != nil {
		unix.Close(fd)
		return err
	}
	return nil
}

func (s *Server) add(e *export, source string) error {
	if err := unix.Fstat(e.fd, &e.stat); err != nil {
		return fmt.Errorf("export %s: stat %s: %w", e.name, source, err)
	}
	switch e.stat.Mode & unix.S_IFMT {
	case unix.S_IFDIR, unix.S_IFREG:
	default:
		return fmt.Errorf("export %s: %s is neither a directory nor a regular file (mode %#o): %w",
			e.name, source, e.stat.Mode, errdefs.ErrInvalidArgument)
	}
	t := s.table
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return fmt.Errorf("export %s: the server is closed: %w", e.name, errdefs.ErrFailedPrecondition)
	}
	if t.exports[e.name] != nil {
		return fmt.Errorf("export %s: %w", e.name, errdefs.ErrAlreadyExists)
	}
	t.exports[e.name] = e
	return nil
}

// Unexport removes an export: its name goes, and every request for an inode or open file below it fails with ESTALE
// from now on. Nothing below it stays open on the host but for requests that are being answered, so that its file
// system can be unmounted. An unknown name is an errdefs.ErrNotFound.
func (s *Server) Unexport(name string) error {
	t := s.table
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.exports[name]
	if e == nil {
		return fmt.Errorf("export %s: %w", name, errdefs.ErrNotFound)
	}
	t.drop(e)
	return nil
}

// Serve answers the guest's FUSE messages until conn ends or Close is called, and closes conn. The result is nil when
// the guest ended the stream between two messages. A server serves one session in its life.
func (s *Server) Serve(conn io.ReadWriteCloser) error {
	defer conn.Close()
	s.mu.Lock()
	if s.served || s.closed {
		s.mu.Unlock()
		return fmt.Errorf("serve volumes a second time: %w", errdefs.ErrFailedPrecondition)
	}
	s.served, s.conn = true, conn
	s.mu.Unlock()

	err := newSession(s.table, conn).run()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	if err != nil {
		return fmt.Errorf("serve volumes: %w", err)
	}
	return nil
}

// Close ends the session and releases everything that is held on the host. It may be called more than once.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	conn := s.conn
	s.mu.Unlock()
	if conn != nil {
		conn.Close()
	}
	s.table.close()
	return nil
}

// maxName is the longest name of a directory entry.
const maxName = 255

// checkName refuses what isn't the name of one entry in a directory.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return unix.EINVAL
	case len(name) > maxName:
		return unix.ENAMETOOLONG
	}
	return nil
}
