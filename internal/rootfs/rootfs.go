package rootfs

import (
	"context"
	"os"
	"time"

	"github.com/containerd/errdefs"
)

// Mount is one mount as containerd's snapshotter describes it.
type Mount struct {
	Type    string
	Source  string
	Options []string
}

// RootFS is a container's root as disks. It is made by [Cache.Prepare] and has to be closed.
type RootFS struct {
	// Layers are the read-only EROFS images, uppermost first, opened read-only. They belong to the RootFS: Close closes
	// them. Whoever hands a descriptor on (to a VMM) duplicates it, and closes the RootFS only when the disk is gone
	// again, since the images are kept from garbage collection just so long. Empty for a root without any file.
	Layers []*os.File
	// Upper is the directory that containerd gave for what the container writes; "" for a read-only view. The container
	// does not write there, but to its scratch disk; files next to it are within kubelet's accounting.
	Upper string
}

// Close releases the images to garbage collection and closes them. It may be called more than once.
func (r *RootFS) Close() error { return nil }

// Cache holds the EROFS images of layers in a directory that several processes share.
type Cache struct{}

// NewCache returns the cache in dir, which is made when it is first needed.
func NewCache(dir string) *Cache { return &Cache{} }

// Prepare returns the root that the mounts describe: an overlay, a bind of one directory, or what containerd's erofs
// snapshotter hands over. Layers that have no image yet are converted, each once, also when several processes ask at
// the same time. Errors have the class errdefs.ErrInvalidArgument when the mounts or a layer can't be used,
// errdefs.ErrNotFound when a layer is missing and errdefs.ErrResourceExhausted when the disk is full; nothing is left
// behind then.
func (c *Cache) Prepare(ctx context.Context, mounts []Mount) (*RootFS, error) {
	return nil, errdefs.ErrNotImplemented
}

// Limits say what a cache may keep. Zero values mean no limit.
type Limits struct {
	// MaxBytes is the disk space that images may take together.
	MaxBytes int64
	// MaxAge is how long an image is kept after its last use.
	MaxAge time.Duration
}

// Collected says what a garbage collection did and left.
type Collected struct {
	Removed, Kept           int
	RemovedBytes, KeptBytes int64
}

// Collect removes images by age, and the least recently used until the rest is within the limits. An image that any
// process holds is never removed, nor is the work of a conversion that is going on; what a crash left is.
func (c *Cache) Collect(ctx context.Context, limits Limits) (Collected, error) {
	return Collected{}, errdefs.ErrNotImplemented
}

// CreateScratch makes a sparse file at path with an empty ext4 file system of size bytes, mode 0600, and returns it
// opened for reading and writing. An existing file is an errdefs.ErrAlreadyExists. On error nothing is left. The
// caller removes the file when the disk is gone.
func CreateScratch(ctx context.Context, path string, size int64) (*os.File, error) {
	return nil, errdefs.ErrNotImplemented
}
