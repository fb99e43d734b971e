//go:build root

package hostdir

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// role makes this test program the program that has its own directories.
const role = "BULKHEAD_HOSTDIR_TEST"

func TestMain(m *testing.M) {
	if dir := os.Getenv(role); dir != "" {
		if err := program(dir); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// program writes to the replaced directory, mounts below the shared one, says so, and waits for the end of its input.
func program(dir string) error {
	if err := Enter(); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "replaced", "file"), nil, 0o644); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", filepath.Join(dir, "shared", "volume"), "tmpfs", 0, ""); err != nil {
		return err
	}
	fmt.Println("ready", os.Getpid(), len(os.Args), os.Getenv(Variable))
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	return nil
}

func TestEnter(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"replaced", "own", "shared/volume"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// As on hosts with systemd, all mounts are shared.
	shared := filepath.Join(dir, "shared")
	for _, point := range []string{dir, shared} {
		if err := errors.Join(unix.Mount(point, point, "", unix.MS_BIND, ""), unix.Mount("", point, "", unix.MS_SHARED, "")); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(point, unix.MNT_DETACH)
	}
	cmd := exec.Command(os.Args[0], "argument")
	cmd.Env = append(os.Environ(), role+"="+dir, Variable+"="+filepath.Join(dir, "replaced")+"="+filepath.Join(dir, "own"))
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer stdin.Close()
	said, _ := bufio.NewReader(stdout).ReadString('\n')
	if want := fmt.Sprintf("ready %d 2", cmd.Process.Pid); strings.TrimSpace(said) != want {
		t.Fatalf("the program said %q, not %q", said, want)
	}
	if _, err := os.Lstat(filepath.Join(dir, "own", "file")); err != nil {
		t.Errorf("what the program wrote isn't in its own directory: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "replaced", "file")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the program wrote to the host's directory: %v", err)
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(table), filepath.Join(shared, "volume")) {
		t.Error("the host doesn't see what the program mounted")
	}
	if strings.Contains(string(table), filepath.Join(dir, "replaced")) {
		t.Error("the host sees the replaced directory")
	}
}
