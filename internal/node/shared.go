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
		"/run/containerd", shimSockets, namespaced, fifos, "/run/netns",
		filepath.Dir(networkResults), networkResults,
	}
}

// sharedByKubelets are such directories too. Other nodes' kubelets have mounts on them that the host doesn't see, and that go
// with the directory: they are for the last node to remove whose kubelet may run, see [kernel.giveBack].
func sharedByKubelets() []string { return []string{kubeletHome, containerLogs} }

// makeShared makes what is missing of shared directories.
func makeShared(dirs []string) error {
	for _, dir := range dirs {
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

// removeShared removes those of shared directories that nodes made and nothing is in any more.
func removeShared(dirs []string) {
	for _, dir := range slices.Backward(dirs) {
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
