//go:build root

package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	guestapi "bulkhead.dev/bulkhead/api/guest"
)

// inMountNS gives the test a mount namespace of its own, with a tmpfs to work in.
func inMountNS(t *testing.T) string {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "g") // short: the options of 100 layers must fit in a page
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		unix.Unmount(dir, unix.MNT_DETACH)
		os.Remove(dir)
	})
	return dir
}

func mkdir(t *testing.T, path string) string {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func TestOverlayOfManyLayers(t *testing.T) {
	dir := inMountNS(t)
	var lower []string
	for i := range 100 {
		l := mkdir(t, filepath.Join(dir, fmt.Sprint(i)))
		write(t, filepath.Join(l, fmt.Sprintf("file%d", i)), "x")
		write(t, filepath.Join(l, "top"), fmt.Sprint(i))
		lower = append(lower, l)
	}
	// The root of the image decides mode and owner of the container's.
	if err := errors.Join(os.Chown(lower[0], 7, 8), os.Chmod(lower[0], 0o711)); err != nil {
		t.Fatal(err)
	}
	upper, work, target := filepath.Join(dir, "upper"), filepath.Join(dir, "work"), mkdir(t, filepath.Join(dir, "target"))
	for range 2 { // a scratch disk may be used again after a failure
		if err := makeUpper(upper, work, lower[0]); err != nil {
			t.Fatal(err)
		}
		if err := mountOverlay(target, lower, upper, work); err != nil {
			t.Fatal(err)
		}
		if got := read(filepath.Join(target, "top")); got != "0" {
			t.Errorf("top = %q", got)
		}
		if got := read(filepath.Join(target, "file99")); got != "x" {
			t.Errorf("file99 = %q", got)
		}
		var st unix.Stat_t
		if err := unix.Stat(target, &st); err != nil || st.Uid != 7 || st.Gid != 8 || st.Mode&0o777 != 0o711 {
			t.Errorf("root is %d:%d %o, %v", st.Uid, st.Gid, st.Mode, err)
		}
		if err := unmount(target); err != nil {
			t.Fatal(err)
		}
		mkdir(t, target)
	}
}

func TestOverlayOfTooManyLayers(t *testing.T) {
	var lower []string
	for i := range 500 {
		lower = append(lower, fmt.Sprintf("/layers/%06d", i))
	}
	if err := mountOverlay("/nowhere", lower, "/u", "/w"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("mountOverlay = %v", err)
	}
}

func TestRootFromVolume(t *testing.T) {
	dir := inMountNS(t)
	volumes := mkdir(t, filepath.Join(dir, "volumes"))
	write(t, filepath.Join(mkdir(t, filepath.Join(volumes, "root", "sub", "deep")), "file"), "x")
	write(t, filepath.Join(dir, "secret"), "s")
	if err := os.Symlink("../../../secret", filepath.Join(volumes, "root", "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/sub", filepath.Join(volumes, "root", "in")); err != nil {
		t.Fatal(err)
	}
	a := &assembler{volumes: volumes}
	for sub, want := range map[string]string{"": "sub/deep/file", "sub": "deep/file", "/sub/deep": "file", "in/deep": "file", "../../sub": "deep/file"} {
		c := mkdir(t, filepath.Join(dir, "c"))
		r, err := a.assemble(c, &guestapi.RootFS{Volume: "root", Subdirectory: sub})
		if err != nil {
			t.Fatalf("%q: %v", sub, err)
		}
		if got := read(filepath.Join(r.path, want)); got != "x" {
			t.Errorf("%q: %s = %q", sub, want, got)
		}
		if err := r.undo.run(); err != nil {
			t.Errorf("%q: %v", sub, err)
		}
		if left, _ := os.ReadDir(c); len(left) != 0 {
			t.Errorf("%q: left %v", sub, left)
		}
	}
	for name, want := range map[string]*guestapi.RootFS{
		"no such directory": {Volume: "root", Subdirectory: "none"},
		"link out":          {Volume: "root", Subdirectory: "out"},
		"no such volume":    {Volume: "none"},
		"way out":           {Volume: "../secret"},
		"nothing":           {},
		"both":              {Volume: "root", Layers: []*guestapi.Disk{{Address: "scsi:1"}}},
	} {
		c := mkdir(t, filepath.Join(dir, "c"))
		if _, err := a.assemble(c, want); err == nil {
			t.Errorf("%s: no error", name)
		}
		if left, _ := os.ReadDir(c); len(left) != 0 {
			t.Errorf("%s: left %v", name, left)
		}
	}
}

func TestMounts(t *testing.T) {
	dir := inMountNS(t)
	volumes := mkdir(t, filepath.Join(dir, "volumes"))
	write(t, filepath.Join(volumes, "resolv.conf"), "nameserver")
	write(t, filepath.Join(mkdir(t, filepath.Join(volumes, "data")), "a"), "x")
	write(t, filepath.Join(dir, "secret"), "s")
	if err := os.Symlink("../secret", filepath.Join(volumes, "link")); err != nil {
		t.Fatal(err)
	}
	m := newMounts(mkdir(t, filepath.Join(dir, "mounts")), volumes)
	add := func(want *guestapi.Mount) {
		t.Helper()
		if err := m.add(want); err != nil {
			t.Fatal(err)
		}
	}
	data := &guestapi.Mount{Name: "data", Type: "volume", Source: "data", Options: []string{"ro", "nosuid"}}
	add(data)
	add(data) // a second container
	add(&guestapi.Mount{Name: "file", Type: "volume", Source: "resolv.conf"})
	add(&guestapi.Mount{Name: "tmp", Type: "tmpfs", Options: []string{"size=64k", "mode=0700"}})
	add(&guestapi.Mount{Name: "shm", Type: "shm"})

	if got := read(filepath.Join(m.dir, "data/a")); got != "x" {
		t.Errorf("data/a = %q", got)
	}
	if err := os.WriteFile(filepath.Join(m.dir, "data/a"), nil, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to a read-only mount: %v", err)
	}
	if got := read(filepath.Join(m.dir, "file")); got != "nameserver" {
		t.Errorf("file = %q", got)
	}
	if err := os.WriteFile(filepath.Join(m.dir, "tmp/big"), make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("writing more than the size: %v", err)
	}
	for name, bad := range map[string]*guestapi.Mount{
		"name":            {Name: "../x", Type: "tmpfs"},
		"type":            {Name: "x", Type: "bind", Source: "/"},
		"option":          {Name: "x", Type: "tmpfs", Options: []string{"mpol=bind"}},
		"volume's option": {Name: "x", Type: "volume", Source: "data", Options: []string{"size=1"}},
		"symbolic link":   {Name: "x", Type: "volume", Source: "link/.."},
		"same name":       {Name: "data", Type: "tmpfs"},
		"no such volume":  {Name: "x", Type: "volume", Source: "none"},
	} {
		if err := m.add(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for _, name := range []string{"data", "file", "tmp", "shm"} {
		if err := m.remove(name); err != nil {
			t.Error(err)
		}
	}
	if got := read(filepath.Join(m.dir, "data/a")); got != "x" {
		t.Errorf("the other container's mount is gone: %q", got)
	}
	if err := m.remove("data"); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(m.dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
