package volume

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Mknod implements fuse.RawFileSystem. Devices are refused: they would be the host's.
func (fs *fileSystem) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	kind := in.Mode & unix.S_IFMT
	switch kind {
	case 0:
		kind = unix.S_IFREG
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK:
	default:
		return fuse.EPERM
	}
	return fs.make(&in.InHeader, name, kind, in.Mode, out, func(dir int) error {
		return unix.Mknodat(dir, name, kind|0o600, 0)
	})
}

// Mkdir implements fuse.RawFileSystem.
func (fs *fileSystem) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return fs.make(&in.InHeader, name, unix.S_IFDIR, in.Mode, out, func(dir int) error {
		return unix.Mkdirat(dir, name, 0o700)
	})
}

// Symlink implements fuse.RawFileSystem. The target may be anything, since the host never follows it here.
func (fs *fileSystem) Symlink(_ <-chan struct{}, header *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return fs.make(header, name, unix.S_IFLNK, 0, out, func(dir int) error {
		return unix.Symlinkat(target, dir, name)
	})
}

// make makes something in a directory, and gives it the owner and mode that the guest asked for.
func (fs *fileSystem) make(header *fuse.InHeader, name string, kind, mode uint32, out *fuse.EntryOut, call func(dir int) error) fuse.Status {
	dir, err := fs.directory(header.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer fs.table.put(dir)
	if err := call(dir.fd); err != nil {
		return status(err)
	}
	n, st, err := fs.lookup(dir, name)
	if err != nil {
		return status(err)
	}
	if n.kind() == kind { // else somebody has replaced it already, and it isn't ours to change
		if err := fs.own(dir, n, st, header.Uid, header.Gid, mode); err != nil {
			fs.undo(n)
			return status(err)
		}
	}
	return fs.entry(n, st, nil, out)
}

// undo takes back a lookup that the guest won't hear of.
func (fs *fileSystem) undo(n *node) {
	id := n.id
	fs.table.put(n)
	fs.table.forget(id, 1)
}

// own gives what was just made its owner and mode. As on a local file system, what is made in a directory with the
// set-group-id bit has that directory's group, and a directory inherits the bit.
func (fs *fileSystem) own(dir, n *node, st *unix.Stat_t, uid, gid, mode uint32) error {
	var parent unix.Stat_t
	if err := unix.Fstat(dir.fd, &parent); err != nil {
		return err
	}
	if parent.Mode&unix.S_ISGID != 0 {
		gid = parent.Gid
		if n.isDir() {
			mode |= unix.S_ISGID
		}
	}
	if st.Uid != uid || st.Gid != gid {
		if err := unix.Fchownat(n.fd, "", int(uid), int(gid), unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	if n.kind() != unix.S_IFLNK {
		if err := chmod(n, mode); err != nil {
			return err
		}
	}
	return unix.Fstat(n.fd, st)
}

// Unlink implements fuse.RawFileSystem.
func (fs *fileSystem) Unlink(_ <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	return fs.remove(header.NodeId, name, 0)
}

// Rmdir implements fuse.RawFileSystem.
func (fs *fileSystem) Rmdir(_ <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	return fs.remove(header.NodeId, name, unix.AT_REMOVEDIR)
}

func (fs *fileSystem) remove(id uint64, name string, flags int) fuse.Status {
	dir, err := fs.directory(id, name)
	if err != nil {
		return status(err)
	}
	defer fs.table.put(dir)
	return status(unix.Unlinkat(dir.fd, name, flags))
}

// Rename implements fuse.RawFileSystem.
func (fs *fileSystem) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	// Not among them: RENAME_WHITEOUT, which makes a device.
	if in.Flags&^uint32(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return fuse.EINVAL
	}
	from, err := fs.directory(in.NodeId, oldName)
	if err != nil {
		return status(err)
	}
	defer fs.table.put(from)
	to, err := fs.directory(in.Newdir, newName)
	if err != nil {
		return status(err)
	}
	defer fs.table.put(to)
	if from.export != to.export {
		return fuse.EXDEV
	}
	return status(unix.Renameat2(from.fd, oldName, to.fd, newName, uint(in.Flags)))
}

// Link implements fuse.RawFileSystem. It stays within an export: a read-only one must not get writable names.
func (fs *fileSystem) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, err := fs.directory(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	defer fs.table.put(dir)
	target, err := fs.writable(in.Oldnodeid)
	if err != nil {
		return status(err)
	}
	defer fs.table.put(target)
	switch {
	case target.export != dir.export:
		return fuse.EXDEV
	case target.isDir():
		return fuse.EPERM
	}
	if err := unix.Linkat(target.fd, "", dir.fd, name, unix.AT_EMPTY_PATH); err != nil {
		return status(err)
	}
	n, st, err := fs.lookup(dir, name)
	return fs.entry(n, st, err, out)
}
