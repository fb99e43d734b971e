package kms

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxSocketPath is what sockaddr_un takes.
const maxSocketPath = 107

// socketPath returns the path of an endpoint such as unix:///run/kms.sock, which is how the API server writes it.
func socketPath(endpoint string) (string, error) {
	if endpoint == "" {
		return "", errors.New("--listen is missing: give unix:///PATH")
	}
	u, err := url.Parse(endpoint)
	if err != nil {
		return "", fmt.Errorf("--listen %q: %w", endpoint, err)
	}
	if u.Scheme != "unix" || u.Host != "" || !filepath.IsAbs(u.Path) || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("--listen %q: it must be unix:///PATH", endpoint)
	}
	if len(u.Path) > maxSocketPath {
		return "", fmt.Errorf("--listen %q: the path has %d bytes, a socket's has at most %d", endpoint, len(u.Path), maxSocketPath)
	}
	return u.Path, nil
}

// socket is a listening Unix socket and the lock that says that its path is taken.
type socket struct {
	net.Listener
	lock *os.File
}

// Close closes the socket, removes its file, and gives the path free.
func (s *socket) Close() error {
	err := s.Listener.Close()
	s.lock.Close()
	return err
}

// listenUnix listens on a path, with mode 0600. What a service that died has left there is replaced; a path that one listens on,
// or that isn't a socket, is an error. PATH.lock stays: removing it would let two services hold locks on two files.
func listenUnix(path string) (_ *socket, err error) {
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("listen on %s: another service holds %s: %w", path, lock.Name(), err)
	}
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	// The mode must be right from the first moment, not after a chmod.
	mask := unix.Umask(0o177)
	listener, err := net.Listen("unix", path)
	unix.Umask(mask)
	if err != nil {
		return nil, err // it names the path
	}
	return &socket{listener, lock}, nil
}

// removeStale removes a socket that nobody listens on.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("there is something that isn't a socket")
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
		return errors.New("another program listens there")
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}
