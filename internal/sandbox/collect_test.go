package sandbox

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead.dev/bulkhead/internal/rootfs"
)

// withCache gives the world the real layer cache in dir.
func (w *world) withCache(dir string) *rootfs.Cache {
	w.deps.Cache = rootfs.NewCache(dir)
	w.collect = w.deps.Cache.Collect
	return w.deps.Cache
}

// runLayer starts a sandbox with a container whose root is one layer, and returns the layer's image in the cache.
func (w *world) runLayer(layer string) (*Sandbox, string) {
	w.t.Helper()
	h := w.host()
	var image string
	h.prepare = func(ctx context.Context, mounts []rootfs.Mount) (*rootfs.RootFS, error) {
		root, err := w.deps.Cache.Prepare(ctx, mounts)
		if err == nil {
			image = root.Layers[0].Name()
		}
		return root, err
	}
	s, err := start(w.t.Context(), w.deps, w.spec, h)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { s.Stop(context.Background()) })
	c := w.container("one", "sleep")
	c.RootFS = []rootfs.Mount{{Type: "overlay", Options: []string{"lowerdir=" + layer, "upperdir=" + w.upper("one")}}}
	if _, err := s.CreateContainer(w.t.Context(), c); err != nil {
		w.t.Fatal(err)
	}
	return s, image
}

func makeLayer(t *testing.T, content string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "fs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Stat(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

// TestStopCollectsLayers stops one of two sandboxes on a node whose limits nothing fits.
func TestStopCollectsLayers(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "layers")
	one, other := newWorld(t), newWorld(t)
	for _, w := range []*world{one, other} {
		w.withCache(cache)
		w.deps.Config.Layers.MaxSize = 1
	}
	s, own := one.runLayer(makeLayer(t, "one"))
	another, held := other.runLayer(makeLayer(t, "other"))
	for range 2 {
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if exists(t, own) {
		t.Error("an image over the limit that nobody uses is kept")
	}
	if !exists(t, held) {
		t.Error("an image that another sandbox uses is removed")
	}
	if err := another.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exists(t, held) {
		t.Error("the other's image is kept after its Stop")
	}
}

// TestStopKeepsLayers stops a sandbox that ran for longer than layers are kept: its own were used until now.
func TestStopKeepsLayers(t *testing.T) {
	w := newWorld(t)
	cache := w.withCache(filepath.Join(t.TempDir(), "layers"))
	unused, err := cache.Prepare(t.Context(), []rootfs.Mount{{Type: "overlay", Options: []string{"lowerdir=" + makeLayer(t, "unused")}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := unused.Close(); err != nil {
		t.Fatal(err)
	}
	s, own := w.runLayer(makeLayer(t, "own"))
	long := time.Now().Add(-2 * w.deps.Config.Layers.MaxAge)
	for _, image := range []string{unused.Layers[0].Name(), own} {
		if err := os.Chtimes(image, long, long); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exists(t, unused.Layers[0].Name()) {
		t.Error("an old image is kept")
	}
	if !exists(t, own) {
		t.Error("an image that was in use until now is removed")
	}
}

func TestStopOutlivesCollection(t *testing.T) {
	w := newWorld(t)
	var log bytes.Buffer
	w.deps.Logger = slog.New(slog.NewTextHandler(&log, nil))
	collections := 0
	w.collect = func(ctx context.Context, limits rootfs.Limits) (rootfs.Collected, error) {
		collections++
		deadline, ok := ctx.Deadline()
		if left := time.Until(deadline); !ok || left > collectTimeout {
			t.Errorf("a collection may take %v", left)
		}
		if want := (rootfs.Limits{MaxBytes: 20 << 30, MaxAge: 720 * time.Hour}); limits != want {
			t.Errorf("limits %+v, want %+v", limits, want)
		}
		w.checkClean() // all that is the sandbox's went first
		return rootfs.Collected{Removed: 1}, errRefused
	}
	s := w.start()
	if err := s.Stop(t.Context()); err != nil {
		t.Errorf("Stop: %v", err)
	}
	if collections != 1 || !strings.Contains(log.String(), "not collected") || !strings.Contains(log.String(), "removed=1") {
		t.Errorf("%d collections, log %q", collections, &log)
	}
}
