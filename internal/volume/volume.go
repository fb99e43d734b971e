// Package volume serves directories and files of the host to one virtual machine, as FUSE over the guest channel.
//
// How things flow:
//
//	guest: process ─► kernel ─► /dev/fuse ─► package relay ─┐   each message: u32 big-endian length, raw FUSE message
//	                                                        │
//	host:  Server.Serve ◄───────────── conn ◄───────────────┘
//	         └─ workers (bounded) ─► go-fuse's protocol code ─► fileSystem ─► openat2 beneath an export
//
// The session's root directory is virtual and lists the exports by name. Below it every inode the guest knows is held
// as an O_PATH descriptor; the guest can say only inode numbers and single names, never a path, and the host never
// follows a symbolic link for it.
//
// The guest is hostile: nodes, handles, messages and requests in flight are bounded, and a read-only export is enforced
// here. Who in the guest may do what is left to the guest's kernel (default_permissions): the wall stands between the
// export and the rest of the host.
package volume

import (
	"io"

	"github.com/containerd/errdefs"
)

// Server is one guest's file server. Exports may come and go while it serves.
type Server struct{}

// NewServer returns a server without exports.
func NewServer() *Server { return &Server{} }

// Export adds source, a directory or a regular file of the host, under name to the session's root. Name is a single
// path element. Symbolic links in source are followed once, now; afterwards the object itself is held. The errors are
// errdefs.ErrInvalidArgument (bad name; neither a directory nor a regular file), errdefs.ErrNotFound and
// errdefs.ErrAlreadyExists.
func (s *Server) Export(name, source string, readonly bool) error { return errdefs.ErrNotImplemented }

// Unexport removes an export: its name goes, and every request for an inode below it fails with ESTALE from now on.
// Files that the guest has open stay usable until it closes them. An unknown name is an errdefs.ErrNotFound.
func (s *Server) Unexport(name string) error { return errdefs.ErrNotImplemented }

// Serve answers the guest's FUSE messages until conn ends or Close is called, and closes conn. The result is nil when
// the guest ended the stream between two messages. A server serves one session in its life.
func (s *Server) Serve(conn io.ReadWriteCloser) error { return errdefs.ErrNotImplemented }

// Close ends the session and releases everything that is held on the host.
func (s *Server) Close() error { return nil }
