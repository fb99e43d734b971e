package volume

import (
	"errors"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// validity is how long the guest may believe what it was told about names and attributes: the host changes files
// too, and a pod should see a new Secret soon. What doesn't exist isn't remembered at all.
const validity = time.Second

// fileSystem answers the requests that the protocol code has taken apart. Every name in them is checked, every number
// looked up in the table.
type fileSystem struct {
	fuse.RawFileSystem // ENOSYS for the rest
	table              *table
}

func (fs *fileSystem) String() string { return "bulkhead" }

// status turns an error into what the guest gets.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var errno unix.Errno
	if errors.As(err, &errno) && errno != 0 {
		return fuse.Status(errno)
	}
	return fuse.EIO
}

// procPath leads to the object behind a descriptor, whatever has become of its name.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// writable returns a node of an export that may be changed, for use.
func (fs *fileSystem) writable(id uint64) (*node, error) {
	if id == rootID {
		return nil, unix.EROFS
	}
	n, err := fs.table.node(id)
	if err == nil && n.export.readonly {
		fs.table.put(n)
		return nil, unix.EROFS
	}
	return n, err
}

// directory returns a directory that may be changed, for use, and checks the name in it.
func (fs *fileSystem) directory(id uint64, name string) (*node, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	n, err := fs.writable(id)
	if err == nil && !n.isDir() {
		fs.table.put(n)
		return nil, unix.ENOTDIR
	}
	return n, err
}

// lookup opens one name in a directory as it is: a link is not followed. The node is for use.
func (fs *fileSystem) lookup(dir *node, name string) (*node, *unix.Stat_t, error) {
	fd, err := unix.Openat2(dir.fd, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, nil, err
	}
	return fs.enter(dir.export, fd)
}

func (fs *fileSystem) enter(e *export, fd int) (*node, *unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, nil, err
	}
	n, err := fs.table.enter(e, fd, &st)
	return n, &st, err
}

// lookupExport finds an export by its name in the session's root.
func (fs *fileSystem) lookupExport(name string) (*node, *unix.Stat_t, error) {
	fs.table.mu.Lock()
	e, fd := fs.table.exports[name], -1
	var err error = unix.ENOENT
	if e != nil {
		fd, err = unix.FcntlInt(uintptr(e.fd), unix.F_DUPFD_CLOEXEC, 0)
	}
	fs.table.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	return fs.enter(e, fd)
}

// Lookup implements fuse.RawFileSystem.
func (fs *fileSystem) Lookup(_ <-chan struct{}, header *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if err := checkName(name); err != nil {
		return status(err)
	}
	var n *node
	var st *unix.Stat_t
	var err error
	if header.NodeId == rootID {
		n, st, err = fs.lookupExport(name)
	} else {
		n, st, err = fs.lookupIn(header.NodeId, name)
	}
	return fs.entry(n, st, err, out)
}

func (fs *fileSystem) lookupIn(id uint64, name string) (*node, *unix.Stat_t, error) {
	dir, err := fs.table.node(id)
	if err != nil {
		return nil, nil, err
	}
	defer fs.table.put(dir)
	if !dir.isDir() {
		return nil, nil, unix.ENOTDIR
	}
	return fs.lookup(dir, name)
}

// entry answers with a node that was looked up, and gives it back.
func (fs *fileSystem) entry(n *node, st *unix.Stat_t, err error, out *fuse.EntryOut) fuse.Status {
	if err != nil {
		return status(err)
	}
	fs.fillEntry(out, n, st)
	fs.table.put(n)
	return fuse.OK
}

func (fs *fileSystem) fillEntry(out *fuse.EntryOut, n *node, st *unix.Stat_t) {
	out.NodeId = n.id
	out.SetEntryTimeout(validity)
	out.SetAttrTimeout(validity)
	fs.fillAttr(&out.Attr, st)
}

func (fs *fileSystem) fillAttr(out *fuse.Attr, st *unix.Stat_t) {
	out.FromStat((*syscall.Stat_t)(unsafe.Pointer(st))) // two names of one kernel structure
	out.Ino = fs.table.inode(uint64(st.Dev), st.Ino)
}

// Forget implements fuse.RawFileSystem.
func (fs *fileSystem) Forget(id, lookups uint64) { fs.table.forget(id, lookups) }

// GetAttr implements fuse.RawFileSystem.
func (fs *fileSystem) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.SetTimeout(validity)
	if in.NodeId == rootID {
		out.Attr = rootAttr()
		return fuse.OK
	}
	n, err := fs.table.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer fs.table.put(n)
	return status(fs.stat(n, out))
}

func (fs *fileSystem) stat(n *node, out *fuse.AttrOut) error {
	var st unix.Stat_t
	if err := unix.Fstat(n.fd, &st); err != nil {
		return err
	}
	out.SetTimeout(validity)
	fs.fillAttr(&out.Attr, &st)
	return nil
}

// rootAttr are the attributes of the session's root directory.
func rootAttr() fuse.Attr { return fuse.Attr{Ino: rootID, Mode: unix.S_IFDIR | 0o555, Nlink: 2} }

// SetAttr implements fuse.RawFileSystem.
func (fs *fileSystem) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, err := fs.writable(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer fs.table.put(n)
	// The owner before the mode: a change of owner takes set-user-id bits away.
	for _, set := range []func(*node, *fuse.SetAttrIn) error{fs.setSize, fs.setOwner, fs.setMode, fs.setTimes} {
		if err := set(n, in); err != nil {
			return status(err)
		}
	}
	return status(fs.stat(n, out))
}

func (fs *fileSystem) setSize(n *node, in *fuse.SetAttrIn) error {
	size, ok := in.GetSize()
	if !ok {
		return nil
	}
	if !n.isFile() {
		return unix.EINVAL
	}
	if id, ok := in.GetFh(); ok {
		if h, err := fs.table.handle(id, false); err == nil {
			defer fs.table.putHandle(h)
			if h.node == n.id && h.write {
				return unix.Ftruncate(h.fd, int64(size))
			}
		}
	}
	return unix.Truncate(procPath(n.fd), int64(size))
}

func (fs *fileSystem) setOwner(n *node, in *fuse.SetAttrIn) error {
	uid, gid := -1, -1
	if id, ok := in.GetUID(); ok {
		uid = int(id)
	}
	if id, ok := in.GetGID(); ok {
		gid = int(id)
	}
	if uid == -1 && gid == -1 {
		return nil
	}
	return unix.Fchownat(n.fd, "", uid, gid, unix.AT_EMPTY_PATH)
}

func (fs *fileSystem) setMode(n *node, in *fuse.SetAttrIn) error {
	mode, ok := in.GetMode()
	if !ok {
		return nil
	}
	return chmod(n, mode)
}

func chmod(n *node, mode uint32) error {
	if n.kind() == unix.S_IFLNK {
		return unix.EOPNOTSUPP
	}
	return unix.Fchmodat(unix.AT_FDCWD, procPath(n.fd), mode&0o7777, 0)
}

func (fs *fileSystem) setTimes(n *node, in *fuse.SetAttrIn) error {
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) == 0 {
		return nil
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	set := func(t *unix.Timespec, want, now uint32, sec uint64, nsec uint32) {
		switch {
		case in.Valid&want == 0:
		case in.Valid&now != 0:
			t.Nsec = unix.UTIME_NOW
		default:
			*t = unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
		}
	}
	set(&times[0], fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec)
	set(&times[1], fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec)
	return unix.UtimesNanoAt(n.fd, "", times, unix.AT_EMPTY_PATH)
}

// Readlink implements fuse.RawFileSystem. The host only reads the link; the guest follows it within itself.
func (fs *fileSystem) Readlink(_ <-chan struct{}, header *fuse.InHeader) ([]byte, fuse.Status) {
	n, err := fs.table.node(header.NodeId)
	if err != nil {
		return nil, status(err)
	}
	defer fs.table.put(n)
	if n.kind() != unix.S_IFLNK {
		return nil, fuse.EINVAL
	}
	buf := make([]byte, unix.PathMax)
	size, err := unix.Readlinkat(n.fd, "", buf)
	if err != nil {
		return nil, status(err)
	}
	return buf[:size], fuse.OK
}

// StatFs implements fuse.RawFileSystem.
func (fs *fileSystem) StatFs(_ <-chan struct{}, header *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	if header.NodeId == rootID {
		*out = fuse.StatfsOut{Bsize: 4096, Frsize: 4096, NameLen: maxName}
		return fuse.OK
	}
	n, err := fs.table.node(header.NodeId)
	if err != nil {
		return status(err)
	}
	defer fs.table.put(n)
	var st unix.Statfs_t
	if err := unix.Fstatfs(n.fd, &st); err != nil {
		return status(err)
	}
	*out = fuse.StatfsOut{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), Frsize: uint32(st.Frsize), NameLen: uint32(st.Namelen),
	}
	return fuse.OK
}
