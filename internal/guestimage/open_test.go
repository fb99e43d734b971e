package guestimage

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/config"
)

func TestOpen(t *testing.T) {
	dir, c := installed(t)
	img, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if img.Kernel != filepath.Join(dir, "kernel") || img.Initramfs != filepath.Join(dir, "initramfs") || img.Manifest.Kernel != c.manifest.Kernel {
		t.Errorf("got %+v", img)
	}
	if err := img.Verify(); err != nil {
		t.Error(err)
	}
	// A copy has other time stamps, and is as good.
	now := time.Now()
	if err := os.Chtimes(img.Kernel, now, now); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err != nil {
		t.Errorf("after touching the kernel: %v", err)
	}
}

func TestOpenErrors(t *testing.T) {
	tests := []struct {
		name, want string
		spoil      func(t *testing.T, dir string) error
	}{
		{"nothing", "guest image: there is none in ", func(_ *testing.T, dir string) error { return os.RemoveAll(dir) }},
		{"kernel missing", "/kernel is missing", func(_ *testing.T, dir string) error { return os.Remove(filepath.Join(dir, "kernel")) }},
		{"initramfs missing", "/initramfs is missing", func(_ *testing.T, dir string) error { return os.Remove(filepath.Join(dir, "initramfs")) }},
		{"truncated", "/initramfs is corrupt: it has 10 bytes instead of ", func(_ *testing.T, dir string) error { return os.Truncate(filepath.Join(dir, "initramfs"), 10) }},
		{"changed", "/kernel is corrupt: its SHA-256 is ", func(_ *testing.T, dir string) error {
			return os.WriteFile(filepath.Join(dir, "kernel"), []byte("THE KERNEL"), 0o600)
		}},
		{"directory", "/kernel is no regular file", func(_ *testing.T, dir string) error {
			name := filepath.Join(dir, "kernel")
			if err := os.Remove(name); err != nil {
				return err
			}
			return os.Mkdir(name, 0o755)
		}},
		{"manifest is no JSON", "/manifest.json is corrupt: ", func(_ *testing.T, dir string) error {
			return os.WriteFile(filepath.Join(dir, "manifest.json"), []byte("{"), 0o600)
		}},
		{"manifest of a later format", "/manifest.json has format 9, and this program reads 1", func(_ *testing.T, dir string) error {
			return os.WriteFile(filepath.Join(dir, "manifest.json"), []byte(`{"format":9}`), 0o600)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir, _ := installed(t)
			if err := tt.spoil(t, dir); err != nil {
				t.Fatal(err)
			}
			_, err := Open(dir)
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tt.want) ||
				!strings.HasSuffix(err.Error(), `make it with "bulkhead guest build --dir `+dir+`"`) {
				t.Errorf("got %v\nwant …%s…", err, tt.want)
			}
		})
	}
}

// TestVerifyFindsWhatOpenTrusts: a change that keeps size and time is found by checksum only.
func TestVerifyFindsWhatOpenTrusts(t *testing.T) {
	dir, c := installed(t)
	name := filepath.Join(dir, "kernel")
	if err := os.WriteFile(name, []byte("THE KERNEL"), 0o600); err != nil {
		t.Fatal(err)
	}
	stamp := c.manifest.Kernel.stamp()
	if err := os.Chtimes(name, stamp, stamp); err != nil {
		t.Fatal(err)
	}
	img, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Verify(); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "SHA-256") {
		t.Errorf("got %v", err)
	}
}

func TestFind(t *testing.T) {
	dir, _ := installed(t)
	own := filepath.Join(t.TempDir(), "own")
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(own, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := func(kernel, initramfs string) config.Config {
		c := config.Config{StateDir: filepath.Dir(dir)}
		c.Guest.Kernel, c.Guest.Initramfs = kernel, initramfs
		return c
	}
	builtKernel, builtInitramfs := filepath.Join(dir, "kernel"), filepath.Join(dir, "initramfs")
	if img, err := Find(cfg(builtKernel, builtInitramfs)); err != nil || img.Dir != dir {
		t.Errorf("the built one: %+v, %v", img, err)
	}
	if img, err := Find(cfg(own, builtInitramfs)); err != nil || img.Kernel != own || img.Dir != "" {
		t.Errorf("own kernel: %+v, %v", img, err)
	}
	for name, c := range map[string]config.Config{
		"own kernel missing":  cfg(own+"x", own),
		"own initramfs empty": cfg(own, empty),
		"directory":           cfg(filepath.Dir(own), own),
	} {
		if _, err := Find(c); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "guest.") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
