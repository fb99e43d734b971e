//go:build root

package durable

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWriteKeepsTheOwner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(path, []byte("old"), 0o600))
	must(t, os.Chown(path, 1234, 5678))
	must(t, Write(path, []byte("new"), 0o600))
	var stat unix.Stat_t
	must(t, unix.Stat(path, &stat))
	if stat.Uid != 1234 || stat.Gid != 5678 {
		t.Errorf("the owner is %d:%d", stat.Uid, stat.Gid)
	}
}
