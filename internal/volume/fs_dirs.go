package volume

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// OpenDir implements fuse.RawFileSystem.
func (fs *fileSystem) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.NodeId == rootID {
		id, err := fs.table.open(&handle{dir: true, node: rootID})
		out.Fh = id
		return status(err)
	}
	n, err := fs.table.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer fs.table.put(n)
	if !n.isDir() {
		return fuse.ENOTDIR
	}
	fd, err := unix.Open(procPath(n.fd), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return status(err)
	}
	id, err := fs.table.open(&handle{descriptor: descriptor{fd: fd}, export: n.export, node: n.id, dir: true})
	out.Fh = id
	return status(err)
}

// ReleaseDir implements fuse.RawFileSystem.
func (fs *fileSystem) ReleaseDir(in *fuse.ReleaseIn) { fs.table.closeHandle(in.Fh) }

// FsyncDir implements fuse.RawFileSystem.
func (fs *fileSystem) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h, err := fs.table.handle(in.Fh, true)
	if err != nil {
		return status(err)
	}
	defer fs.table.putHandle(h)
	return status(unix.Fsync(h.fd))
}

// ReadDir implements fuse.RawFileSystem.
func (fs *fileSystem) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fs.readDir(in, func(_ *node, e fuse.DirEntry) bool { return out.AddDirEntry(e) })
}

// ReadDirPlus implements fuse.RawFileSystem. An entry that can't be looked up, because it has gone or the guest knows
// too many files already, is still listed.
func (fs *fileSystem) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return fs.readDir(in, func(dir *node, e fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if e.Name == "." || e.Name == ".." {
			return true
		}
		var n *node
		var st *unix.Stat_t
		var err error
		if dir == nil {
			n, st, err = fs.lookupExport(e.Name)
		} else {
			n, st, err = fs.lookup(dir, e.Name)
		}
		if err == nil {
			fs.fillEntry(entry, n, st)
			out.FixMode(st.Mode)
			fs.table.put(n)
		}
		return true
	})
}

// readDir calls add for the entries from an offset on until it is full. dir is nil in the session's root.
func (fs *fileSystem) readDir(in *fuse.ReadIn, add func(dir *node, e fuse.DirEntry) bool) fuse.Status {
	if in.NodeId == rootID {
		return fs.readRoot(in, add)
	}
	h, err := fs.table.handle(in.Fh, true)
	if err != nil {
		return status(err)
	}
	defer fs.table.putHandle(h)
	dir, err := fs.table.node(in.NodeId)
	if err != nil {
		return status(err)
	}
	defer fs.table.put(dir)
	if h.node != dir.id {
		return fuse.EBADF
	}
	return status(fs.readHost(h, dir, in, add))
}

// readHost reads a directory of the host. The guest's offsets are the host's own marks, so nothing is kept between
// requests.
func (fs *fileSystem) readHost(h *handle, dir *node, in *fuse.ReadIn, add func(*node, fuse.DirEntry) bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, err := unix.Seek(h.fd, int64(in.Offset), unix.SEEK_SET); err != nil {
		return err
	}
	isRoot := dir.key.dev == uint64(dir.export.stat.Dev) && dir.key.ino == dir.export.stat.Ino
	buf := make([]byte, max(4096, min(int(in.Size), 32<<10)))
	for first := true; ; first = false {
		n, err := unix.Getdents(h.fd, buf)
		if err != nil {
			if first {
				return err
			}
			return nil // what is there already is answered; the error comes with the next request
		}
		if n == 0 {
			return nil
		}
		for rest := buf[:n]; len(rest) > 0; {
			var e fuse.DirEntry
			if e, rest = parseDirent(rest); e.Name == ".." && isRoot {
				e.Ino = rootID // what lies above an export is none of the guest's business
			} else {
				e.Ino = fs.table.inode(dir.key.dev, e.Ino)
			}
			if !add(dir, e) {
				return nil
			}
		}
	}
}

// parseDirent takes one entry off what getdents64 returned:
//
//	inode u64, offset of the next i64, length u16, type u8, name, 0
func parseDirent(b []byte) (fuse.DirEntry, []byte) {
	length := binary.NativeEndian.Uint16(b[16:])
	name := b[19:length]
	if i := bytes.IndexByte(name, 0); i >= 0 {
		name = name[:i]
	}
	return fuse.DirEntry{
		Ino:  binary.NativeEndian.Uint64(b),
		Off:  binary.NativeEndian.Uint64(b[8:]),
		Mode: uint32(b[18]) << 12,
		Name: string(name),
	}, b[length:]
}

// readRoot lists the exports.
func (fs *fileSystem) readRoot(in *fuse.ReadIn, add func(*node, fuse.DirEntry) bool) fuse.Status {
	fs.table.mu.Lock()
	entries := []fuse.DirEntry{{Name: ".", Mode: unix.S_IFDIR, Ino: rootID}, {Name: "..", Mode: unix.S_IFDIR, Ino: rootID}}
	var names []string
	for name := range fs.table.exports {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		entries = append(entries, fuse.DirEntry{Name: name, Mode: fs.table.exports[name].stat.Mode})
	}
	fs.table.mu.Unlock()
	if in.Offset > uint64(len(entries)) {
		return fuse.OK
	}
	for i, e := range entries[in.Offset:] {
		e.Off = in.Offset + uint64(i) + 1
		if !add(nil, e) {
			break
		}
	}
	return fuse.OK
}
