//go:build root

package provisioner

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDeleteMounted keeps what is mounted beneath a volume, as a privileged pod can do it.
func TestDeleteMounted(t *testing.T) {
	l := nodes(t)
	volume := provision(t, l)
	precious := t.TempDir()
	file := filepath.Join(precious, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(volume.Spec.Local.Path, "mount")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(precious, at, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(at, unix.MNT_DETACH)
	if err := l.Delete(t.Context(), volume); err == nil || !strings.Contains(err.Error(), at) {
		t.Errorf("Delete: %v", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	if err := l.Delete(t.Context(), volume); err != nil {
		t.Error(err)
	}
}
