package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Runtimes, clients, libraries and the kubelet have places outside of the node that can't be configured, and leave empty
// directories there. Which of them was there before any node is what the mark says: a node that finds one missing makes it,
// marked, and each node that is removed tries to remove those that are marked. The last one succeeds.
const (
	madeMark   = "trusted.bulkhead.made"
	namespaced = "/run/containerd/runc" // it has a directory for each of containerd's namespaces
)

// shared are those directories, parents first.
func shared() []string {
	return []string{
		"/run/containerd", "/run/containerd/s", namespaced, fifos, "/run/netns",
		filepath.Dir(networkResults), networkResults, kubeletHome, containerLogs,
	}
}

// makeShared makes what is missing of the shared directories.
func makeShared() error {
	for _, dir := range shared() {
		err := os.Mkdir(dir, 0o711)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		if err := unix.Lsetxattr(dir, madeMark, []byte("1"), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("mark directory %s as made here: %w", dir, err)
		}
	}
	return nil
}

// removeShared removes the shared directories that nodes made and nothing is in any more.
func removeShared() {
	for _, dir := range slices.Backward(shared()) {
		if _, err := unix.Lgetxattr(dir, madeMark, nil); err != nil {
			continue
		}
		if dir == namespaced {
			below, _ := filepath.Glob(dir + "/*") // the pattern is right, which is the only error
			for _, b := range below {
				_ = os.Remove(b)
			}
		}
		_ = os.Remove(dir) // not empty: somebody else uses it
	}
}
