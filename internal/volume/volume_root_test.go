//go:build root

package volume

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"bulkhead.dev/bulkhead/internal/volume/relay"
	"github.com/google/go-cmp/cmp"
	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"
)

// mounted serves exports through a real mount until the test ends, and returns the server and the mount.
func mounted(t *testing.T, exports map[string]string, readonly bool) (*Server, string) {
	t.Helper()
	s := NewServer()
	for name, source := range exports {
		must(t, s.Export(name, source, readonly))
	}
	host, guest := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- s.Serve(host) }()
	target := t.TempDir()
	session, err := relay.Mount(target, guest)
	must(t, err)
	t.Cleanup(func() {
		if err := session.Close(); err != nil {
			t.Error(err)
		}
		<-session.Done()
		if err := session.Err(); err != nil {
			t.Errorf("relay: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("server: %v", err)
		}
		nodes, handles := len(s.table.nodes), len(s.table.handles)
		s.Close()
		t.Logf("%d nodes and %d handles at the end", nodes, handles)
	})
	return s, target
}

func TestPosix(t *testing.T) {
	for name, test := range posixtest.All {
		t.Run(name, func(t *testing.T) {
			if name == "FcntlFlockLocksFile" {
				t.Skip("locks are kept by the kernel here, where those of one process never meet")
			}
			_, mnt := mounted(t, map[string]string{"dir": t.TempDir()}, false)
			test(t, filepath.Join(mnt, "dir"))
		})
	}
}

func TestOwnersModesAndTimes(t *testing.T) {
	source := t.TempDir()
	must(t, os.Chmod(source, 0o777))
	must(t, os.Mkdir(filepath.Join(source, "group"), 0o755))
	must(t, os.Chown(filepath.Join(source, "group"), 0, 4321))
	must(t, os.Chmod(filepath.Join(source, "group"), 0o777|os.ModeSetgid))
	_, mnt := mounted(t, map[string]string{"dir": source}, false)
	script := exec.Command("sh", "-euc", `umask 027; cd "$0/dir"; echo x > file; mkdir made; ln -s file link; mkfifo fifo; mkdir group/sub; echo > group/file
		chmod 4750 file; touch -d @1000000000 made`, mnt)
	script.SysProcAttr = credentials(1234, 2345)
	// The mount point lies below a directory of root's alone.
	for dir := filepath.Dir(mnt); dir != "/tmp"; dir = filepath.Dir(dir) {
		must(t, os.Chmod(dir, 0o755))
	}
	if out, err := script.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want := map[string]string{
		"file": "104750 1234 2345", "made": "40750 1234 2345", "link": "120777 1234 2345", "fifo": "10640 1234 2345",
		"group/sub": "42750 1234 4321", "group/file": "100640 1234 4321",
	}
	got := map[string]string{}
	for name := range want {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(source, name), &st))
		got[name] = fmt.Sprintf("%o %d %d", st.Mode, st.Uid, st.Gid)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("on the host (-want +got):\n%s", diff)
	}
	// A write by somebody who may not set the bit takes it away.
	write := exec.Command("sh", "-euc", `echo y >> "$0/dir/file"`, mnt)
	write.SysProcAttr = credentials(1234, 2345)
	if out, err := write.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if info, err := os.Stat(filepath.Join(source, "file")); err != nil || info.Mode()&os.ModeSetuid != 0 {
		t.Errorf("set-user-id survives a write: %v, %v", info.Mode(), err)
	}
	// Permissions are the guest kernel's to check.
	read := exec.Command("cat", filepath.Join(mnt, "dir/file"))
	read.SysProcAttr = credentials(9999, 9999)
	if err := read.Run(); err == nil {
		t.Error("a stranger may read")
	}
}

func TestLargeFileAndManyFiles(t *testing.T) {
	source := t.TempDir()
	_, mnt := mounted(t, map[string]string{"dir": source}, false)
	data := make([]byte, 1<<20)
	random := rand.NewChaCha8([32]byte{1})
	sum := sha256.New()
	f, err := os.Create(filepath.Join(mnt, "dir/large"))
	must(t, err)
	start := time.Now()
	for range 100 {
		random.Read(data)
		sum.Write(data)
		_, err := f.Write(data)
		must(t, err)
	}
	must(t, f.Close())
	wrote := time.Since(start)
	for _, path := range []string{filepath.Join(source, "large"), filepath.Join(mnt, "dir/large")} {
		start = time.Now()
		f, err := os.Open(path)
		must(t, err)
		got := sha256.New()
		_, err = io.Copy(got, f)
		must(t, err)
		f.Close()
		if !bytes.Equal(got.Sum(nil), sum.Sum(nil)) {
			t.Errorf("%s differs from what was written", path)
		}
	}
	t.Logf("100 MB written in %v, read in %v", wrote, time.Since(start))

	start = time.Now()
	must(t, os.Mkdir(filepath.Join(mnt, "dir/many"), 0o755))
	want := map[string]bool{}
	for i := range 2000 {
		name := fmt.Sprintf("file-%d", i)
		want[name] = true
		must(t, os.WriteFile(filepath.Join(mnt, "dir/many", name), []byte(name), 0o644))
	}
	entries, err := os.ReadDir(filepath.Join(mnt, "dir/many"))
	must(t, err)
	got := map[string]bool{}
	for _, e := range entries {
		got[e.Name()] = true
		b, err := os.ReadFile(filepath.Join(mnt, "dir/many", e.Name()))
		if err != nil || string(b) != e.Name() {
			t.Fatalf("%s holds %q, %v", e.Name(), b, err)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("names: %s", diff)
	}
	must(t, os.RemoveAll(filepath.Join(mnt, "dir/many")))
	t.Logf("2000 files in %v", time.Since(start))
}

func TestProgramRunsFromAnExport(t *testing.T) {
	source := t.TempDir()
	for _, name := range []string{"/bin/true", "/bin/echo"} {
		b, err := os.ReadFile(name)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(source, filepath.Base(name)), b, 0o755))
	}
	for _, readonly := range []bool{true, false} {
		_, mnt := mounted(t, map[string]string{"bin": source}, readonly)
		// By way of a shell: this process serves the file, and stands still while a child of its own is in execve.
		out, err := exec.Command("sh", "-c", `exec "$0" ran`, filepath.Join(mnt, "bin/echo")).Output()
		if err != nil || string(out) != "ran\n" {
			t.Errorf("readonly %v: %q, %v", readonly, out, err)
		}
	}
}

func TestReadonlyMount(t *testing.T) {
	source := t.TempDir()
	must(t, os.WriteFile(filepath.Join(source, "file"), []byte("x"), 0o666))
	_, mnt := mounted(t, map[string]string{"dir": source}, true)
	if b, err := os.ReadFile(filepath.Join(mnt, "dir/file")); err != nil || string(b) != "x" {
		t.Errorf("read: %q, %v", b, err)
	}
	for name, err := range map[string]error{
		"write":  os.WriteFile(filepath.Join(mnt, "dir/file"), nil, 0o666),
		"create": os.WriteFile(filepath.Join(mnt, "dir/new"), nil, 0o666),
		"remove": os.Remove(filepath.Join(mnt, "dir/file")),
		"chmod":  os.Chmod(filepath.Join(mnt, "dir/file"), 0o600),
		"root":   os.Mkdir(filepath.Join(mnt, "new"), 0o755),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestExportsComeAndGo(t *testing.T) {
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "hosts")
	must(t, os.WriteFile(file, []byte("127.0.0.1"), 0o644))
	s, mnt := mounted(t, nil, false)
	list := func() (names []string) {
		entries, err := os.ReadDir(mnt)
		must(t, err)
		for _, e := range entries {
			names = append(names, fmt.Sprint(e.Name(), e.IsDir()))
		}
		return names
	}
	if names := list(); len(names) != 0 {
		t.Errorf("listed: %v", names)
	}
	must(t, s.Export("b", dir, false))
	must(t, s.Export("a", file, true))
	if diff := cmp.Diff([]string{"afalse", "btrue"}, list()); diff != "" {
		t.Errorf("listed: %s", diff)
	}
	if b, err := os.ReadFile(filepath.Join(mnt, "a")); err != nil || string(b) != "127.0.0.1" {
		t.Errorf("file export holds %q, %v", b, err)
	}
	// What the host changes is seen after a while.
	must(t, os.WriteFile(file, []byte("127.0.0.1 and more"), 0o644))
	eventually(t, func() bool {
		b, _ := os.ReadFile(filepath.Join(mnt, "a"))
		return string(b) == "127.0.0.1 and more"
	})
	f, err := os.Create(filepath.Join(mnt, "b/open"))
	must(t, err)
	defer f.Close()
	must(t, s.Unexport("b"))
	if _, err := f.Write([]byte("x")); !errors.Is(err, unix.ESTALE) {
		t.Errorf("write to a file of a former export: %v", err)
	}
	eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(mnt, "b"))
		return errors.Is(err, os.ErrNotExist)
	})
	must(t, s.Export("b", t.TempDir(), false))
	must(t, os.WriteFile(filepath.Join(mnt, "b/new"), nil, 0o644))
}

func TestUnexportLetsTheHostUnmount(t *testing.T) {
	source := t.TempDir()
	must(t, unix.Mount("none", source, "tmpfs", 0, ""))
	s, mnt := mounted(t, map[string]string{"dir": source}, false)
	f, err := os.Create(filepath.Join(mnt, "dir/held"))
	must(t, err)
	defer f.Close()
	must(t, s.Unexport("dir"))
	if err := unix.Unmount(source, 0); err != nil {
		unix.Unmount(source, unix.MNT_DETACH)
		t.Errorf("unmount: %v", err)
	}
}

func TestConnectionEnds(t *testing.T) {
	s := NewServer()
	must(t, s.Export("dir", t.TempDir(), false))
	host, guest := net.Pipe()
	served := make(chan error, 1)
	go func() { served <- s.Serve(host) }()
	target := t.TempDir()
	session, err := relay.Mount(target, guest)
	must(t, err)
	defer session.Close()
	must(t, os.WriteFile(filepath.Join(target, "dir/file"), nil, 0o644))
	must(t, s.Close())
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	<-session.Done()
	if session.Err() == nil {
		t.Error("the relay gives no reason")
	}
	if _, err := os.Stat(filepath.Join(target, "dir/other")); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("access without a host: %v", err)
	}
	must(t, session.Close())
	must(t, session.Close())
}
