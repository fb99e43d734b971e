package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"bulkhead.dev/bulkhead/internal/rootfs/erofs"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Mount is one mount as containerd's snapshotter describes it.
type Mount struct {
	Type    string
	Source  string
	Options []string
}

// RootFS is a container's root as disks. It is made by [Cache.Prepare] and has to be closed.
type RootFS struct {
	// Layers are the read-only EROFS images, uppermost first, opened read-only; at least one. They belong to the
	// RootFS: Close closes them. Whoever hands a descriptor on (to a VMM) duplicates it; an image is kept from garbage
	// collection until the last duplicate is closed.
	Layers []*os.File
	// Upper is the directory that containerd gave for what the container writes; "" for a read-only view. The container
	// does not write there, but to its scratch disk; files next to it are within kubelet's accounting.
	Upper string

	cached []string // paths of those images that are the cache's

	once sync.Once
	err  error
}

// Close releases the images to garbage collection and closes them; that was their last use. It may be called more than once.
func (r *RootFS) Close() error {
	r.once.Do(func() {
		for _, path := range r.cached {
			touch(path)
		}
		var errs []error
		for _, layer := range r.Layers {
			errs = append(errs, layer.Close())
		}
		r.err = errors.Join(errs...)
	})
	return r.err
}

// Prepare returns the root that the mounts describe: an overlay, a bind of one directory, or what containerd's erofs
// snapshotter hands over. Layers that have no image yet are converted, each once, also when several processes ask at
// the same time. Errors have the class errdefs.ErrInvalidArgument when the mounts or a layer can't be used,
// errdefs.ErrNotFound when a layer is missing and errdefs.ErrResourceExhausted when the disk is full; nothing is left
// behind then.
func (c *Cache) Prepare(ctx context.Context, mounts []Mount) (*RootFS, error) {
	stack, err := parse(mounts)
	if err != nil {
		return nil, err
	}
	root := &RootFS{Upper: stack.upper}
	if err := c.prepare(ctx, root, stack); err != nil {
		root.Close()
		return nil, err
	}
	return root, nil
}

func (c *Cache) prepare(ctx context.Context, root *RootFS, stack stack) error {
	layers, err := c.layers(stack)
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range layers {
			l.close()
		}
	}()
	for _, l := range layers {
		image, err := c.open(ctx, l, erofs.Options{UserXattr: stack.userXattr})
		if err != nil {
			return fmt.Errorf("layer %s: %w", l.path, err)
		}
		root.Layers = append(root.Layers, image)
		if l.cacheable() {
			root.cached = append(root.cached, image.Name())
		}
	}
	return nil
}

// layers opens the sources of a stack, uppermost first, without those that add nothing.
func (c *Cache) layers(stack stack) (layers []*layer, err error) {
	defer func() {
		if err != nil {
			for _, l := range layers {
				l.close()
			}
		}
	}()
	sources := stack.lower
	if stack.upper != "" {
		sources = append([]source{{path: stack.upper}}, sources...)
	}
	for i, s := range sources {
		l, err := openLayer(s)
		if err != nil {
			return layers, fmt.Errorf("layer %s: %w", s.path, err)
		}
		l.writable = i == 0 && stack.upper != ""
		layers = append(layers, l)
	}
	kept := layers[:0:0]
	for i, l := range layers {
		skip, err := l.addsNothing(layers[i+1:])
		if err != nil {
			return layers, fmt.Errorf("layer %s: %w", l.path, err)
		}
		if skip {
			l.close()
		} else {
			kept = append(kept, l)
		}
	}
	return kept, nil
}

// open returns an image of a layer, opened read-only.
func (c *Cache) open(ctx context.Context, l *layer, options erofs.Options) (*os.File, error) {
	switch {
	case l.image:
		return reopen(l.file, l.path, os.O_RDONLY)
	case !l.cacheable():
		return c.temporary(ctx, l, options)
	}
	return c.cached(ctx, l, options)
}

// reopen opens an open file anew, with its own flags and locks, and calls it name.
func reopen(f *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("reopen %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// convert writes the image of a layer to out and syncs it.
func convert(ctx context.Context, out *os.File, l *layer, options erofs.Options) error {
	dir, err := reopen(l.file, l.path, os.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	info, err := erofs.Write(ctx, out, dir, options)
	if err == nil {
		err = out.Sync()
	}
	if err != nil {
		return fmt.Errorf("convert to EROFS: %w", classify(err))
	}
	if info.Inodes > manyInodes {
		releaseMemory()
	}
	return nil
}

// classify gives an error of the file system its class.
func classify(err error) error {
	var class error
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		class = errdefs.ErrResourceExhausted
	case errors.Is(err, unix.ENOENT):
		class = errdefs.ErrNotFound
	case errors.Is(err, erofs.ErrBlockDevice), errors.Is(err, unix.EXDEV), errors.Is(err, unix.EOVERFLOW),
		errors.Is(err, unix.E2BIG), errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EFBIG):
		class = errdefs.ErrInvalidArgument
	default:
		return err
	}
	return fmt.Errorf("%w: %w", err, class)
}
