//go:build root

package rootfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead.dev/bulkhead/internal/rootfs/treetest"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// script runs a shell script in dir.
func script(t *testing.T, dir, text string) {
	t.Helper()
	cmd := exec.Command("bash", "-euc", text)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func mount(t *testing.T, kind, source, options string) string {
	t.Helper()
	target := t.TempDir()
	if out, err := exec.Command("mount", "-t", kind, "-o", options, source, target).CombinedOutput(); err != nil {
		t.Fatalf("mount %s %s: %v\n%s", kind, options, err, out)
	}
	t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
	return target
}

// shown mounts a prepared root as the guest does, and returns its tree.
func shown(t *testing.T, root *RootFS) map[string]treetest.Entry {
	t.Helper()
	var lower []string
	// Each image gets a short path: the options of a mount have to fit into a page.
	base, err := os.MkdirTemp("/tmp", "r")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(base) })
	for i, layer := range root.Layers {
		target := filepath.Join(base, fmt.Sprint(i))
		must(t, os.Mkdir(target, 0o700))
		cmd := exec.Command("mount", "-t", "erofs", "-o", "loop,ro", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), layer.Fd()), target)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("mount layer %d: %v\n%s", i, err, out)
		}
		t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
		lower = append(lower, target)
	}
	if len(lower) == 1 {
		lower = append(lower, t.TempDir())
	}
	return merged(t, lower, "")
}

// merged is the tree that an overlay of directories shows.
func merged(t *testing.T, lower []string, more string) map[string]treetest.Entry {
	t.Helper()
	tree := treetest.Read(t, overlay(t, lower, more)["merged"], true)
	// The root directory's time is that of the writable directory, which each test makes anew.
	root := tree["."]
	root.Mtime = ""
	tree["."] = root
	return tree
}

// overlay mounts an overlay, with a writable directory that is removed with the test.
func overlay(t *testing.T, lower []string, more string) map[string]string {
	t.Helper()
	base := t.TempDir()
	dirs := map[string]string{"merged": base + "/merged", "upper": base + "/upper", "work": base + "/work"}
	for _, dir := range dirs {
		must(t, os.Mkdir(dir, 0o755))
	}
	// mount(8) passes one option per layer where the kernel can, but not everywhere.
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	must(t, err)
	defer unix.Close(fd)
	for _, dir := range lower {
		must(t, unix.FsconfigSetString(fd, "lowerdir+", dir))
	}
	must(t, unix.FsconfigSetString(fd, "upperdir", dirs["upper"]))
	must(t, unix.FsconfigSetString(fd, "workdir", dirs["work"]))
	must(t, unix.FsconfigSetString(fd, "index", "off"))
	if more != "" {
		must(t, unix.FsconfigSetFlag(fd, more))
	}
	must(t, unix.FsconfigCreate(fd))
	mnt, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(mnt)
	must(t, unix.MoveMount(mnt, "", unix.AT_FDCWD, dirs["merged"], unix.MOVE_MOUNT_F_EMPTY_PATH))
	t.Cleanup(func() { unix.Unmount(dirs["merged"], unix.MNT_DETACH) })
	return dirs
}

// commit runs a script in an overlay over the layers and returns the layers with what it wrote on top, as a
// snapshotter does.
func commit(t *testing.T, lower []string, text, more string) []string {
	t.Helper()
	if len(lower) == 0 {
		dir := makeLayer(t, "")
		script(t, dir, text)
		return []string{dir}
	}
	dirs := overlay(t, lower, more)
	script(t, dirs["merged"], text)
	must(t, unix.Unmount(dirs["merged"], 0))
	return append([]string{dirs["upper"]}, lower...)
}

var layerScripts = []string{
	`mkdir -p a/b/c etc bin gone replaced kept; echo one > a/b/c/file; echo two > etc/conf; echo x > gone/file; echo y > replaced/old
	 echo z > kept/file; cp /bin/true bin/tool; ln bin/tool bin/other; ln -s tool bin/link; chmod 4755 bin/tool; chown -R 12:345 kept
	 mknod null c 1 3; mkfifo fifo; touch -d 2001-02-03T04:05:06.789 a/b/c/file; : > empty; head -c 3000000 /dev/urandom > large
	 truncate -s 40M sparse; echo end >> sparse; setcap cap_net_raw+ep bin/tool 2>/dev/null || true`,
	`rm -r gone; rm -r replaced; mkdir replaced; echo new > replaced/new; rm etc/conf; echo appended >> a/b/c/file; mv kept/file kept/moved; rm empty; mkdir empty`,
	`echo again > gone; rm a/b/c/file; mkdir a/b/c/file; chown 7:8 large; rm bin/link; ln -s other bin/link; touch "a:b" "c,d" "e f" 'g\h'`,
}

func TestStackShowsWhatOverlayShows(t *testing.T) {
	for _, more := range []string{"", "userxattr"} {
		t.Run("options "+more, func(t *testing.T) {
			if more == "userxattr" {
				t.Log("whiteouts are device nodes also there")
			}
			var lower []string
			for i, text := range layerScripts {
				if i == 1 && more == "userxattr" {
					text = strings.ReplaceAll(text, "mv kept/file kept/moved;", "")
				}
				lower = commit(t, lower, text, more)
			}
			options := []string{"lowerdir=" + strings.Join(lower, ":")}
			if more != "" {
				options = append(options, more)
			}
			root := prepare(t, NewCache(t.TempDir()), []Mount{{"overlay", "overlay", options}})
			if len(root.Layers) != 3 {
				t.Fatalf("%d layers", len(root.Layers))
			}
			want := merged(t, lower, more)
			if diff := cmp.Diff(want, shown(t, root)); diff != "" {
				t.Errorf("(-overlay +images):\n%s", diff)
			}
		})
	}
}

func TestOpaqueUserXattr(t *testing.T) {
	low, high := makeLayer(t, ""), makeLayer(t, "")
	script(t, low, "mkdir dir; touch dir/hidden")
	script(t, high, "mkdir dir; touch dir/new")
	must(t, unix.Setxattr(filepath.Join(high, "dir"), "user.overlay.opaque", []byte("y"), 0))
	for option, want := range map[string]bool{"userxattr": true, "index=off": false} {
		root := prepare(t, NewCache(t.TempDir()), []Mount{{"overlay", "overlay", []string{option, "lowerdir=" + high + ":" + low}}})
		if _, visible := shown(t, root)["dir/hidden"]; visible == want {
			t.Errorf("with %s the hidden file's visibility is %v", option, visible)
		}
	}
}

func TestHundredLayers(t *testing.T) {
	var lower []string
	for i := range 100 {
		dir := makeLayer(t, "")
		script(t, dir, fmt.Sprintf("echo %d > file%d; echo %d > common; mkdir -p dir; echo %d > dir/f%d", i, i, i, i, i))
		lower = append([]string{dir}, lower...)
	}
	root := prepare(t, NewCache(t.TempDir()), view(lower...))
	if len(root.Layers) != 100 {
		t.Fatalf("%d layers", len(root.Layers))
	}
	want := merged(t, lower, "")
	if diff := cmp.Diff(want, shown(t, root)); diff != "" {
		t.Errorf("(-overlay +images):\n%s", diff)
	}
}

func TestBlockDeviceIsRefused(t *testing.T) {
	c := NewCache(t.TempDir())
	dir := makeLayer(t, "x")
	must(t, os.Mkdir(filepath.Join(dir, "dev"), 0o755))
	must(t, unix.Mknod(filepath.Join(dir, "dev/sda"), unix.S_IFBLK|0o600, int(unix.Mkdev(8, 0))))
	_, err := c.Prepare(t.Context(), view(dir))
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(fmt.Sprint(err), `"dev/sda": block devices are refused`) {
		t.Errorf("error is %v", err)
	}
	if names := files(t, c); len(names) != 0 {
		t.Errorf("%q are left", names)
	}
	node := filepath.Join(t.TempDir(), "layer")
	must(t, unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(8, 0))))
	if _, err := c.Prepare(t.Context(), view(node)); !errdefs.IsInvalidArgument(err) || !strings.Contains(fmt.Sprint(err), "is a block device") {
		t.Errorf("as a layer: %v", err)
	}
}

func TestMountInLayerIsRefused(t *testing.T) {
	dir := makeLayer(t, "x")
	must(t, os.Mkdir(filepath.Join(dir, "mounted"), 0o755))
	must(t, unix.Mount("none", filepath.Join(dir, "mounted"), "tmpfs", 0, ""))
	t.Cleanup(func() { unix.Unmount(filepath.Join(dir, "mounted"), unix.MNT_DETACH) })
	_, err := NewCache(t.TempDir()).Prepare(t.Context(), view(dir))
	if !errdefs.IsInvalidArgument(err) || !errors.Is(err, unix.EXDEV) {
		t.Errorf("error is %v", err)
	}
}

func TestMountedImageIsUsedAsItIs(t *testing.T) {
	c := NewCache(t.TempDir())
	made := prepare(t, c, view(makeLayer(t, "x")))
	mounted := mount(t, "erofs", made.Layers[0].Name(), "loop,ro")
	again := prepare(t, c, view(mounted, makeLayer(t, "y")))
	if len(again.Layers) != 2 || !sameFile(t, again.Layers[0], made.Layers[0]) {
		t.Errorf("a mounted image was converted: %d layers", len(again.Layers))
	}
	direct := prepare(t, c, []Mount{erofsMount(made.Layers[0].Name())})
	if !sameFile(t, direct.Layers[0], made.Layers[0]) {
		t.Error("an image was copied")
	}
}

func TestDiskFull(t *testing.T) {
	small := mount(t, "tmpfs", "none", "size=1m")
	c := NewCache(filepath.Join(small, "cache"))
	layer := makeLayer(t, strings.Repeat("x", 4<<20))
	for _, mounts := range [][]Mount{view(layer), {{"bind", layer, []string{"rw"}}}} {
		if _, err := c.Prepare(t.Context(), mounts); !errdefs.IsResourceExhausted(err) || !errors.Is(err, unix.ENOSPC) {
			t.Errorf("conversion: %v", err)
		}
	}
	if names := files(t, c); len(names) != 0 {
		t.Errorf("%q are left", names)
	}
	must(t, os.WriteFile(filepath.Join(small, "filler"), make([]byte, 1<<20-16<<10), 0o600))
	path := filepath.Join(small, "scratch")
	if _, err := CreateScratch(t.Context(), path, 1<<30); !errdefs.IsResourceExhausted(err) {
		t.Errorf("scratch: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("a scratch file is left")
	}
}

func TestScratchMounts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "scratch")
	f, err := CreateScratch(t.Context(), path, 1<<30)
	must(t, err)
	defer f.Close()
	dir := mount(t, "ext4", path, "loop")
	must(t, os.WriteFile(filepath.Join(dir, "file"), make([]byte, 1<<20), 0o644))
	must(t, unix.Setxattr(filepath.Join(dir, "file"), "trusted.overlay.opaque", []byte("y"), 0))
	must(t, unix.Unmount(dir, 0))
	if out, err := exec.Command("e2fsck", "-fn", path).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}
