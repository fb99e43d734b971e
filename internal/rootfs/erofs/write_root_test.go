//go:build root

package erofs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead.dev/bulkhead/internal/rootfs/treetest"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// mountImage mounts an image until the test ends.
func mountImage(t *testing.T, image string) string {
	t.Helper()
	target := t.TempDir()
	if out, err := exec.Command("mount", "-t", "erofs", "-o", "loop,ro", image, target).CombinedOutput(); err != nil {
		dmesg, _ := exec.Command("sh", "-c", "dmesg | grep -i erofs | tail -5").CombinedOutput()
		t.Fatalf("mount: %v\n%s%s", err, out, dmesg)
	}
	t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
	return target
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestKernelReadsEverything(t *testing.T) {
	dir := t.TempDir()
	random := rand.New(rand.NewPCG(1, 2))
	in := func(name string) string { return filepath.Join(dir, name) }
	data := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	for i, size := range []int{0, 1, 100, 2047, 2048, 2049, 4095, 4096, 4097, 8191, 8192, 70000, 1 << 20} {
		must(t, os.WriteFile(in(fmt.Sprintf("size%d", size)), data(size), 0o644))
		must(t, os.Lchown(in(fmt.Sprintf("size%d", size)), 1000*i, 70000*i))
	}
	must(t, os.Mkdir(in("many"), 0o1777))
	for i := range 3000 {
		must(t, os.WriteFile(in(fmt.Sprintf("many/%s%d", strings.Repeat("n", i%200), i)), data(i%300), 0o600))
	}
	for _, name := range []string{"!before dot", "-", "...", ".hidden", "ünïcödé", "new\nline", strings.Repeat("x", 255), "a:b,c\\d"} {
		must(t, os.WriteFile(in(name), []byte(name), 0o400))
	}
	deep := dir
	for range 120 {
		deep = filepath.Join(deep, "deep")
		must(t, os.Mkdir(deep, 0o750))
	}
	must(t, os.WriteFile(in("setuid"), []byte("s"), 0o755))
	must(t, os.Chmod(in("setuid"), 0o755|os.ModeSetuid|os.ModeSetgid))
	must(t, os.Link(in("setuid"), in("many/link")))
	must(t, os.Link(in("size2049"), in("link2")))
	for _, n := range []int{1, 100, 2000, 3900, 4095} {
		must(t, os.Symlink(strings.Repeat("t", n), in(fmt.Sprintf("symlink%d", n))))
	}
	must(t, unix.Mknod(in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(in("big-device"), unix.S_IFCHR|0o600, int(unix.Mkdev(259, 70000))))
	must(t, unix.Mknod(in("whiteout"), unix.S_IFCHR, 0))
	must(t, unix.Mkfifo(in("fifo"), 0o644))
	must(t, unix.Mknod(in("socket"), unix.S_IFSOCK|0o700, 0))
	must(t, unix.Setxattr(in("size100"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	must(t, unix.Setxattr(in("size8192"), "user.large", data(3500), 0))
	must(t, unix.Setxattr(in("many"), "trusted.overlay.opaque", []byte("y"), 0))
	must(t, unix.Setxattr(in("many"), "user.name", nil, 0))
	must(t, unix.Setxattr(dir, "user.root", []byte("1"), 0))
	if out, err := exec.Command("setfacl", "-m", "u:1234:rwx", in("size1")).CombinedOutput(); err != nil {
		t.Logf("no ACL in this run: %v %s", err, out)
	}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, in("size1"), []unix.Timespec{{}, {Sec: -5, Nsec: 7}}, 0))
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, in("symlink1"), []unix.Timespec{{}, {Sec: 1 << 33, Nsec: 999999999}}, unix.AT_SYMLINK_NOFOLLOW))

	image := writeImage(t, dir, Options{})
	if diff := cmp.Diff(treetest.Read(t, dir, false), treetest.Read(t, mountImage(t, image), false)); diff != "" {
		t.Errorf("tree (-directory +image):\n%s", diff)
	}
	if out, err := exec.Command("fsck.erofs", image).CombinedOutput(); err != nil {
		t.Errorf("fsck.erofs: %v\n%s", err, out)
	}
}

func TestKernelReadsSparseFiles(t *testing.T) {
	dir := t.TempDir()
	sparse := func(name string, size int64, at ...int64) {
		f, err := os.Create(filepath.Join(dir, name))
		must(t, err)
		defer f.Close()
		must(t, f.Truncate(size))
		for _, offset := range at {
			_, err := f.WriteAt([]byte(fmt.Sprintf("data at %d", offset)), offset)
			must(t, err)
		}
	}
	sparse("large", 6<<30+5, 0, 3<<30, 5e9, 6<<30)
	sparse("empty", 5<<30)
	sparse("end", 2<<20+1, 2<<20-9)
	sparse("small", 1<<20, 70000)
	// With holes everywhere, and data in every chunk.
	var every []int64
	for at := int64(0); at < 3<<20; at += 1 << 16 {
		every = append(every, at+9000)
	}
	sparse("every", 3<<20, every...)

	start := time.Now()
	image := writeImage(t, dir, Options{})
	t.Logf("converted in %v", time.Since(start))
	var st unix.Stat_t
	must(t, unix.Stat(image, &st))
	if st.Blocks*512 > 8<<20 {
		t.Errorf("the image takes %d bytes of disk", st.Blocks*512)
	}
	mounted := mountImage(t, image)
	samePlaces(t, filepath.Join(dir, "large"), filepath.Join(mounted, "large"), 0, 1<<30, 3<<30-100, 5e9-5000, 6<<30-5000)
	samePlaces(t, filepath.Join(dir, "empty"), filepath.Join(mounted, "empty"), 0, 5<<30-10000)
	for _, name := range []string{"end", "small", "every"} {
		if out, err := exec.Command("cmp", filepath.Join(dir, name), filepath.Join(mounted, name)).CombinedOutput(); err != nil {
			t.Errorf("%s: %v %s", name, err, out)
		}
	}
}

// samePlaces compares two files in some places, since reading gigabytes of nothing takes long.
func samePlaces(t *testing.T, want, got string, places ...int64) {
	t.Helper()
	a, err := os.Open(want)
	must(t, err)
	defer a.Close()
	b, err := os.Open(got)
	must(t, err)
	defer b.Close()
	for _, place := range places {
		var bytesOf [2][10000]byte
		an, _ := a.ReadAt(bytesOf[0][:], place)
		bn, err := b.ReadAt(bytesOf[1][:], place)
		if an != bn || bytesOf[0] != bytesOf[1] {
			t.Errorf("%s differs at %d (%d and %d bytes, %v)", got, place, an, bn, err)
		}
	}
}
