package volume

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"

	"bulkhead.dev/bulkhead/internal/volume/relay"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// guest speaks raw FUSE, as a hostile kernel may.
type guest struct {
	t      testing.TB
	conn   net.Conn
	unique uint64
	uid    uint32
	gid    uint32
}

// newGuest serves exports to a guest until the test ends. INIT has been done.
func newGuest(t testing.TB, s *Server) *guest {
	t.Helper()
	host, conn := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- s.Serve(host) }()
	t.Cleanup(func() {
		conn.Close()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		s.Close()
	})
	g := &guest{t: t, conn: conn}
	if errno, _ := g.call(opInit, 0, initBody()); errno != 0 {
		t.Fatalf("INIT: %v", errno)
	}
	return g
}

func initBody() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 7)
	b = binary.LittleEndian.AppendUint32(b, 38)
	b = binary.LittleEndian.AppendUint32(b, 128<<10)
	b = binary.LittleEndian.AppendUint32(b, ^uint32(0))
	return append(b, make([]byte, 48)...)
}

// message returns a request with the fields of its header filled in.
func message(operation uint32, unique, node uint64, uid, gid uint32, body ...[]byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0)
	b = binary.LittleEndian.AppendUint32(b, operation)
	b = binary.LittleEndian.AppendUint64(b, unique)
	b = binary.LittleEndian.AppendUint64(b, node)
	b = binary.LittleEndian.AppendUint32(b, uid)
	b = binary.LittleEndian.AppendUint32(b, gid)
	b = append(b, make([]byte, 8)...)
	for _, part := range body {
		b = append(b, part...)
	}
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	return b
}

func frame(message []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(message))), message...)
}

// call sends a request and returns its answer.
func (g *guest) call(operation uint32, node uint64, body ...[]byte) (unix.Errno, []byte) {
	g.t.Helper()
	g.unique++
	return g.raw(message(operation, g.unique, node, g.uid, g.gid, body...))
}

func (g *guest) raw(message []byte) (unix.Errno, []byte) {
	g.t.Helper()
	if _, err := g.conn.Write(frame(message)); err != nil {
		g.t.Fatal(err)
	}
	var length [4]byte
	if _, err := io.ReadFull(g.conn, length[:]); err != nil {
		g.t.Fatal(err)
	}
	n := binary.BigEndian.Uint32(length[:])
	if n < replyHeader || n > relay.MaxMessage {
		g.t.Fatalf("reply of %d bytes", n)
	}
	reply := make([]byte, n)
	if _, err := io.ReadFull(g.conn, reply); err != nil {
		g.t.Fatal(err)
	}
	if got := binary.LittleEndian.Uint64(reply[8:]); got != binary.LittleEndian.Uint64(message[8:]) {
		g.t.Fatalf("reply to %d", got)
	}
	if got := binary.LittleEndian.Uint32(reply); got != n {
		g.t.Fatalf("reply says it has %d bytes of %d", got, n)
	}
	return unix.Errno(-int32(binary.LittleEndian.Uint32(reply[4:]))), reply[replyHeader:]
}

// body encodes the fixed part of a request, which follows the header.
func body(fields any) []byte {
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, fields); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func cname(name string) []byte { return append([]byte(name), 0) }

// lookup returns a node, or the error.
func (g *guest) lookup(parent uint64, name string) (uint64, unix.Errno) {
	g.t.Helper()
	errno, reply := g.call(opLookup, parent, cname(name))
	return nodeOf(reply, errno)
}

func nodeOf(reply []byte, errno unix.Errno) (uint64, unix.Errno) {
	if errno != 0 {
		return 0, errno
	}
	return binary.LittleEndian.Uint64(reply), 0
}

func (g *guest) mustLookup(path ...string) uint64 {
	g.t.Helper()
	id := uint64(rootID)
	for _, name := range path {
		next, errno := g.lookup(id, name)
		if errno != 0 {
			g.t.Fatalf("look up %s: %v", name, errno)
		}
		id = next
	}
	return id
}

func (g *guest) open(operation uint32, node uint64, flags uint32) (uint64, unix.Errno) {
	g.t.Helper()
	errno, reply := g.call(operation, node, body([]uint32{flags, 0}))
	if errno != 0 {
		return 0, errno
	}
	return binary.LittleEndian.Uint64(reply), 0
}

func (g *guest) read(operation uint32, node, handle, offset uint64, size uint32) (unix.Errno, []byte) {
	g.t.Helper()
	return g.call(operation, node, body(struct {
		Fh, Offset  uint64
		Size, Flags uint32
		Owner, More uint64
	}{Fh: handle, Offset: offset, Size: size}))
}

func (g *guest) write(node, handle, offset uint64, data []byte) unix.Errno {
	g.t.Helper()
	errno, _ := g.call(opWrite, node, body(struct {
		Fh, Offset  uint64
		Size, Flags uint32
		Owner, More uint64
	}{Fh: handle, Offset: offset, Size: uint32(len(data))}), data)
	return errno
}

func (g *guest) setattr(node uint64, in fuse.SetAttrInCommon) unix.Errno {
	g.t.Helper()
	errno, _ := g.call(4, node, body(in)[requestHeader:])
	return errno
}
