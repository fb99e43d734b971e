package erofs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func openDir(t *testing.T, dir string) *os.File {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// writeImage writes the image of dir and returns its path.
func writeImage(t *testing.T, dir string, options Options) string {
	t.Helper()
	out, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := Write(t.Context(), out, openDir(t, dir), options); err != nil {
		t.Fatal(err)
	}
	return out.Name()
}

func TestWriteIsDeterministic(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"b", "a", "c"} {
		if err := os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte(name), 5000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	first, err := os.ReadFile(writeImage(t, dir, Options{}))
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(writeImage(t, dir, Options{}))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error("two images of one directory differ")
	}
}

func TestWriteCanBeCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	out, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := Write(ctx, out, openDir(t, t.TempDir()), Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

func TestStoredXattr(t *testing.T) {
	tests := []struct {
		name      string
		userXattr bool
		want      string // "" when dropped
	}{
		{"user.a", false, "user.a"},
		{"security.capability", false, "security.capability"},
		{"trusted.overlay.opaque", false, "trusted.overlay.opaque"},
		{"user.overlay.opaque", false, "user.overlay.opaque"},
		{"user.overlay.opaque", true, "trusted.overlay.opaque"},
		{"trusted.overlay.opaque", true, ""},
		{"trusted.overlay.origin", false, ""},
		{"user.overlay.origin", true, ""},
		{"system.posix_acl_access", false, "system.posix_acl_access"},
		{"system.nfs4_acl", false, ""},
		{"btrfs.compression", false, ""},
		{"user.", false, ""},
	}
	for _, tt := range tests {
		got, ok := storedXattr(tt.name, Options{UserXattr: tt.userXattr})
		if !ok {
			got = ""
		}
		if got != tt.want {
			t.Errorf("%s (userxattr %v) is stored as %q, want %q", tt.name, tt.userXattr, got, tt.want)
		}
	}
}

func TestAppendXattrBounds(t *testing.T) {
	if _, err := appendXattr(nil, "user.a", make([]byte, 1<<16)); !errors.Is(err, unix.E2BIG) {
		t.Errorf("large value: %v", err)
	}
	if _, err := appendXattr(make([]byte, maxXattrsOfInode-8), "user.a", []byte("value")); !errors.Is(err, unix.E2BIG) {
		t.Errorf("many values: %v", err)
	}
	b, err := appendXattr(nil, "trusted.name", []byte("value"))
	if want := "\x04\x04\x05\x00namevalue\x00\x00\x00"; err != nil || string(b) != want {
		t.Errorf("stored as %q, %v, want %q", b, err, want)
	}
}

func TestDirSizeIsWhatIsWritten(t *testing.T) {
	child := &inode{mode: unix.S_IFREG, offset: 4096}
	for _, count := range []int{1, 2, 15, 16, 17, 200} {
		var entries []dirent
		for i := range count {
			entries = append(entries, dirent{strings.Repeat("n", i%255+1), child})
		}
		if got, want := int64(len(appendDir(nil, entries))), dirSize(entries); got != want {
			t.Errorf("%d entries take %d bytes, dirSize says %d", count, got, want)
		}
	}
}

func TestChunkBitsFor(t *testing.T) {
	for _, size := range []int64{1 << 20, 4 << 30, 1 << 40, 1 << 53} {
		bits := chunkBitsFor(size)
		if chunks := size >> bits; chunks > maxChunks || bits-blockBits > 31 {
			t.Errorf("size %d: %d chunks of 2^%d", size, chunks, bits)
		}
	}
}

// A layer of an image is hostile: a small archive may hold very many names, attributes or targets.
func TestWriteBoundsItsMemory(t *testing.T) {
	const files = 200
	tests := []struct {
		name string
		make func(path string, i int) error
	}{
		{"hard links", func(path string, i int) error {
			if i == 0 {
				return os.WriteFile(path, nil, 0o644)
			}
			return os.Link(strings.TrimSuffix(path, fmt.Sprint(i))+"0", path)
		}},
		{"targets", func(path string, _ int) error { return os.Symlink(strings.Repeat("t", 1000), path) }},
		{"attributes", func(path string, _ int) error {
			if err := os.WriteFile(path, nil, 0o644); err != nil {
				return err
			}
			return unix.Setxattr(path, "user.a", make([]byte, 1000), 0)
		}},
		{"directories", func(path string, _ int) error { return os.Mkdir(path, 0o755) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			for i := range files {
				err := test.make(filepath.Join(dir, strings.Repeat("n", 200)+fmt.Sprint(i)), i)
				if errors.Is(err, unix.ENOTSUP) {
					t.Skip("no attributes here")
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			write := func(memory int64) error {
				out, err := os.Create(filepath.Join(t.TempDir(), "image"))
				if err != nil {
					t.Fatal(err)
				}
				defer out.Close()
				_, err = Write(t.Context(), out, openDir(t, dir), Options{memory: memory})
				return err
			}
			if err := write(files * 200); !errors.Is(err, unix.EOVERFLOW) {
				t.Errorf("error with little memory is %v", err)
			}
			if err := write(files * 2000); err != nil {
				t.Errorf("error with enough memory is %v", err)
			}
		})
	}
}

func TestPathOfADeepFile(t *testing.T) {
	e := &inode{}
	for range 2000 {
		e = &inode{dir: e, name: "d"}
	}
	if got, want := e.path(), strings.Repeat("/d", 2000)[1:]; got != want {
		t.Errorf("path is %q", got)
	}
	if n := testing.AllocsPerRun(10, func() { _ = e.path() }); n > 100 {
		t.Errorf("%v allocations: the cost grows with the square of the depth", n)
	}
	if got := (&inode{}).path(); got != "." {
		t.Errorf("path of the root is %q", got)
	}
}

func TestWriteRefusesAFileOfAbsurdSize(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "erofs") // a file system whose files may be as large
	if err != nil {
		t.Skip(err)
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "huge")
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, 1<<63-1); err != nil {
		t.Skip(err)
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := Write(t.Context(), out, openDir(t, dir), Options{}); !errors.Is(err, unix.EFBIG) {
		t.Errorf("error is %v", err)
	}
}
