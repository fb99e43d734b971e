package volume

import (
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// openFlags are the flags of open(2) that the guest decides on. O_DIRECT is not among them, since the guest's
// buffers are not ours, nor O_TRUNC, for which the kernel sends a SETATTR.
const openFlags = unix.O_ACCMODE | unix.O_APPEND | unix.O_SYNC | unix.O_DSYNC

// Open implements fuse.RawFileSystem.
func (fs *fileSystem) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, err := fs.table.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer fs.table.put(n)
	id, err := fs.open(n, in.Flags)
	out.Fh = id
	return status(err)
}

// open opens a regular file, and nothing else: opening a device or a pipe acts on the host.
func (fs *fileSystem) open(n *node, guestFlags uint32) (uint64, error) {
	switch {
	case n.isDir():
		return 0, unix.EISDIR
	case !n.isFile():
		return 0, unix.ENXIO
	}
	flags := int(guestFlags)&openFlags | unix.O_CLOEXEC | unix.O_NOCTTY
	write := flags&unix.O_ACCMODE != unix.O_RDONLY
	if n.export.readonly {
		if write {
			return 0, unix.EROFS
		}
		flags |= unix.O_NOATIME
	}
	// The descriptor is of a regular file, so there is no link to be followed but that of proc itself.
	fd, err := unix.Open(procPath(n.fd), flags, 0)
	if errors.Is(err, unix.EPERM) && flags&unix.O_NOATIME != 0 {
		fd, err = unix.Open(procPath(n.fd), flags&^unix.O_NOATIME, 0)
	}
	if err != nil {
		return 0, err
	}
	return fs.table.open(&handle{descriptor: descriptor{fd: fd}, export: n.export, node: n.id, write: write})
}

// Create implements fuse.RawFileSystem.
func (fs *fileSystem) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	dir, err := fs.directory(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer fs.table.put(dir)
	n, st, err := fs.create(dir, in, name)
	if err != nil {
		return status(err)
	}
	id, err := fs.open(n, in.Flags)
	if err != nil {
		fs.undo(n)
		return status(err)
	}
	out.Fh = id
	return fs.entry(n, st, nil, &out.EntryOut)
}

// create makes a new file, or looks up the one that has the name already, which may be anything.
func (fs *fileSystem) create(dir *node, in *fuse.CreateIn, name string) (*node, *unix.Stat_t, error) {
	fd, err := unix.Openat(dir.fd, name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_RDONLY, 0o600)
	if errors.Is(err, unix.EEXIST) && in.Flags&unix.O_EXCL == 0 {
		return fs.lookup(dir, name)
	}
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(fd)
	path, err := unix.Open(procPath(fd), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	n, st, err := fs.enter(dir.export, path)
	if err != nil {
		return nil, nil, err
	}
	if err := fs.own(dir, n, st, in.Uid, in.Gid, in.Mode); err != nil {
		fs.undo(n)
		return nil, nil, err
	}
	return n, st, nil
}

// Read implements fuse.RawFileSystem.
func (fs *fileSystem) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h, err := fs.table.handle(in.Fh, false)
	if err != nil {
		return nil, status(err)
	}
	defer fs.table.putHandle(h)
	n := 0
	for n < len(buf) {
		got, err := unix.Pread(h.fd, buf[n:], int64(in.Offset)+int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil && n == 0 {
			return nil, status(err)
		}
		if err != nil || got == 0 {
			break
		}
		n += got
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write implements fuse.RawFileSystem.
func (fs *fileSystem) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h, err := fs.writeHandle(in.Fh)
	if err != nil {
		return 0, status(err)
	}
	defer fs.table.putHandle(h)
	n := 0
	for n < len(data) {
		done, err := unix.Pwrite(h.fd, data[n:], int64(in.Offset)+int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil && n == 0 {
			return 0, status(err)
		}
		if err != nil || done == 0 {
			break
		}
		n += done
	}
	return uint32(n), fuse.OK
}

// writeHandle returns a file that is open for writing, for use.
func (fs *fileSystem) writeHandle(id uint64) (*handle, error) {
	h, err := fs.table.handle(id, false)
	if err == nil && !h.write {
		fs.table.putHandle(h)
		return nil, unix.EBADF
	}
	return h, err
}

// Flush implements fuse.RawFileSystem. It is sent for every close in the guest; network file systems report failed
// writes then.
func (fs *fileSystem) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	h, err := fs.table.handle(in.Fh, false)
	if err != nil {
		return status(err)
	}
	defer fs.table.putHandle(h)
	if !h.write {
		return fuse.OK
	}
	fd, err := unix.FcntlInt(uintptr(h.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return status(err)
	}
	return status(unix.Close(fd))
}

// Release implements fuse.RawFileSystem.
func (fs *fileSystem) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { fs.table.closeHandle(in.Fh) }

// Fsync implements fuse.RawFileSystem.
func (fs *fileSystem) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h, err := fs.table.handle(in.Fh, false)
	if err != nil {
		return status(err)
	}
	defer fs.table.putHandle(h)
	if in.FsyncFlags&1 != 0 {
		return status(unix.Fdatasync(h.fd))
	}
	return status(unix.Fsync(h.fd))
}

// Fallocate implements fuse.RawFileSystem.
func (fs *fileSystem) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	if in.Mode&^uint32(unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 {
		return fuse.ENOTSUP
	}
	h, err := fs.writeHandle(in.Fh)
	if err != nil {
		return status(err)
	}
	defer fs.table.putHandle(h)
	return status(unix.Fallocate(h.fd, in.Mode, int64(in.Offset), int64(in.Length)))
}

// Lseek implements fuse.RawFileSystem. Only the two kinds that the guest can't answer itself are sent; the position
// that the call moves isn't used by anything else.
func (fs *fileSystem) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	h, err := fs.table.handle(in.Fh, false)
	if err != nil {
		return status(err)
	}
	defer fs.table.putHandle(h)
	offset, err := unix.Seek(h.fd, int64(in.Offset), int(in.Whence))
	out.Offset = uint64(offset)
	return status(err)
}

// CopyFileRange implements fuse.RawFileSystem.
func (fs *fileSystem) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	// One request must not keep the host busy for ever; the guest asks again for the rest.
	const step = 64 << 20
	from, err := fs.table.handle(in.FhIn, false)
	if err != nil {
		return 0, status(err)
	}
	defer fs.table.putHandle(from)
	to, err := fs.writeHandle(in.FhOut)
	if err != nil {
		return 0, status(err)
	}
	defer fs.table.putHandle(to)
	src, dst := int64(in.OffIn), int64(in.OffOut)
	n, err := unix.CopyFileRange(from.fd, &src, to.fd, &dst, int(min(in.Len, step)), 0)
	if err != nil {
		return 0, status(err)
	}
	return uint32(n), fuse.OK
}
