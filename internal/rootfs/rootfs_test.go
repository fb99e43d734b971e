package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"bulkhead.dev/bulkhead/internal/rootfs/erofs"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// makeLayer makes a layer with one file.
func makeLayer(t testing.TB, content string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "fs")
	must(t, os.Mkdir(dir, 0o755))
	if content != "" {
		must(t, os.WriteFile(filepath.Join(dir, "file"), []byte(content), 0o644))
	}
	return dir
}

func view(lower ...string) []Mount {
	return []Mount{{"overlay", "overlay", []string{"lowerdir=" + strings.Join(lower, ":")}}}
}

func prepare(t testing.TB, c *Cache, mounts []Mount) *RootFS {
	t.Helper()
	root, err := c.Prepare(t.Context(), mounts)
	must(t, err)
	t.Cleanup(func() { root.Close() })
	return root
}

// files are the names in a cache's directory.
func files(t testing.TB, c *Cache) []string {
	t.Helper()
	entries, err := os.ReadDir(c.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func sameFile(t testing.TB, a, b *os.File) bool {
	t.Helper()
	ai, err := a.Stat()
	must(t, err)
	bi, err := b.Stat()
	must(t, err)
	return os.SameFile(ai, bi)
}

func TestPrepareConvertsOnce(t *testing.T) {
	c := NewCache(filepath.Join(t.TempDir(), "new", "cache"))
	layer := makeLayer(t, "x")
	var wait sync.WaitGroup
	roots := make([]*RootFS, 8)
	for i := range roots {
		wait.Go(func() {
			root, err := NewCache(c.dir).Prepare(t.Context(), view(layer))
			if err != nil {
				t.Error(err)
				return
			}
			roots[i] = root
		})
	}
	wait.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, root := range roots {
		defer root.Close()
		if !sameFile(t, root.Layers[0], roots[0].Layers[0]) {
			t.Error("a layer has two images")
		}
	}
	if names := files(t, c); len(names) != 1 {
		t.Errorf("cache holds %q", names)
	}
	if _, err := roots[0].Layers[0].Write([]byte("x")); err == nil {
		t.Error("the image can be written")
	}
}

func TestPrepareSeesAReusedPath(t *testing.T) {
	c := NewCache(t.TempDir())
	layer := makeLayer(t, "first")
	first := prepare(t, c, view(layer))
	must(t, os.RemoveAll(layer))
	must(t, os.Mkdir(layer, 0o755))
	must(t, os.WriteFile(filepath.Join(layer, "file"), []byte("other"), 0o644))
	second := prepare(t, c, view(layer))
	if sameFile(t, first.Layers[0], second.Layers[0]) {
		t.Fatal("a stale image is served")
	}
	if b, err := io.ReadAll(second.Layers[0]); err != nil || !strings.Contains(string(b), "other") {
		t.Errorf("image does not hold the new content (%v)", err)
	}
}

func TestPrepareSkipsEmptyLayers(t *testing.T) {
	c := NewCache(t.TempDir())
	empty, full := makeLayer(t, ""), makeLayer(t, "x")
	other := makeLayer(t, "")
	must(t, os.Chmod(other, 0o700))
	tests := []struct {
		name   string
		mounts []Mount
		want   int
	}{
		{"in the middle", view(full, empty, full), 2},
		{"on top", view(empty, full), 1},
		{"only", []Mount{{"bind", empty, []string{"ro"}}}, 1},
		{"all", view(empty, empty), 1},
		{"another mode", view(other, full), 2},
		{"unused writable directory", []Mount{{"overlay", "overlay", []string{"upperdir=" + other, "lowerdir=" + full}}}, 1},
		{"used writable directory", []Mount{{"overlay", "overlay", []string{"upperdir=" + full, "lowerdir=" + full}}}, 2},
		{"nothing but a writable directory", []Mount{{"bind", empty, []string{"rw"}}}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := len(prepare(t, c, tt.mounts).Layers); got != tt.want {
				t.Errorf("%d layers, want %d", got, tt.want)
			}
		})
	}
}

func TestPrepareDoesNotCacheTheWritableDirectory(t *testing.T) {
	c := NewCache(t.TempDir())
	upper := makeLayer(t, "before")
	mounts := []Mount{{"bind", upper, []string{"rw", "rbind"}}}
	first := prepare(t, c, mounts)
	if first.Upper != upper {
		t.Errorf("Upper is %q, want %q", first.Upper, upper)
	}
	must(t, os.WriteFile(filepath.Join(upper, "file"), []byte("after!"), 0o644))
	second := prepare(t, c, mounts)
	if b, err := io.ReadAll(second.Layers[0]); err != nil || !strings.Contains(string(b), "after!") {
		t.Errorf("image does not hold the new content (%v)", err)
	}
	if names := files(t, c); len(names) != 0 {
		t.Errorf("cache holds %q", names)
	}
}

func TestPrepareRefuses(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.WriteFile(in("file"), nil, 0o644))
	must(t, os.Symlink(makeLayer(t, "x"), in("link")))
	must(t, unix.Mkfifo(in("pipe"), 0o644))
	must(t, os.WriteFile(in("garbage"), make([]byte, 8192), 0o644))
	tests := []struct {
		name, says string
		mounts     []Mount
		is         func(error) bool
	}{
		{"a file", "is a file, not a plain directory", view(in("file")), errdefs.IsInvalidArgument},
		{"a link", "is a symbolic link", view(in("link")), errdefs.IsInvalidArgument},
		{"a pipe", "is a pipe", view(in("pipe")), errdefs.IsInvalidArgument},
		{"a device", "is a character device", view("/dev/null"), errdefs.IsInvalidArgument},
		{"missing", in("missing"), view(in("missing")), errdefs.IsNotFound},
		{"garbage as image", "not an EROFS image", []Mount{erofsMount(in("garbage"))}, errdefs.IsInvalidArgument},
		{"empty file as image", "not an EROFS image", []Mount{erofsMount(in("file"))}, errdefs.IsInvalidArgument},
		{"device as image", "not a plain file", []Mount{erofsMount("/dev/null")}, errdefs.IsInvalidArgument},
		{"link as image", in("link"), []Mount{erofsMount(in("link"))}, errdefs.IsInvalidArgument},
		{"missing image", in("missing"), []Mount{erofsMount(in("missing"))}, errdefs.IsNotFound},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := NewCache(t.TempDir())
			_, err := c.Prepare(t.Context(), tt.mounts)
			if !tt.is(err) || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("error is %v, should say %q", err, tt.says)
			}
			if names := files(t, c); len(names) != 0 {
				t.Errorf("%q are left", names)
			}
		})
	}
}

func TestPrepareCancelled(t *testing.T) {
	c := NewCache(t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Prepare(ctx, view(makeLayer(t, "x"))); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	if names := files(t, c); len(names) != 0 {
		t.Errorf("%q are left", names)
	}
}

// keyOf returns the cache's key of a layer.
func keyOf(t testing.TB, dir string) string {
	t.Helper()
	l, err := openLayer(source{path: dir})
	must(t, err)
	defer l.close()
	return l.key(erofs.Options{})
}

func TestPrepareAfterACrash(t *testing.T) {
	c := NewCache(t.TempDir())
	layer := makeLayer(t, "x")
	must(t, os.WriteFile(c.path(keyOf(t, layer), tempSuffix), []byte("half an image"), 0o600))
	must(t, os.WriteFile(c.path(keyOf(t, layer), lockSuffix), nil, 0o600))
	prepare(t, c, view(layer))
	if names := files(t, c); len(names) != 1 {
		t.Errorf("cache holds %q", names)
	}
}

func TestPrepareWaitsForAnotherConversion(t *testing.T) {
	c := NewCache(t.TempDir())
	layer := makeLayer(t, "x")
	lock, err := c.lock(t.Context(), keyOf(t, layer))
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Prepare(ctx, view(layer)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
	done := make(chan error, 1)
	go func() {
		root, err := c.Prepare(t.Context(), view(layer))
		if err == nil {
			root.Close()
		}
		done <- err
	}()
	lock.Close() // as when its holder dies
	must(t, <-done)
}

// A VMM shares the lock of its images' descriptors with us. One that was taken over must not hold up other pods.
func TestPrepareBesideAnImageThatStaysLocked(t *testing.T) {
	c := NewCache(t.TempDir())
	layer := makeLayer(t, "content")
	hostile := prepare(t, c, view(layer))
	must(t, flock(hostile.Layers[0], unix.LOCK_EX))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	root, err := c.Prepare(ctx, view(layer))
	must(t, err)
	defer root.Close()
	if sameFile(t, root.Layers[0], hostile.Layers[0]) {
		t.Error("the image that is locked is used")
	}
	if again := prepare(t, c, view(layer)); !sameFile(t, root.Layers[0], again.Layers[0]) {
		t.Error("the new image is not used")
	}
}

func TestCollect(t *testing.T) {
	c := NewCache(t.TempDir())
	var layers []string
	for i := range 4 {
		layers = append(layers, makeLayer(t, fmt.Sprint(i)))
	}
	held, err := c.Prepare(t.Context(), view(layers[0]))
	must(t, err)
	for i, layer := range layers[1:] {
		root, err := c.Prepare(t.Context(), view(layer))
		must(t, err)
		must(t, root.Close())
		used := time.Now().Add(time.Duration(i-10) * time.Hour)
		must(t, os.Chtimes(root.Layers[0].Name(), used, used))
	}
	must(t, os.WriteFile(filepath.Join(c.dir, "README"), nil, 0o600))
	must(t, os.WriteFile(c.path(strings.Repeat("ab", 20), tempSuffix), nil, 0o600))

	image := func(layer string) bool {
		_, err := os.Stat(c.path(keyOf(t, layer), imageSuffix))
		return err == nil
	}
	got, err := c.Collect(t.Context(), Limits{})
	must(t, err)
	if got.Removed != 0 || got.Kept != 4 {
		t.Errorf("without limits: %+v", got)
	}
	got, err = c.Collect(t.Context(), Limits{MaxBytes: got.KeptBytes - 1})
	must(t, err)
	if got.Removed != 1 || image(layers[1]) || !image(layers[2]) {
		t.Errorf("the least recently used image is kept: %+v", got)
	}
	got, err = c.Collect(t.Context(), Limits{MaxAge: 8*time.Hour + 30*time.Minute})
	must(t, err)
	if got.Removed != 1 || image(layers[2]) || !image(layers[3]) {
		t.Errorf("the old image is kept: %+v", got)
	}
	got, err = c.Collect(t.Context(), Limits{MaxBytes: 1})
	must(t, err)
	if got.Removed != 1 || got.Kept != 1 || !image(layers[0]) {
		t.Errorf("what is held is removed: %+v", got)
	}
	must(t, held.Close())
	must(t, held.Close())
	if got, err = c.Collect(t.Context(), Limits{MaxBytes: 1}); err != nil || got.Kept != 0 || got.KeptBytes != 0 {
		t.Errorf("what is no longer held is kept: %+v, %v", got, err)
	}
	if names := files(t, c); len(names) != 1 || names[0] != "README" {
		t.Errorf("cache holds %q", names)
	}
}

// TestCollectTogether has many collections at once: they remove no more than one alone would.
func TestCollectTogether(t *testing.T) {
	c := NewCache(t.TempDir())
	const images = 64
	for i := range images {
		root, err := c.Prepare(t.Context(), view(makeLayer(t, fmt.Sprint(i))))
		must(t, err)
		must(t, root.Close())
	}
	all, err := c.Collect(t.Context(), Limits{})
	must(t, err)
	var wait sync.WaitGroup
	start := make(chan struct{})
	for range 8 {
		wait.Go(func() {
			<-start
			if _, err := NewCache(c.dir).Collect(t.Context(), Limits{MaxBytes: all.KeptBytes / 2}); err != nil {
				t.Error(err)
			}
		})
	}
	close(start)
	wait.Wait()
	if left := len(files(t, c)); left != images/2 {
		t.Errorf("%d of %d images are left, want half", left, images)
	}
}

// TestReleaseIsUse releases an image that was taken long ago: it is not an old one.
func TestReleaseIsUse(t *testing.T) {
	c := NewCache(t.TempDir())
	root := prepare(t, c, view(makeLayer(t, "x")))
	taken := time.Now().Add(-48 * time.Hour)
	must(t, os.Chtimes(root.Layers[0].Name(), taken, taken))
	must(t, root.Close())
	if got, err := c.Collect(t.Context(), Limits{MaxAge: 24 * time.Hour}); err != nil || got.Kept != 1 {
		t.Errorf("what was in use until now is too old: %+v, %v", got, err)
	}
}

func TestCollectBesidePrepare(t *testing.T) {
	c := NewCache(t.TempDir())
	layer := makeLayer(t, "x")
	var wait sync.WaitGroup
	stop := make(chan struct{})
	wait.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := c.Collect(t.Context(), Limits{MaxBytes: 1}); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 100 {
		root, err := c.Prepare(t.Context(), view(layer))
		must(t, err)
		if !named(root.Layers[0]) {
			t.Fatal("an image in use was removed")
		}
		root.Close()
	}
	close(stop)
	wait.Wait()
}

func TestCreateScratch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "scratch")
	start := time.Now()
	f, err := CreateScratch(t.Context(), path, 10<<30+1)
	must(t, err)
	defer f.Close()
	t.Logf("made in %v", time.Since(start))
	var st unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &st))
	if st.Size != 10<<30 || st.Mode&0o777 != 0o600 || st.Blocks*512 > 2<<20 {
		t.Errorf("size %d, mode %o, %d bytes of disk", st.Size, st.Mode, st.Blocks*512)
	}
	if _, err := CreateScratch(t.Context(), path, 10<<30); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second time: %v", err)
	}
	for _, size := range []int64{-1, 0, MinScratch - 1, MaxScratch + 1} {
		if _, err := CreateScratch(t.Context(), path+"2", size); !errdefs.IsInvalidArgument(err) {
			t.Errorf("size %d: %v", size, err)
		}
	}
	for _, size := range []int64{MinScratch, 64 << 20} {
		f, err := CreateScratch(t.Context(), fmt.Sprint(path, size), size)
		must(t, err)
		f.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := CreateScratch(ctx, path+"3", 1<<30); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := os.Stat(path + "3"); !errors.Is(err, os.ErrNotExist) {
		t.Error("a file is left")
	}
}
