//go:build root

package guestimage

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// testLog shows progress in the test's log.
type testLog struct{ *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.Log(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

// TestBuildFromPackages makes the real image, from the packages of this host's repositories, twice. This test's own program
// stands in for the agent.
func TestBuildFromPackages(t *testing.T) {
	agent, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	cache := filepath.Join(state, "packages")
	read := func(name string) []byte {
		t.Helper()
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	var images [2]Image
	for i, dir := range []string{filepath.Join(state, "a"), filepath.Join(state, "b")} {
		var progress io.Writer = testLog{t}
		if err := Build(t.Context(), Options{Dir: dir, Agent: agent, Cache: cache, Progress: progress}); err != nil {
			t.Fatal(err)
		}
		if images[i], err = Open(dir); err != nil {
			t.Fatal(err)
		}
		if err := images[i].Verify(); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{KernelFile, InitramfsFile, ManifestFile} {
		if !bytes.Equal(read(filepath.Join(images[0].Dir, name)), read(filepath.Join(images[1].Dir, name))) {
			t.Errorf("%s differs between two builds", name)
		}
	}
	m := images[0].Manifest
	if m.KernelVersion == "" || len(m.Packages) < 3 {
		t.Errorf("manifest: %+v", m)
	}
	t.Logf("modules: %v", m.Modules)
	t.Logf("libraries: %v", m.Libraries)
	entries, err := unpackInitramfs(read(images[0].Initramfs))
	if err != nil {
		t.Fatal(err)
	}
	var list string
	names := map[string]bool{}
	for _, e := range entries {
		names["/"+e.name] = true
		if e.name == "etc/modules.list" {
			list = string(e.data)
		}
	}
	for _, want := range append(strings.Fields(list), "/init", "/usr/bin/crun", "/lib64/ld-linux-x86-64.so.2", "/dev/console") {
		if !names[want] {
			t.Errorf("the initramfs lacks %s", want)
		}
	}
	if diff := cmp.Diff(len(m.Modules), len(strings.Fields(list))); diff != "" {
		t.Errorf("modules in the manifest and in the list: %s", diff)
	}
	runUnpacked(t, entries, "/usr/bin/crun", "--version")
	left, err := filepath.Glob(filepath.Join(state, ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// runUnpacked runs a program of the initramfs with nothing but the initramfs around it.
func runUnpacked(t *testing.T, entries []entry, program string, args ...string) {
	t.Helper()
	root := t.TempDir()
	for _, e := range entries {
		name := filepath.Join(root, e.name)
		var err error
		switch e.mode & unix.S_IFMT {
		case unix.S_IFDIR:
			err = os.Mkdir(name, 0o755)
		case unix.S_IFREG:
			err = os.WriteFile(name, e.data, os.FileMode(e.mode&0o777))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// crun executes a sealed copy of itself, by way of /proc.
	proc := filepath.Join(root, "proc")
	if err := unix.Mount("proc", proc, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(proc, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", program, err, out)
	}
	t.Logf("%s", out)
}
