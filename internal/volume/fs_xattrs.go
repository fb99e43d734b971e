package volume

import (
	"errors"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The guest sees and changes only attributes of users. Capabilities, access lists and labels mean something to the
// host's kernel.
const userPrefix = "user."

// maxXattr is the kernel's limit for a value and for a list of names.
const maxXattr = 64 << 10

// xattrNode returns a node that may have attributes of users: links and special files have none.
func (fs *fileSystem) xattrNode(id uint64, write bool) (*node, error) {
	if id == rootID {
		return nil, unix.EOPNOTSUPP
	}
	find := fs.table.node
	if write {
		find = fs.writable
	}
	n, err := find(id)
	if err == nil && !n.isDir() && !n.isFile() {
		fs.table.put(n)
		return nil, unix.EOPNOTSUPP
	}
	return n, err
}

// GetXAttr implements fuse.RawFileSystem.
func (fs *fileSystem) GetXAttr(_ <-chan struct{}, header *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if !strings.HasPrefix(name, userPrefix) {
		return 0, fuse.ENODATA
	}
	n, err := fs.xattrNode(header.NodeId, false)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return 0, fuse.ENODATA
	}
	if err != nil {
		return 0, status(err)
	}
	defer fs.table.put(n)
	size, err := unix.Getxattr(procPath(n.fd), name, dest)
	if err != nil {
		return 0, status(err)
	}
	return uint32(size), fuse.OK
}

// ListXAttr implements fuse.RawFileSystem.
func (fs *fileSystem) ListXAttr(_ <-chan struct{}, header *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n, err := fs.xattrNode(header.NodeId, false)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return 0, fuse.OK
	}
	if err != nil {
		return 0, status(err)
	}
	defer fs.table.put(n)
	buf := make([]byte, maxXattr)
	size, err := unix.Listxattr(procPath(n.fd), buf)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return 0, fuse.OK
	}
	if err != nil {
		return 0, status(err)
	}
	var list []byte
	for name := range strings.SplitAfterSeq(string(buf[:size]), "\x00") {
		if strings.HasPrefix(name, userPrefix) {
			list = append(list, name...)
		}
	}
	if len(dest) > 0 && len(list) > len(dest) {
		return uint32(len(list)), fuse.ERANGE
	}
	copy(dest, list)
	return uint32(len(list)), fuse.OK
}

// SetXAttr implements fuse.RawFileSystem.
func (fs *fileSystem) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	switch {
	case !strings.HasPrefix(name, userPrefix):
		return fuse.ENOTSUP
	case len(name) > maxName:
		return fuse.ERANGE
	case int(in.Size) != len(data), len(data) > maxXattr:
		return fuse.EINVAL
	}
	n, err := fs.xattrNode(in.NodeId, true)
	if err != nil {
		return status(err)
	}
	defer fs.table.put(n)
	return status(unix.Setxattr(procPath(n.fd), name, data, int(in.Flags)))
}

// RemoveXAttr implements fuse.RawFileSystem.
func (fs *fileSystem) RemoveXAttr(_ <-chan struct{}, header *fuse.InHeader, name string) fuse.Status {
	if !strings.HasPrefix(name, userPrefix) {
		return fuse.ENOTSUP
	}
	n, err := fs.xattrNode(header.NodeId, true)
	if err != nil {
		return status(err)
	}
	defer fs.table.put(n)
	return status(unix.Removexattr(procPath(n.fd), name))
}
