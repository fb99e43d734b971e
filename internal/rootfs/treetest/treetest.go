// Package treetest describes directory trees, so that tests can compare what two file systems show.
package treetest

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Entry is what a file system shows of one file.
type Entry struct {
	Mode       uint32 // with the type
	UID, GID   uint32
	Links      uint64 // 0 for directories, which file systems count as they like
	Size       int64  // 0 for directories
	Mtime      string
	Device     uint64 // of device nodes
	Target     string // of symbolic links
	Xattrs     map[string]string
	Hash       string // of contents
	SameFileAs string // first path of the same inode
}

// Read describes the tree beneath dir by relative path. The attributes of the overlay itself are left out when
// asked for, since a merged view hides them.
func Read(t testing.TB, dir string, hideOverlay bool) map[string]Entry {
	t.Helper()
	tree := map[string]Entry{}
	seen := map[[2]uint64]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		entry, err := read(path, rel, seen, hideOverlay)
		tree[rel] = entry
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func read(path, rel string, seen map[[2]uint64]string, hideOverlay bool) (Entry, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return Entry{}, fmt.Errorf("lstat %s: %w", path, err)
	}
	e := Entry{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: fmt.Sprintf("%d.%09d", st.Mtim.Sec, st.Mtim.Nsec)}
	var err error
	if e.Xattrs, err = xattrs(path, hideOverlay); err != nil {
		return e, err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return e, nil
	}
	e.Size, e.Links = st.Size, uint64(st.Nlink)
	if st.Nlink > 1 {
		id := [2]uint64{st.Dev, st.Ino}
		if first, ok := seen[id]; ok {
			e.SameFileAs = first
		} else {
			seen[id] = rel
		}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		e.Target, err = os.Readlink(path)
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Device = uint64(st.Rdev)
	case unix.S_IFREG:
		e.Hash, err = hash(path)
	}
	return e, err
}

func hash(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func xattrs(path string, hideOverlay bool) (map[string]string, error) {
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return nil, fmt.Errorf("listxattr %s: %w", path, err)
	}
	found := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || hideOverlay && strings.Contains(name, ".overlay.") {
			continue
		}
		value := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("getxattr %s %s: %w", path, name, err)
		}
		found[name] = string(value[:n])
	}
	return found, nil
}
