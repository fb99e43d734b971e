package image

import (
	"archive/tar"
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
)

var envPattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=[^\x00]*$`)

// Tree is a set of files. Directories that lie on the way to a file need no entry; they are made with mode 0755.
type Tree []File

// File is a file, directory or link of an image. It belongs to root.
type File struct {
	// Path is relative to the image's root and clean.
	Path string
	// Mode is the type (regular, directory or symbolic link) and the permissions.
	Mode fs.FileMode
	// Data is the content of a regular file, unless Source names a file of this host that holds it.
	Data   []byte
	Source string
	// Link is the target of a symbolic link.
	Link string
	// HardLink is the Path of an earlier regular file that this one is another name of.
	HardLink string
}

func (t Tree) valid() error {
	seen := make(map[string]File)
	for _, f := range t {
		if !fs.ValidPath(f.Path) || f.Path == "." {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%q is no path in an image", f.Path))
		}
		if _, ok := seen[f.Path]; ok {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("the image has two files /%s", f.Path))
		}
		seen[f.Path] = f
	}
	for _, f := range t {
		if target, ok := seen[f.HardLink]; f.HardLink != "" && (!ok || !target.Mode.IsRegular() || target.HardLink != "") {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("/%s is a link to /%s, which is no file of the image", f.Path, f.HardLink))
		}
	}
	return nil
}

// sorted gives the order of the archive: by path, with all directories, and hard links after the files they name.
func (t Tree) sorted() []File {
	files := slices.Clone(t)
	have := make(map[string]bool)
	for _, f := range files {
		have[f.Path] = true
	}
	for _, f := range t {
		for dir := path.Dir(f.Path); dir != "." && !have[dir]; dir = path.Dir(dir) {
			have[dir] = true
			files = append(files, File{Path: dir, Mode: fs.ModeDir | 0o755})
		}
	}
	slices.SortFunc(files, func(a, b File) int {
		if (a.HardLink == "") != (b.HardLink == "") {
			if a.HardLink == "" {
				return -1
			}
			return 1
		}
		return cmp.Compare(a.Path, b.Path)
	})
	return files
}

func (f File) write(archive *tar.Writer) error {
	header := &tar.Header{Name: f.Path, Mode: unixMode(f.Mode), ModTime: epoch, Format: tar.FormatPAX}
	switch {
	case f.HardLink != "":
		header.Typeflag, header.Linkname = tar.TypeLink, f.HardLink
	case f.Mode.IsDir():
		header.Typeflag, header.Name = tar.TypeDir, f.Path+"/"
	case f.Mode&fs.ModeSymlink != 0:
		header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, f.Link, 0o777
	case f.Source != "":
		return f.copySource(archive, header)
	default:
		header.Typeflag, header.Size = tar.TypeReg, int64(len(f.Data))
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		_, err := archive.Write(f.Data)
		return err
	}
	return archive.WriteHeader(header)
}

func (f File) copySource(archive *tar.Writer, header *tar.Header) error {
	source, err := os.Open(f.Source)
	if err != nil {
		return err
	}
	defer source.Close()
	info, err := source.Stat()
	if err != nil {
		return err
	}
	header.Typeflag, header.Size = tar.TypeReg, info.Size()
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	// A file that grew meanwhile fails here as "write too long", one that shrank at the next header.
	_, err = io.Copy(archive, source)
	return err
}

// unixMode gives permissions with the bits that Go keeps elsewhere.
func unixMode(m fs.FileMode) int64 {
	mode := int64(m.Perm())
	for _, bit := range []struct {
		mode fs.FileMode
		unix int64
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if m&bit.mode != 0 {
			mode |= bit.unix
		}
	}
	return mode
}

// ReadDir gives the files below a directory of this host: regular files, directories, symbolic and hard links, with their
// permissions. Owners become root. Devices, sockets and pipes are refused: an image that needs one is a mistake.
func ReadDir(dir string) (Tree, error) {
	if info, err := os.Stat(dir); err != nil {
		return nil, errdefs.ErrNotFound.WithMessage(err.Error())
	} else if !info.IsDir() {
		return nil, errdefs.ErrInvalidArgument.WithMessage(dir + " is no directory")
	}
	var tree Tree
	type inode struct{ dev, ino uint64 }
	first := make(map[inode]string)
	err := filepath.WalkDir(dir, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(dir, name)
		if err != nil || relative == "." {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		f := File{Path: filepath.ToSlash(relative), Mode: info.Mode()}
		switch {
		case info.Mode().IsDir():
		case info.Mode()&fs.ModeSymlink != 0:
			if f.Link, err = os.Readlink(name); err != nil {
				return err
			}
		case info.Mode().IsRegular():
			f.Source = name
			if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Nlink > 1 {
				id := inode{uint64(stat.Dev), stat.Ino}
				if earlier, ok := first[id]; ok {
					f.Source, f.HardLink = "", earlier
				} else {
					first[id] = f.Path
				}
			}
		default:
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%s is neither file, directory nor link", name))
		}
		tree = append(tree, f)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the image's files: %w", err)
	}
	return tree, nil
}

// cleanPath turns a path as people write it, absolute or not, into one of a Tree.
func cleanPath(name string) string {
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}
