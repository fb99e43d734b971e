package guestimage

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// Bounds of what is read from packages: several times what a kernel package holds.
const (
	maxPackageFile = 256 << 20
	maxPackages    = 2 << 30
)

// node is a file or symbolic link of a package.
type node struct {
	data []byte
	link string
}

// tree holds the files of unpacked packages, by clean relative path. Later packages win.
type tree struct {
	nodes map[string]node
	total int64
}

func newTree() *tree {
	return &tree{nodes: make(map[string]node)}
}

// add reads the tar stream of a package and keeps the files that keep wants.
func (t *tree) add(r io.Reader, keep func(name string) bool) error {
	archive := tar.NewReader(r)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := clean(header.Name)
		if !keep(name) {
			continue
		}
		switch header.Typeflag {
		case tar.TypeReg:
			if header.Size > maxPackageFile || t.total+header.Size > maxPackages {
				return fmt.Errorf("%s: %d bytes are too many", name, header.Size)
			}
			data, err := io.ReadAll(archive)
			if err != nil {
				return fmt.Errorf("read %s: %w", name, err)
			}
			t.total += header.Size
			t.nodes[name] = node{data: data}
		case tar.TypeSymlink:
			t.nodes[name] = node{link: header.Linkname}
		case tar.TypeLink:
			t.nodes[name] = node{link: "/" + clean(header.Linkname)}
		}
	}
}

func clean(name string) string {
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}

// maxLinks is the kernel's own limit.
const maxLinks = 40

// read gives the content of a regular file, following symbolic links, those of directories too.
func (t *tree) read(name string) ([]byte, error) {
	resolved := clean(name)
	for range maxLinks {
		if n, ok := t.nodes[resolved]; ok && n.link == "" {
			return n.data, nil
		}
		next, ok := t.follow(resolved)
		if !ok {
			return nil, fmt.Errorf("no package holds /%s", clean(name))
		}
		resolved = next
	}
	return nil, fmt.Errorf("/%s: too many symbolic links", clean(name))
}

// follow replaces the first symbolic link on the way to name.
func (t *tree) follow(name string) (string, bool) {
	parts := strings.Split(name, "/")
	for i := range parts {
		prefix := strings.Join(parts[:i+1], "/")
		n, ok := t.nodes[prefix]
		if !ok || n.link == "" {
			continue
		}
		target := n.link
		if !path.IsAbs(target) {
			target = path.Join("/", path.Dir(prefix), target)
		}
		return clean(path.Join(target, path.Join(parts[i+1:]...))), true
	}
	return "", false
}
