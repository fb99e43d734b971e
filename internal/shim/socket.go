package shim

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
)

// maxSocketPath is the kernel's limit (unix(7), sun_path without its end).
const maxSocketPath = 107

// socketAddress is where the shim of a group listens: it can be computed by every start of the same group, and is different
// for each containerd on the host.
func socketAddress(dir, containerd, namespace, group string) string {
	return fmt.Sprintf("unix://%s/%x", dir, sha256.Sum256([]byte(filepath.Join(containerd, namespace, group))))
}

// listen makes the socket. When a shim answers there already, it returns nil: that one is to be used. What a dead
// shim has left is replaced.
func listen(address string) (*net.UnixListener, error) {
	path := strings.TrimPrefix(address, "unix://")
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("make the shim's socket: path %s is longer than %d bytes: %w", path, maxSocketPath, errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("make the directory of the shim's socket: %w", err)
	}
	for attempt := 0; ; attempt++ {
		l, err := listenPrivate(path)
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) || attempt == 2 {
			return l, err
		}
		if answers(address) {
			return nil, nil
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("remove the socket of a dead shim: %w", err)
		}
	}
}

// listenPrivate makes a socket that only root can connect to, from its first moment.
func listenPrivate(path string) (*net.UnixListener, error) {
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make the shim's socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // it is the shim's, which is another process
	return l, nil
}

// answers says whether somebody accepts connections at an address.
func answers(address string) bool {
	conn, err := net.DialTimeout("unix", strings.TrimPrefix(address, "unix://"), time.Second)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// removeSocket removes the socket of an address; that there is none is no error.
func removeSocket(address string) error {
	path := strings.TrimPrefix(address, "unix://")
	if path == "" {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the shim's socket: %w", err)
	}
	return nil
}
