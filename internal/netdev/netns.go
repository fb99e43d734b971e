package netdev

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// errNoNetNS says that there is no network namespace at a path, or no longer.
var errNoNetNS = fmt.Errorf("there is no network namespace: %w", errdefs.ErrNotFound)

// inNetNS calls f on a thread that is in the network namespace, with a netlink handle of that namespace.
func inNetNS(path string, f func(*netlink.Handle) error) error {
	target, err := openNetNS(path)
	if err != nil {
		return err
	}
	defer target.Close()

	result := make(chan error, 1)
	go func() { result <- onThread(target, f) }()
	return <-result
}

// onThread runs in a goroutine of its own. If its thread can't come home, it stays locked, and dies with the goroutine.
func onThread(target *os.File, f func(*netlink.Handle) error) error {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the own network namespace: %w", err)
	}
	defer home.Close()
	if same, err := sameFile(home, target); err != nil || same {
		runtime.UnlockOSThread()
		if err == nil {
			err = fmt.Errorf("it is the host's own network: a VM would take all of its traffic: %w", errdefs.ErrInvalidArgument)
		}
		return err
	}
	if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter it: %w", err)
	}

	err = withHandle(f)
	if homeErr := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); homeErr != nil {
		return errors.Join(err, fmt.Errorf("leave it: %w", homeErr))
	}
	runtime.UnlockOSThread()
	return err
}

func withHandle(f func(*netlink.Handle) error) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	return f(h)
}

// openNetNS opens the file that stands for a network namespace. A file that once did (the mount of a deleted namespace
// leaves an empty regular file) counts as none.
func openNetNS(path string) (*os.File, error) {
	file, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, errNoNetNS
	}
	if err != nil {
		return nil, fmt.Errorf("open it: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(file.Fd()), &fs); err != nil {
		file.Close()
		return nil, fmt.Errorf("ask for its file system: %w", err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		file.Close()
		return nil, fmt.Errorf("what is there is a file: %w", errNoNetNS)
	}
	kind, err := unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_NSTYPE)
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("ask for the kind of namespace: %w", err)
	}
	if kind != unix.CLONE_NEWNET {
		file.Close()
		return nil, fmt.Errorf("it is a namespace of another kind: %w", errdefs.ErrInvalidArgument)
	}
	return file, nil
}

func sameFile(a, b *os.File) (bool, error) {
	ai, err := a.Stat()
	if err != nil {
		return false, err
	}
	bi, err := b.Stat()
	if err != nil {
		return false, err
	}
	return os.SameFile(ai, bi), nil
}
