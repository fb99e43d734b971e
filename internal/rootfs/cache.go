package rootfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"bulkhead.dev/bulkhead/internal/rootfs/erofs"
	"golang.org/x/sys/unix"
)

// Cache holds the EROFS images of layers in a directory that several processes share.
//
//	KEY.erofs   an image, complete and never changed. Whoever uses it holds a shared flock of it. Its modification
//	            time is that of its last use: when it was taken, and when it was released.
//	KEY.tmp     an image that is being written, by the holder of the lock below; otherwise what a crash left
//	.           has an exclusive flock while a collection goes on
//	KEY.lock    exists while KEY is being written, or somebody waits to do so, with an exclusive flock
//
// KEY is the layer's identity (see layer.key), in hex. A lock counts only when its file still has its name after it was
// taken, since the last holder removes the name.
type Cache struct {
	dir string
}

// NewCache returns the cache in dir, which is made when it is first needed.
func NewCache(dir string) *Cache { return &Cache{dir: dir} }

const (
	imageSuffix = ".erofs"
	tempSuffix  = ".tmp"
	lockSuffix  = ".lock"
)

func (c *Cache) path(key, suffix string) string { return filepath.Join(c.dir, key+suffix) }

// cached returns the image of a layer, which is made when there is none.
func (c *Cache) cached(ctx context.Context, l *layer, options erofs.Options) (*os.File, error) {
	key := l.key(options)
	image, err := c.use(ctx, key)
	if !errors.Is(err, os.ErrNotExist) {
		return image, err
	}
	if err := c.makeDir(); err != nil {
		return nil, err
	}
	lock, err := c.lock(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("lock of image %s: %w", key, classify(err))
	}
	defer func() {
		os.Remove(lock.Name())
		lock.Close()
	}()
	// Somebody else may have made it while we waited.
	image, err = c.use(ctx, key)
	if !errors.Is(err, os.ErrNotExist) {
		return image, err
	}
	return c.build(ctx, key, l, options)
}

func (c *Cache) makeDir() error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("layer cache: %w", classify(err))
	}
	return nil
}

// removalPatience is how long an image that somebody has locked for himself is waited for. A collection that removes it
// takes a moment. A VMM that a guest has taken over may keep the lock for ever, since its descriptor is a duplicate of ours.
const removalPatience = time.Second

// use opens an image that exists, holds it and marks it as used now. One that can't be held is as good as none: another is
// built in its place.
func (c *Cache) use(ctx context.Context, key string) (*os.File, error) {
	giveUp := time.Now().Add(removalPatience)
	for {
		image, err := os.OpenFile(c.path(key, imageSuffix), os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return nil, err
		}
		err = flock(image, unix.LOCK_SH|unix.LOCK_NB)
		if err == nil && named(image) {
			touch(image.Name())
			return image, nil
		}
		image.Close()
		switch {
		case err == nil:
			continue // collected in between
		case !errors.Is(err, unix.EWOULDBLOCK):
			return nil, err
		case time.Now().After(giveUp):
			return nil, fmt.Errorf("image %s is locked: %w", key, os.ErrNotExist)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockPause):
		}
	}
}

// touch marks an image as used now. When it can't, the image just looks older than it is.
func touch(path string) {
	now := time.Now()
	_ = os.Chtimes(path, now, now)
}

// lockPause is between two attempts at a lock: a wait in flock could not be cancelled.
const lockPause = 20 * time.Millisecond

// lock takes the right to build an image. It waits while somebody else does.
func (c *Cache) lock(ctx context.Context, key string) (*os.File, error) {
	for {
		lock, err := os.OpenFile(c.path(key, lockSuffix), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		err = flock(lock, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && named(lock) {
			return lock, nil
		}
		lock.Close()
		if err == nil {
			continue // its last holder removed it
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockPause):
		}
	}
}

// build makes an image under the lock of its key.
func (c *Cache) build(ctx context.Context, key string, l *layer, options erofs.Options) (_ *os.File, err error) {
	temp := c.path(key, tempSuffix)
	// What a crash left under that name is of no use to anybody.
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	out, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, classify(err)
	}
	defer func() {
		out.Close()
		if err != nil {
			os.Remove(temp)
		}
	}()
	if err := convert(ctx, out, l, options); err != nil {
		return nil, err
	}
	if err := out.Chmod(0o400); err != nil {
		return nil, err
	}
	image, err := reopen(out, c.path(key, imageSuffix), os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	// Held before it has its name, so that no collection comes between.
	if err := flock(image, unix.LOCK_SH); err != nil {
		image.Close()
		return nil, err
	}
	if err := os.Rename(temp, c.path(key, imageSuffix)); err != nil {
		image.Close()
		return nil, classify(err)
	}
	syncDir(c.dir)
	return image, nil
}

// temporary returns an image of a directory that may change. It has no name and goes with its last descriptor.
func (c *Cache) temporary(ctx context.Context, l *layer, options erofs.Options) (*os.File, error) {
	if err := c.makeDir(); err != nil {
		return nil, err
	}
	out, err := os.OpenFile(c.dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err != nil {
		// Not every file system has nameless files.
		if out, err = os.CreateTemp(c.dir, "writable-*"+tempSuffix); err != nil {
			return nil, classify(err)
		}
		os.Remove(out.Name())
	}
	defer out.Close()
	if err := convert(ctx, out, l, options); err != nil {
		return nil, err
	}
	return reopen(out, l.path, os.O_RDONLY)
}

// syncDir makes names in a directory last. Without it the image would just be made again after a power cut.
func syncDir(dir string) {
	if d, err := os.Open(dir); err == nil {
		_ = d.Sync()
		d.Close()
	}
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// named says whether an open file is still what its name leads to.
func named(f *os.File) bool {
	var open, name unix.Stat_t
	if unix.Fstat(int(f.Fd()), &open) != nil || unix.Lstat(f.Name(), &name) != nil {
		return false
	}
	return open.Dev == name.Dev && open.Ino == name.Ino
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

type cachedImage struct {
	key   string
	bytes int64 // of disk
	used  time.Time
}

var fileName = regexp.MustCompile(`^([0-9a-f]{40})\.(erofs|tmp|lock)$`)

// Collect removes images by age, and the least recently used until the rest is within the limits. An image that any
// process holds is never removed, nor is the work of a conversion that is going on; what a crash left is. Files that
// aren't the cache's are left alone. While another collection goes on, in whatever process, there is nothing to do: two that
// don't know of each other's removals would remove more than they have to.
func (c *Cache) Collect(ctx context.Context, limits Limits) (Collected, error) {
	dir, err := os.Open(c.dir)
	if errors.Is(err, os.ErrNotExist) {
		return Collected{}, nil
	}
	if err != nil {
		return Collected{}, fmt.Errorf("layer cache: %w", err)
	}
	defer dir.Close()
	switch err := flock(dir, unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return Collected{}, nil
	case err != nil:
		return Collected{}, fmt.Errorf("lock of layer cache: %w", err)
	}
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return Collected{}, fmt.Errorf("layer cache: %w", err)
	}
	var images []cachedImage
	var result Collected
	for _, entry := range entries {
		m := fileName.FindStringSubmatch(entry.Name())
		if m == nil {
			continue
		}
		if "."+m[2] != imageSuffix {
			c.sweep(m[1])
			continue
		}
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(c.dir, entry.Name()), &st) == nil {
			images = append(images, cachedImage{m[1], st.Blocks * 512, time.Unix(st.Mtim.Unix())})
			result.KeptBytes += st.Blocks * 512
		}
	}
	result.Kept = len(images)
	slices.SortFunc(images, func(a, b cachedImage) int { return cmp.Compare(a.used.UnixNano(), b.used.UnixNano()) })
	now := time.Now()
	for _, image := range images {
		old := limits.MaxAge > 0 && now.Sub(image.used) > limits.MaxAge
		much := limits.MaxBytes > 0 && result.KeptBytes > limits.MaxBytes
		if !old && !much {
			continue
		}
		if err := ctx.Err(); err != nil {
			return result, err
		}
		removed, err := c.remove(image.key)
		if err != nil {
			return result, fmt.Errorf("remove image %s: %w", image.key, err)
		}
		if removed {
			result.Removed, result.Kept = result.Removed+1, result.Kept-1
			result.RemovedBytes, result.KeptBytes = result.RemovedBytes+image.bytes, result.KeptBytes-image.bytes
		}
	}
	return result, nil
}

// remove removes an image unless somebody holds it.
func (c *Cache) remove(key string) (bool, error) {
	image, err := os.OpenFile(c.path(key, imageSuffix), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer image.Close()
	err = flock(image, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	if err != nil || !named(image) {
		return false, err
	}
	return true, os.Remove(image.Name())
}

// sweep removes what a crashed conversion left. One that goes on holds its lock, and is left alone.
func (c *Cache) sweep(key string) {
	lock, err := os.OpenFile(c.path(key, lockSuffix), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return
	}
	defer lock.Close()
	if flock(lock, unix.LOCK_EX|unix.LOCK_NB) != nil || !named(lock) {
		return
	}
	os.Remove(c.path(key, tempSuffix))
	os.Remove(lock.Name())
}
