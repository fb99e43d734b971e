package node

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// What a kubelet has on the host whatever it is configured to: sockets for device plugins, and links to the logs of all
// containers.
const (
	kubeletHome   = "/var/lib/kubelet"
	containerLogs = "/var/log/containers"
)

// KubeletDir is the root directory for the node's kubelet. Its sockets are in it, so it is a link to DIR/kubelet where that
// would be too long for them.
func (n *Node) KubeletDir() string {
	if dir := n.kubeletDir(); len(dir)+len("/pod-resources/kubelet.sock") <= maxSocketPath {
		return dir
	}
	return filepath.Join(n.sockets, "kubelet")
}

func (n *Node) kubeletDir() string { return n.path("kubelet") }

// KubeletEnv is what the kubelet's environment must have. It marks the kubelet as the node's, and tells bulkhead-kube (kube/internal/hostdir) to put directories of
// the node in the place of those that the kubelet would have in common with all on the host.
func (n *Node) KubeletEnv() []string {
	return []string{
		environment + "=" + n.dir,
		fmt.Sprintf("BULKHEAD_BINDS=%s=%s,%s=%s", kubeletHome, n.ownHome(), containerLogs, n.ownLogs()),
	}
}

func (n *Node) ownHome() string { return n.path("kubelet-home") }
func (n *Node) ownLogs() string { return n.path("kubelet-logs") }

// prepareKubelet makes the kubelet's directories. It has a mount namespace of its own, and containerd mounts the volumes that
// the kubelet has mounted into containers: so its root directory is a shared mount.
func (n *Node) prepareKubelet() error {
	if err := makeShared(sharedByKubelets()); err != nil {
		return err
	}
	dir := n.kubeletDir()
	for _, d := range []string{dir, n.ownHome(), n.ownLogs()} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return err
		}
	}
	if link := n.KubeletDir(); link != dir {
		if target, err := os.Readlink(link); err != nil || target != dir {
			if err := os.Symlink(dir, link); err != nil {
				return err
			}
		}
	}
	if mounted, err := n.mounted(); err != nil || slices.Contains(mounted, dir) {
		return err
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s on itself: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make the mount %s shared: %w", dir, err)
	}
	return nil
}
