package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead.dev/bulkhead/internal/volume/relay"
	"github.com/containerd/errdefs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// host makes a directory with an export in it and secrets beside it:
//
//	secret, out/ ── beside the export
//	export/ file, dir/file, link → ../secret, dirlink → ../out, root → /, pipe
func host(t testing.TB, readonly bool) (dir string, s *Server) {
	t.Helper()
	dir = t.TempDir()
	for _, d := range []string{"out", "export", "export/dir"} {
		must(t, os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	for _, f := range []string{"secret", "out/secret", "export/file", "export/dir/file"} {
		must(t, os.WriteFile(filepath.Join(dir, f), []byte(f), 0o644))
	}
	must(t, os.Symlink("../secret", filepath.Join(dir, "export/link")))
	must(t, os.Symlink("../out", filepath.Join(dir, "export/dirlink")))
	must(t, os.Symlink("/", filepath.Join(dir, "export/root")))
	must(t, unix.Mkfifo(filepath.Join(dir, "export/pipe"), 0o644))
	s = NewServer()
	must(t, s.Export("e", filepath.Join(dir, "export"), readonly))
	return dir, s
}

func TestLookupStaysInside(t *testing.T) {
	_, s := host(t, false)
	g := newGuest(t, s)
	top := g.mustLookup("e")
	for _, parent := range []uint64{rootID, top} {
		for _, name := range []string{"", ".", "..", "../secret", "dir/file", "/etc/passwd", "dir/../../secret", "/"} {
			if _, errno := g.lookup(parent, name); errno != unix.EINVAL {
				t.Errorf("look up %q in %d: %v", name, parent, errno)
			}
		}
		if _, errno := g.lookup(parent, strings.Repeat("x", 256)); errno != unix.ENAMETOOLONG {
			t.Errorf("long name: %v", errno)
		}
	}
	// Links are what they are, not what they lead to.
	for _, name := range []string{"link", "dirlink", "root"} {
		link := g.mustLookup("e", name)
		if _, errno := g.lookup(link, "secret"); errno != unix.ENOTDIR {
			t.Errorf("look up through %s: %v", name, errno)
		}
		if _, errno := g.open(14, link, 0); errno != unix.ENXIO {
			t.Errorf("open %s: %v", name, errno)
		}
		if _, errno := g.open(27, link, 0); errno != unix.ENOTDIR {
			t.Errorf("opendir %s: %v", name, errno)
		}
		if errno := g.setattr(link, fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE}); errno != unix.EINVAL {
			t.Errorf("truncate %s: %v", name, errno)
		}
		if errno := g.setattr(link, fuse.SetAttrInCommon{Valid: fuse.FATTR_MODE, Mode: 0o777}); errno != unix.EOPNOTSUPP {
			t.Errorf("chmod %s: %v", name, errno)
		}
	}
	// A file is no directory, an unknown number no node.
	if _, errno := g.lookup(g.mustLookup("e", "file"), ".."); errno != unix.EINVAL {
		t.Errorf("parent of a file: %v", errno)
	}
	for _, id := range []uint64{0, 1 << 40, ^uint64(0) - 1} {
		if _, errno := g.lookup(id, "file"); errno != unix.ESTALE {
			t.Errorf("look up in node %d: %v", id, errno)
		}
	}
}

func TestCreateDoesNotFollowLinks(t *testing.T) {
	dir, s := host(t, false)
	g := newGuest(t, s)
	top := g.mustLookup("e")
	must(t, os.Symlink("../made", filepath.Join(dir, "export/dangling")))
	create := func(name string, flags uint32) unix.Errno {
		errno, _ := g.call(35, top, body([]uint32{flags, 0o644, 0, 0}), cname(name))
		return errno
	}
	for _, name := range []string{"link", "dangling", "pipe"} {
		if errno := create(name, unix.O_RDWR|unix.O_CREAT|unix.O_TRUNC); errno != unix.ENXIO {
			t.Errorf("create %s: %v", name, errno)
		}
		if errno := create(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL); errno != unix.EEXIST {
			t.Errorf("create %s exclusively: %v", name, errno)
		}
	}
	if errno := create("../made", unix.O_RDWR|unix.O_CREAT); errno != unix.EINVAL {
		t.Errorf("create outside: %v", errno)
	}
	if _, err := os.Lstat(filepath.Join(dir, "made")); !errors.Is(err, os.ErrNotExist) {
		t.Error("a file was made outside the export")
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "secret")); string(b) != "secret" {
		t.Errorf("a file outside the export holds %q", b)
	}
}

func TestSpecialFilesAreNotOpened(t *testing.T) {
	_, s := host(t, false)
	g := newGuest(t, s)
	pipe := g.mustLookup("e", "pipe") // opening it for reading would wait for ever
	if _, errno := g.open(14, pipe, unix.O_RDONLY); errno != unix.ENXIO {
		t.Errorf("open a pipe: %v", errno)
	}
	top := g.mustLookup("e")
	for _, mode := range []uint32{unix.S_IFCHR | 0o666, unix.S_IFBLK | 0o666, unix.S_IFDIR | 0o755, unix.S_IFLNK | 0o777} {
		if errno, _ := g.call(8, top, body([]uint32{mode, 0x103, 0, 0}), cname("node")); errno != unix.EPERM {
			t.Errorf("mknod of %o: %v", mode, errno)
		}
	}
}

func TestReplacedFileKeepsItsNode(t *testing.T) {
	dir, s := host(t, false)
	g := newGuest(t, s)
	file := g.mustLookup("e", "file")
	// Between lookup and open the host, or another guest of the same volume, puts a link in its place.
	must(t, os.Remove(filepath.Join(dir, "export/file")))
	must(t, os.Symlink("../secret", filepath.Join(dir, "export/file")))
	handle, errno := g.open(14, file, unix.O_RDWR)
	if errno != 0 {
		t.Fatal(errno)
	}
	if _, b := g.read(opRead, file, handle, 0, 100); string(b) != "export/file" {
		t.Errorf("read %q", b)
	}
	sub := g.mustLookup("e", "dir")
	must(t, os.Rename(filepath.Join(dir, "export/dir"), filepath.Join(dir, "export/moved")))
	must(t, os.Symlink("../out", filepath.Join(dir, "export/dir")))
	if _, errno := g.lookup(sub, "secret"); errno != unix.ENOENT {
		t.Errorf("look up in a directory that was replaced: %v", errno)
	}
	if _, errno := g.lookup(sub, "file"); errno != 0 {
		t.Errorf("look up in a directory that was renamed: %v", errno)
	}
}

func TestLinksAndRenamesStayInOneExport(t *testing.T) {
	dir, s := host(t, false)
	other := t.TempDir()
	must(t, s.Export("other", other, false))
	must(t, s.Export("readonly", filepath.Join(dir, "export"), true))
	g := newGuest(t, s)
	top, there := g.mustLookup("e"), g.mustLookup("other")
	file, protected := g.mustLookup("e", "file"), g.mustLookup("readonly", "file")
	tests := []struct {
		name string
		call func() unix.Errno
		want unix.Errno
	}{
		{"link into another export", func() unix.Errno { e, _ := g.call(13, there, body(file), cname("x")); return e }, unix.EXDEV},
		{"link out of a read-only export", func() unix.Errno { e, _ := g.call(13, top, body(protected), cname("x")); return e }, unix.EROFS},
		{"link of a directory", func() unix.Errno { e, _ := g.call(13, top, body(g.mustLookup("e", "dir")), cname("x")); return e }, unix.EPERM},
		{"rename into another export", func() unix.Errno { e, _ := g.call(12, top, body(there), cname("file"), cname("x")); return e }, unix.EXDEV},
		{"rename upwards", func() unix.Errno { e, _ := g.call(12, top, body(top), cname("file"), cname("../x")); return e }, unix.EINVAL},
		{"rename of the parent", func() unix.Errno { e, _ := g.call(12, top, body(top), cname(".."), cname("x")); return e }, unix.EINVAL},
		{"rename of an export", func() unix.Errno { e, _ := g.call(12, rootID, body(uint64(rootID)), cname("e"), cname("x")); return e }, unix.EROFS},
		{"rename with a whiteout", func() unix.Errno {
			e, _ := g.call(45, top, body(struct {
				Dir   uint64
				Flags uint64
			}{top, unix.RENAME_WHITEOUT}), cname("file"), cname("x"))
			return e
		}, unix.EINVAL},
		{"removal of an export", func() unix.Errno { e, _ := g.call(11, rootID, cname("e")); return e }, unix.EROFS},
		{"removal upwards", func() unix.Errno { e, _ := g.call(10, top, cname("../secret")); return e }, unix.EINVAL},
	}
	for _, tt := range tests {
		if got := tt.call(); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	if entries, err := os.ReadDir(other); err != nil || len(entries) != 0 {
		t.Errorf("the other export holds %v, %v", entries, err)
	}
}

func TestReadonlyIsEnforcedHere(t *testing.T) {
	dir, s := host(t, true)
	g := newGuest(t, s)
	top, file := g.mustLookup("e"), g.mustLookup("e", "file")
	handle, errno := g.open(14, file, unix.O_RDONLY)
	if errno != 0 {
		t.Fatal(errno)
	}
	tests := map[string]func() (unix.Errno, []byte){
		"setattr": func() (unix.Errno, []byte) {
			return g.setattr(file, fuse.SetAttrInCommon{Valid: fuse.FATTR_MODE | fuse.FATTR_SIZE | fuse.FATTR_FH, Fh: handle}), nil
		},
		"mknod":   func() (unix.Errno, []byte) { return g.call(8, top, body([4]uint32{0o644}), cname("x")) },
		"mkdir":   func() (unix.Errno, []byte) { return g.call(9, top, body([2]uint32{0o755}), cname("x")) },
		"symlink": func() (unix.Errno, []byte) { return g.call(6, top, cname("x"), cname("target")) },
		"unlink":  func() (unix.Errno, []byte) { return g.call(10, top, cname("file")) },
		"rmdir":   func() (unix.Errno, []byte) { return g.call(11, top, cname("dir")) },
		"rename":  func() (unix.Errno, []byte) { return g.call(12, top, body(top), cname("file"), cname("x")) },
		"link":    func() (unix.Errno, []byte) { return g.call(13, top, body(file), cname("x")) },
		"create":  func() (unix.Errno, []byte) { return g.call(35, top, body([4]uint32{unix.O_CREAT}), cname("x")) },
		"setxattr": func() (unix.Errno, []byte) {
			return g.call(21, file, body([2]uint32{1, 0}), cname("user.a"), []byte("x"))
		},
		"removexattr": func() (unix.Errno, []byte) { return g.call(24, file, cname("user.a")) },
	}
	for name, call := range tests {
		if errno, _ := call(); errno != unix.EROFS {
			t.Errorf("%s: %v", name, errno)
		}
	}
	for _, flags := range []uint32{unix.O_WRONLY, unix.O_RDWR, unix.O_ACCMODE, unix.O_RDWR | unix.O_APPEND} {
		if _, errno := g.open(14, file, flags); errno != unix.EROFS {
			t.Errorf("open with %#o: %v", flags, errno)
		}
	}
	// A kernel that lies about how a file was opened.
	if errno := g.write(file, handle, 0, []byte("changed")); errno != unix.EBADF {
		t.Errorf("write: %v", errno)
	}
	if errno, _ := g.call(43, file, body(struct{ Fh, Offset, Length, Mode uint64 }{handle, 0, 100, 0})); errno != unix.EBADF {
		t.Errorf("fallocate: %v", errno)
	}
	if errno, _ := g.call(opCopyFileRange, file, body([]uint64{handle, 0, file, handle, 0, 10, 0})); errno != unix.EBADF {
		t.Errorf("copy_file_range: %v", errno)
	}
	if _, errno := g.open(14, file, unix.O_RDONLY|unix.O_TRUNC); errno != 0 {
		t.Errorf("open read-only with O_TRUNC: %v", errno)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "export/file")); err != nil || string(b) != "export/file" {
		t.Errorf("file holds %q, %v", b, err)
	}
}

func TestFileExportHasNoSurroundings(t *testing.T) {
	dir, _ := host(t, false)
	s := NewServer()
	must(t, s.Export("hosts", filepath.Join(dir, "secret"), false))
	g := newGuest(t, s)
	file := g.mustLookup("hosts")
	for _, name := range []string{"..", "out", "secret"} {
		if _, errno := g.lookup(file, name); errno != unix.ENOTDIR && errno != unix.EINVAL {
			t.Errorf("look up %s: %v", name, errno)
		}
	}
	if errno, _ := g.call(10, file, cname("secret")); errno != unix.ENOTDIR {
		t.Errorf("unlink: %v", errno)
	}
	handle, errno := g.open(14, file, unix.O_RDWR)
	if errno != 0 {
		t.Fatal(errno)
	}
	if errno := g.write(file, handle, 0, []byte("SECRET")); errno != 0 {
		t.Errorf("write: %v", errno)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "secret")); string(b) != "SECRET" {
		t.Errorf("file holds %q", b)
	}
}

func TestParentOfAnExportIsNotTold(t *testing.T) {
	dir, s := host(t, false)
	var above unix.Stat_t
	must(t, unix.Stat(dir, &above))
	g := newGuest(t, s)
	top := g.mustLookup("e")
	handle, errno := g.open(27, top, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	errno, reply := g.read(opReaddir, top, handle, 0, 4096)
	if errno != 0 || len(reply) == 0 {
		t.Fatalf("readdir: %v", errno)
	}
	for len(reply) >= 24 {
		n := binary.LittleEndian.Uint32(reply[16:])
		if ino := binary.LittleEndian.Uint64(reply); ino == above.Ino {
			t.Errorf("%q has the number of the directory above", reply[24:24+n])
		}
		reply = reply[24+(n+7)/8*8:]
	}
}

func TestXattrsOfUsersOnly(t *testing.T) {
	dir, s := host(t, false)
	g := newGuest(t, s)
	file := g.mustLookup("e", "file")
	for _, name := range []string{"security.capability", "trusted.overlay.opaque", "system.posix_acl_access", "users.a", ""} {
		if errno, _ := g.call(21, file, body([2]uint32{1, 0}), cname(name), []byte("x")); errno != unix.EOPNOTSUPP {
			t.Errorf("set %q: %v", name, errno)
		}
		if errno, _ := g.call(24, file, cname(name)); errno != unix.EOPNOTSUPP {
			t.Errorf("remove %q: %v", name, errno)
		}
		if errno, _ := g.call(opGetxattr, file, body([2]uint32{100, 0}), cname(name)); errno != unix.ENODATA {
			t.Errorf("get %q: %v", name, errno)
		}
	}
	if err := unix.Setxattr(filepath.Join(dir, "export/file"), "user.test", []byte("value"), 0); err != nil {
		t.Skipf("no attributes of users on this file system: %v", err)
	}
	if errno, b := g.call(opGetxattr, file, body([2]uint32{100, 0}), cname("user.test")); errno != 0 || string(b) != "value" {
		t.Errorf("get: %q, %v", b, errno)
	}
	if errno, b := g.call(opListxattr, file, body([2]uint32{100, 0})); errno != 0 || string(b) != "user.test\x00" {
		t.Errorf("list: %q, %v", b, errno)
	}
}

func TestBoundsOfNodesAndHandles(t *testing.T) {
	dir, s := host(t, false)
	s.table.maxNodes, s.table.maxHandles = 10, 5
	g := newGuest(t, s)
	top := g.mustLookup("e")
	for i := range 20 {
		must(t, os.WriteFile(filepath.Join(dir, "export", fmt.Sprint(i)), nil, 0o644))
	}
	var last uint64
	for i := range 9 {
		last = g.mustLookup("e", fmt.Sprint(i)) // "e" is the first node
	}
	if _, errno := g.lookup(top, "10"); errno != unix.ENFILE {
		t.Errorf("one node too many: %v", errno)
	}
	handle, errno := g.open(27, top, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	if errno, reply := g.read(opReaddirplus, top, handle, 0, 16<<10); errno != 0 || !strings.Contains(string(reply), "dirlink") {
		t.Errorf("a directory can't be listed when all nodes are used: %v", errno)
	}
	for range 4 {
		if _, errno := g.open(14, last, 0); errno != 0 {
			t.Fatal(errno)
		}
	}
	if _, errno := g.open(14, last, 0); errno != unix.ENFILE {
		t.Errorf("one handle too many: %v", errno)
	}
	if _, errno := g.open(27, rootID, 0); errno != unix.ENFILE {
		t.Errorf("one handle of the root too many: %v", errno)
	}
	// What is forgotten and released makes room.
	g.send(message(opForget, 0, last, 0, 0, body(uint64(1000))))
	g.send(message(opBatchForget, 0, 0, 0, 0, body([4]uint32{1}), nil)) // says one, holds none
	eventually(t, func() bool { _, errno := g.lookup(top, "10"); return errno == 0 })
	if errno, _ := g.call(29, top, body([3]uint64{handle})); errno != 0 {
		t.Errorf("releasedir: %v", errno)
	}
	if _, errno := g.open(27, rootID, 0); errno != 0 {
		t.Errorf("after a release: %v", errno)
	}
}

// send sends what has no answer.
func (g *guest) send(message []byte) {
	g.t.Helper()
	if _, err := g.conn.Write(frame(message)); err != nil {
		g.t.Fatal(err)
	}
}

func TestHandlesOfOneKindDoNotServeAsTheOther(t *testing.T) {
	_, s := host(t, false)
	g := newGuest(t, s)
	top, file := g.mustLookup("e"), g.mustLookup("e", "file")
	dirHandle, _ := g.open(27, top, 0)
	fileHandle, _ := g.open(14, file, unix.O_RDWR)
	if errno, _ := g.read(opRead, top, dirHandle, 0, 100); errno != unix.EBADF {
		t.Errorf("read of a directory: %v", errno)
	}
	for _, node := range []uint64{top, file, g.mustLookup("e", "dir")} {
		if errno, _ := g.read(opReaddir, node, fileHandle, 0, 4096); errno != unix.EBADF {
			t.Errorf("readdir of a file: %v", errno)
		}
	}
	if errno, _ := g.read(opReaddir, g.mustLookup("e", "dir"), dirHandle, 0, 4096); errno != unix.EBADF {
		t.Errorf("readdir of another directory: %v", errno)
	}
	if errno, _ := g.read(opRead, file, 12345, 0, 100); errno != unix.EBADF {
		t.Errorf("read of an unknown handle: %v", errno)
	}
	if errno, _ := g.read(opRead, file, fileHandle, ^uint64(0), 100); errno != unix.EINVAL {
		t.Errorf("read at the largest offset: %v", errno)
	}
}

func TestMessagesThatAreRefused(t *testing.T) {
	_, s := host(t, false)
	g := newGuest(t, s)
	top := g.mustLookup("e")
	short := message(opRead, 1, top, 0, 0)
	wrongLength := message(17, 2, top, 0, 0)
	binary.LittleEndian.PutUint32(wrongLength, 4000)
	extension := message(17, 3, top, 0, 0)
	binary.LittleEndian.PutUint16(extension[36:], 100)
	tests := []struct {
		name    string
		message []byte
		want    unix.Errno
	}{
		{"too short for its operation", short, unix.EINVAL},
		{"wrong length", wrongLength, unix.EINVAL},
		{"extensions", extension, unix.EINVAL},
		{"unknown operation", message(4711, 4, top, 0, 0), unix.ENOSYS},
		{"ioctl", message(39, 5, top, 0, 0, make([]byte, 32)), unix.ENOSYS},
		{"second INIT", message(opInit, 6, 0, 0, 0, initBody()), unix.EIO},
		{"large read", message(opRead, 7, top, 0, 0, body([]uint32{0, 0, 0, 0, relay.MaxData + 1, 0, 0, 0, 0, 0})), unix.EINVAL},
		{"endless read", message(opRead, 8, top, 0, 0, body([]uint32{0, 0, 0, 0, ^uint32(0), 0, 0, 0, 0, 0})), unix.EINVAL},
		{"endless list", message(opListxattr, 9, top, 0, 0, body([]uint32{^uint32(0), 0})), unix.EINVAL},
		{"write that says another length", message(opWrite, 10, top, 0, 0, body([]uint32{0, 0, 0, 0, 100, 0, 0, 0, 0, 0}), []byte("x")), unix.EINVAL},
		{"name without an end", message(opLookup, 11, top, 0, 0, []byte("file")), 0},
		{"rename with one name", message(12, 12, top, 0, 0, body(top), cname("file")), unix.EIO},
	}
	for _, tt := range tests {
		if got, _ := g.raw(tt.message); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestStreamsThatEndTheSession(t *testing.T) {
	tests := []struct {
		name, says string
		sent       []byte
	}{
		{"nothing", "", nil},
		{"half a length", "EOF", []byte{0, 0}},
		{"empty message", "message of 0 bytes", make([]byte, 4)},
		{"short message", "message of 39 bytes", append([]byte{0, 0, 0, 39}, make([]byte, 39)...)},
		{"oversize message", "message of 4294967295 bytes", []byte{255, 255, 255, 255}},
		{"half a message", "EOF", append([]byte{0, 0, 0, 60}, make([]byte, 10)...)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, s := host(t, false)
			defer s.Close()
			server, conn := net.Pipe()
			served := make(chan error, 1)
			go func() { served <- s.Serve(server) }()
			go io.Copy(io.Discard, conn)
			conn.Write(tt.sent)
			if !strings.HasPrefix(tt.says, "message") {
				conn.Close()
			}
			err := <-served
			if tt.says == "" && err != nil || tt.says != "" && !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("error is %v, should say %q", err, tt.says)
			}
			if err := s.Serve(server); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("a second session: %v", err)
			}
		})
	}
}

func TestOnlyInitComesFirst(t *testing.T) {
	_, s := host(t, false)
	host, conn := net.Pipe()
	defer s.Close()
	go s.Serve(host)
	g := &guest{t: t, conn: conn}
	if _, errno := g.lookup(rootID, "e"); errno != unix.EIO {
		t.Errorf("lookup before INIT: %v", errno)
	}
	if errno, _ := g.call(opInit, 0, initBody()); errno != 0 {
		t.Errorf("INIT: %v", errno)
	}
	if _, errno := g.lookup(rootID, "e"); errno != 0 {
		t.Errorf("lookup: %v", errno)
	}
}

func TestExportErrors(t *testing.T) {
	dir := t.TempDir()
	must(t, unix.Mkfifo(filepath.Join(dir, "pipe"), 0o644))
	s := NewServer()
	must(t, s.Export("taken", dir, false))
	tests := []struct {
		name, source string
		is           func(error) bool
	}{
		{"", dir, errdefs.IsInvalidArgument},
		{"..", dir, errdefs.IsInvalidArgument},
		{"a/b", dir, errdefs.IsInvalidArgument},
		{"missing", filepath.Join(dir, "missing"), errdefs.IsNotFound},
		{"pipe", filepath.Join(dir, "pipe"), errdefs.IsInvalidArgument},
		{"device", "/dev/null", errdefs.IsInvalidArgument},
		{"taken", dir, errdefs.IsAlreadyExists},
	}
	for _, tt := range tests {
		if err := s.Export(tt.name, tt.source, false); !tt.is(err) {
			t.Errorf("export %q of %s: %v", tt.name, tt.source, err)
		}
	}
	if err := s.Unexport("missing"); !errdefs.IsNotFound(err) {
		t.Errorf("unexport: %v", err)
	}
	must(t, s.Unexport("taken"))
	must(t, s.Export("taken", dir, true))
	must(t, s.Close())
	must(t, s.Close())
	if err := s.Export("late", dir, false); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("export after close: %v", err)
	}
}

//testtier:slow 4
func FuzzSession(f *testing.F) {
	for operation, least := range leastLength {
		f.Add(message(operation, 1, rootID, 0, 0, make([]byte, max(least, requestHeader)-requestHeader)))
		f.Add(message(operation, 1, 2, 0, 0, body([]uint64{3, 0, 100, 0, 0, 0, 0}), cname("file"), cname("other")))
	}
	f.Fuzz(func(t *testing.T, sent []byte) {
		dir, s := host(t, false)
		defer s.Close()
		server, conn := net.Pipe()
		served := make(chan error, 1)
		go func() { served <- s.Serve(server) }()
		go io.Copy(io.Discard, conn)
		prelude := [][]byte{message(opInit, 1, 0, 0, 0, initBody()), message(opLookup, 2, rootID, 0, 0, cname("e"))}
		for _, m := range prelude {
			conn.Write(frame(m))
		}
		// Once as one message, once as whatever it means as a stream.
		if len(sent) >= requestHeader && len(sent) <= relay.MaxMessage {
			conn.Write(frame(sent))
		}
		conn.Write(sent)
		conn.Close()
		<-served
		if b, err := os.ReadFile(filepath.Join(dir, "secret")); err != nil || string(b) != "secret" {
			t.Errorf("a file outside the export holds %q, %v", b, err)
		}
	})
}
