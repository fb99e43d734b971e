package rootfs

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"bulkhead.dev/bulkhead/internal/rootfs/erofs"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// manyInodes is the size of a tree from which its conversion's memory is worth giving back at once.
const manyInodes = 10_000

func releaseMemory() { debug.FreeOSMemory() }

// layer is an opened source: a directory, or an image.
type layer struct {
	path      string
	file      *os.File // O_PATH for a directory
	image     bool
	writable  bool // the container's own, which may change
	immutable bool // its identity says all, so that its image may be cached
	stat      unix.Statx_t
}

// cacheable tells whether the layer's image is the cache's, rather than made for one use or not ours.
func (l *layer) cacheable() bool { return !l.image && !l.writable && l.immutable }

func (l *layer) close() { l.file.Close() }

// openLayer opens a source and refuses what isn't a plain directory or an image file. What holds for the file that is
// opened holds for what is read later: the path isn't looked up again.
func openLayer(s source) (*layer, error) {
	if s.image {
		f, err := openImage(s.path)
		if err != nil {
			return nil, err
		}
		return &layer{path: s.path, file: f, image: true}, nil
	}
	fd, err := unix.Open(s.path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open: %w", classify(err))
	}
	l := &layer{path: s.path, file: os.NewFile(uintptr(fd), s.path)}
	if err := l.inspect(); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *layer) inspect() error {
	fd := int(l.file.Fd())
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME|unix.STATX_MNT_ID, &l.stat); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if kind := uint32(l.stat.Mode) & unix.S_IFMT; kind != unix.S_IFDIR {
		return fmt.Errorf("is %s, not a plain directory: %w", kindName(kind), errdefs.ErrInvalidArgument)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return fmt.Errorf("statfs: %w", err)
	}
	if fs.Type != unix.EROFS_SUPER_MAGIC_V1 {
		l.immutable = true
		return nil
	}
	// An image that containerd mounted for us. The device of a mount doesn't identify what it shows for long, so what
	// isn't an image can't be cached.
	if l.stat.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return nil
	}
	if image, err := mountedImage(l.stat.Mnt_id); err == nil {
		l.close()
		l.file, l.image = image, true
	}
	return nil
}

func kindName(kind uint32) string {
	switch kind {
	case unix.S_IFBLK:
		return "a block device"
	case unix.S_IFCHR:
		return "a character device"
	case unix.S_IFLNK:
		return "a symbolic link"
	case unix.S_IFREG:
		return "a file"
	case unix.S_IFIFO:
		return "a pipe"
	case unix.S_IFSOCK:
		return "a socket"
	}
	return "something else"
}

// openImage opens an EROFS image, which has to be a regular file.
func openImage(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", classify(err))
	}
	if err := checkImage(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func checkImage(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("image is not a plain file (%s): %w", info.Mode(), errdefs.ErrInvalidArgument)
	}
	if err := erofs.Check(f); err != nil {
		return fmt.Errorf("image: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// mountedImage returns the image file that is mounted as a whole, directly or through a loop device.
func mountedImage(mountID uint64) (*os.File, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		// id parent major:minor root mountpoint options [optional]… - type source super-options
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[0] != fmt.Sprint(mountID) {
			continue
		}
		_, after, _ := strings.Cut(lines.Text(), " - ")
		end := strings.Fields(after)
		if len(end) < 3 || fields[3] != "/" || strings.Contains(end[2], "device=") {
			break
		}
		image := unescape(end[1])
		if strings.HasPrefix(image, "/dev/loop") {
			backing, err := os.ReadFile("/sys/dev/block/" + fields[2] + "/loop/backing_file")
			if err != nil {
				return nil, err
			}
			image = strings.TrimSuffix(string(backing), "\n")
		}
		return openImage(image)
	}
	return nil, errors.Join(lines.Err(), errdefs.ErrNotFound)
}

// unescape undoes what mountinfo does to blanks and backslashes.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// addsNothing says whether the layer can be left out: an empty directory with the same owner, mode and attributes as
// the one below it. The lowest layer is always kept.
func (l *layer) addsNothing(below []*layer) (bool, error) {
	if l.image || len(below) == 0 {
		return false, nil
	}
	under := below[0]
	// The writable directory's attributes are containerd's, and its place is taken by the scratch disk.
	if !l.writable && (under.image || l.stat.Mode != under.stat.Mode || l.stat.Uid != under.stat.Uid || l.stat.Gid != under.stat.Gid) {
		return false, nil
	}
	dir, err := reopen(l.file, l.path, os.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	if _, err := dir.Readdirnames(1); !errors.Is(err, io.EOF) {
		return false, err
	}
	n, err := unix.Flistxattr(int(dir.Fd()), nil)
	if err != nil && !errors.Is(err, unix.ENOTSUP) {
		return false, fmt.Errorf("listxattr: %w", err)
	}
	return n <= 0 || l.writable, nil
}

// imageVersion is part of every key: it counts up when images of the same layer get other contents.
const imageVersion = 1

// key identifies the layer for the cache. containerd doesn't change a directory once it is committed, but may use its
// path, and the file system its inode number, for another one later: that has another time of birth and change.
func (l *layer) key(options erofs.Options) string {
	h := sha256.New()
	s := &l.stat
	fmt.Fprintf(h, "%d %t %d:%d %d ", imageVersion, options.UserXattr, s.Dev_major, s.Dev_minor, s.Ino)
	for _, t := range []unix.StatxTimestamp{s.Btime, s.Ctime, s.Mtime} {
		fmt.Fprintf(h, "%d.%d ", t.Sec, t.Nsec)
	}
	h.Write([]byte(l.path))
	return hex.EncodeToString(h.Sum(nil)[:20])
}
