package erofs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// maxInodes and maxMemory bound what a tree costs in memory while it is converted: an inode is about 300 bytes, and what
	// has no fixed size (names, of which hard links may have many more than there are inodes; attributes; links' targets)
	// comes on top.
	maxInodes = 2 << 20
	maxMemory = 256 << 20
	// maxFileSize is less than what chunks of the largest size can describe.
	maxFileSize = 1 << 57
)

// inode is one file of the tree.
type inode struct {
	mode      uint32
	uid, gid  uint32
	nlink     uint32
	mtimeNsec uint32
	mtime     int64
	size      int64
	rdev      uint64
	xattrs    []byte // as stored, with the header; nil without any
	link      string // symbolic link's target

	entries []dirent // directory's, sorted, with "." and ".."

	dir  *inode // where it was found first, to open it again
	name string

	chunkBits uint8 // sparse file's chunk size; 0 when it is stored whole
	layout    uint8
	block     uint32 // first block outside the metadata
	blocks    uint64
	offset    int64 // in the image
}

type dirent struct {
	name  string
	inode *inode
}

func (e *inode) format() uint32 { return e.mode & unix.S_IFMT }
func (e *inode) nid() uint64    { return uint64(e.offset / nidSize) }
func (e *inode) isDevice() bool {
	return e.format() == unix.S_IFCHR || e.format() == unix.S_IFBLK
}

// path names the inode beneath the root, for errors and for opening.
func (e *inode) path() string {
	if e.dir == nil {
		return "."
	}
	var names []string
	for ; e.dir != nil; e = e.dir {
		names = append(names, e.name)
	}
	slices.Reverse(names)
	return strings.Join(names, "/")
}

// identity tells hard links from other files.
type identity struct{ dev, ino uint64 }

// scanner reads a tree's metadata.
type scanner struct {
	root    int // descriptor
	options Options
	inodes  []*inode // directories before what they hold
	links   map[identity]*inode
	memory  int64 // that may still be used, see maxMemory
}

// use counts n bytes of memory.
func (s *scanner) use(n int) error {
	if s.memory -= int64(n); s.memory < 0 {
		return fmt.Errorf("names, attributes and links' targets are too many: %w", unix.EOVERFLOW)
	}
	return nil
}

// scan reads the tree beneath root breadth first, so that no more than one directory is open at a time.
func scan(ctx context.Context, root *os.File, options Options) (*scanner, error) {
	s := &scanner{root: int(root.Fd()), options: options, links: map[identity]*inode{}, memory: maxMemory}
	if options.memory > 0 {
		s.memory = options.memory
	}
	var st unix.Stat_t
	if err := unix.Fstat(s.root, &st); err != nil {
		return nil, fmt.Errorf("stat: %w", err)
	}
	top, err := s.inode(&st, "/proc/self/fd/"+strconv.Itoa(s.root)+"/.")
	if err != nil {
		return nil, err
	}
	s.inodes = append(s.inodes, top)
	for i := 0; i < len(s.inodes); i++ {
		if s.inodes[i].format() != unix.S_IFDIR {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := s.directory(ctx, s.inodes[i]); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// openBeneath opens what lies at a path beneath root: no links, no other mounts, and never a wait for a pipe.
func openBeneath(root int, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat2(root, name, &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// directory reads one directory's entries.
func (s *scanner) directory(ctx context.Context, dir *inode) error {
	d, err := openBeneath(s.root, dir.path(), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer d.Close()
	names, err := s.names(ctx, d)
	if err != nil {
		return fmt.Errorf("%q: %w", dir.path(), err)
	}
	parent := dir
	if dir.dir != nil {
		parent = dir.dir
	}
	dir.entries = make([]dirent, 0, len(names)+2)
	dir.entries = append(dir.entries, dirent{".", dir}, dirent{"..", parent})
	dir.nlink = 2
	slices.Sort(names)
	for i, name := range names {
		if i%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		child, err := s.entry(d, dir, name)
		if err != nil {
			return fmt.Errorf("%q: %w", path.Join(dir.path(), name), err)
		}
		dir.entries = append(dir.entries, dirent{name, child})
		if child.format() == unix.S_IFDIR {
			dir.nlink++
		}
	}
	slices.SortFunc(dir.entries, func(a, b dirent) int { return strings.Compare(a.name, b.name) })
	dir.size = dirSize(dir.entries)
	return nil
}

// direntMemory is what an entry costs beside its name.
const direntMemory = 24

// names reads a directory, which may be larger than what there is memory for.
func (s *scanner) names(ctx context.Context, d *os.File) ([]string, error) {
	if err := s.use(2 * direntMemory); err != nil { // "." and ".."
		return nil, err
	}
	var names []string
	for {
		some, err := d.Readdirnames(1024)
		for _, name := range some {
			if err := s.use(direntMemory + len(name)); err != nil {
				return nil, err
			}
		}
		names = append(names, some...)
		if errors.Is(err, io.EOF) {
			return names, nil
		}
		if err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
}

// entry reads the attributes of one name in an open directory.
func (s *scanner) entry(d *os.File, dir *inode, name string) (*inode, error) {
	fd := int(d.Fd())
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, fmt.Errorf("stat: %w", err)
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	id := identity{st.Dev, st.Ino}
	if st.Nlink > 1 && !isDir {
		if known := s.links[id]; known != nil {
			known.nlink++
			return known, nil
		}
	}
	if len(s.inodes) >= maxInodes {
		return nil, fmt.Errorf("more than %d files: %w", maxInodes, unix.EOVERFLOW)
	}
	e, err := s.inode(&st, fmt.Sprintf("/proc/self/fd/%d/%s", fd, name))
	if err != nil {
		return nil, err
	}
	e.dir, e.name = dir, name
	switch e.format() {
	case unix.S_IFBLK:
		return nil, ErrBlockDevice
	case unix.S_IFLNK:
		if e.link, err = readlinkat(fd, name); err != nil {
			return nil, err
		}
		e.size = int64(len(e.link))
	case unix.S_IFREG:
		if st.Size > maxFileSize {
			return nil, unix.EFBIG
		}
		if e.size = st.Size; st.Size >= sparseFrom && st.Blocks*512 < st.Size {
			if err := s.sparse(e, fd); err != nil {
				return nil, err
			}
		}
	}
	if err := s.use(len(e.link)); err != nil {
		return nil, err
	}
	if st.Nlink > 1 && !isDir {
		s.links[id] = e
	}
	s.inodes = append(s.inodes, e)
	return e, nil
}

// inode turns a file's attributes into an inode. path is for the calls that take no descriptor of a link.
func (s *scanner) inode(st *unix.Stat_t, path string) (*inode, error) {
	e := &inode{
		mode: st.Mode, uid: st.Uid, gid: st.Gid, nlink: 1,
		mtime: st.Mtim.Sec, mtimeNsec: uint32(st.Mtim.Nsec), rdev: uint64(st.Rdev),
	}
	xattrs, err := readXattrs(path, s.options)
	if err != nil {
		return nil, err
	}
	e.xattrs = xattrs
	return e, s.use(len(xattrs))
}

func (s *scanner) sparse(e *inode, dir int) error {
	f, err := openBeneath(dir, e.name, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	bits := chunkBitsFor(e.size)
	chunks, err := dataChunks(f, e.size, bits)
	if err != nil {
		return err
	}
	total := (e.size + 1<<bits - 1) >> bits
	if data := int64(countBits(chunks)); data < total {
		e.chunkBits = bits
		e.blocks = uint64(data) << (bits - blockBits)
	}
	return nil
}

func readlinkat(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", fmt.Errorf("readlink: %w", err)
	}
	if n == 0 || n >= len(buf) {
		return "", fmt.Errorf("readlink: %w", unix.ENAMETOOLONG)
	}
	return string(buf[:n]), nil
}

// readXattrs returns a file's extended attributes as they are stored. It doesn't follow a link at the end of path.
func readXattrs(path string, options Options) ([]byte, error) {
	// Most files have none: one call then.
	list := make([]byte, 512)
	n, err := unix.Llistxattr(path, list)
	if errors.Is(err, unix.ERANGE) {
		list = make([]byte, 1<<16) // the kernel's limit
		n, err = unix.Llistxattr(path, list)
	}
	if errors.Is(err, unix.ENOTSUP) || err == nil && n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listxattr: %w", err)
	}
	names := strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00")
	slices.Sort(names)
	var stored []byte
	for _, name := range names {
		as, ok := storedXattr(name, options)
		if !ok {
			continue
		}
		value, err := readXattr(path, name)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("getxattr %s: %w", name, err)
		}
		if stored == nil {
			stored = make([]byte, xattrHeaderSize)
		}
		if stored, err = appendXattr(stored, as, value); err != nil {
			return nil, fmt.Errorf("extended attribute %s: %w", name, err)
		}
	}
	return bytes.Clone(stored), nil
}

func readXattr(path, name string) ([]byte, error) {
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(path, name, buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, 1<<16)
		n, err = unix.Lgetxattr(path, name, buf)
	}
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}

const (
	trustedOverlay = "trusted.overlay."
	userOverlay    = "user.overlay."
)

// storedXattr says under which name an attribute is stored, if at all.
func storedXattr(name string, options Options) (string, bool) {
	if options.UserXattr {
		// A mount with userxattr doesn't look at the trusted ones; the guest's mount doesn't look at the others.
		if strings.HasPrefix(name, trustedOverlay) {
			return "", false
		}
		if rest, ok := strings.CutPrefix(name, userOverlay); ok {
			name = trustedOverlay + rest
		}
	}
	if rest, ok := strings.CutPrefix(name, trustedOverlay); ok {
		switch rest {
		case "origin", "impure", "nlink", "upper", "uuid":
			return "", false // handles of the host's file systems
		}
	}
	prefix, _ := xattrPrefix(name)
	return name, prefix != 0
}

// xattrPrefix splits a name into the number of its prefix and the rest; 0 for one that images don't hold.
func xattrPrefix(name string) (byte, string) {
	switch name {
	case aclAccess:
		return xattrACLAccess, ""
	case aclDefault:
		return xattrACLDefault, ""
	}
	prefix, rest, _ := strings.Cut(name, ".")
	switch {
	case rest == "":
		return 0, ""
	case prefix == "user":
		return xattrUser, rest
	case prefix == "trusted":
		return xattrTrusted, rest
	case prefix == "security":
		return xattrSecurity, rest
	}
	return 0, ""
}

func appendXattr(b []byte, name string, value []byte) ([]byte, error) {
	prefix, rest := xattrPrefix(name)
	if len(rest) > 255 || len(value) > maxXattrValueSize {
		return nil, fmt.Errorf("%d bytes: %w", len(value), unix.E2BIG)
	}
	b = append(b, byte(len(rest)), prefix)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	b = append(b, rest...)
	b = append(b, value...)
	b = append(b, make([]byte, -len(b)&3)...)
	if len(b) >= maxXattrsOfInode {
		return nil, unix.E2BIG
	}
	return b, nil
}
