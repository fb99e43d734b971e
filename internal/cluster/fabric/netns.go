package fabric

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// madeNetNSDir is there if /run/netns was made here, and is so to be removed when it is empty.
const madeNetNSDir = "/run/bulkhead-made-netns"

// In runs f on a thread that is in the network namespace. Programs that f starts are in it too; goroutines aren't.
func In(path string, f func() error) error {
	target, err := openNetNS(path)
	if err != nil {
		return err
	}
	defer target.Close()
	err = onThread(func() error {
		if err := unix.Setns(int(target.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter it: %w", err)
		}
		return f()
	})
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", path, err)
	}
	return nil
}

// onThread calls f, which may go to another network namespace, on a thread that nothing else runs on. If the thread can't
// come home, it stays locked, and dies with the goroutine.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			result <- fmt.Errorf("open the own network namespace: %w", err)
			return
		}
		defer home.Close()
		err = f()
		if homeErr := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); homeErr != nil {
			result <- errors.Join(err, fmt.Errorf("come home from a network namespace: %w", homeErr))
			return
		}
		runtime.UnlockOSThread()
		result <- err
	}()
	return <-result
}

func openNetNS(path string) (*os.File, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("network namespace %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	if err := checkNetNS(file); err != nil {
		file.Close()
		return nil, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return file, nil
}

// checkNetNS tells a network namespace from other files. What isn't one counts as none: a namespace's mount that is gone
// leaves an empty file.
func checkNetNS(file *os.File) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(file.Fd()), &fs); err != nil {
		return fmt.Errorf("ask for its file system: %w", err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return fmt.Errorf("what is there is a file: %w", errdefs.ErrNotFound)
	}
	kind, err := unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_NSTYPE)
	if err != nil {
		return fmt.Errorf("ask for the kind of namespace: %w", err)
	}
	if kind != unix.CLONE_NEWNET {
		return fmt.Errorf("it is a namespace of another kind: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// makeNetNS makes a network namespace that is kept by a mount, in the way of ip-netns(8).
func makeNetNS(path string) error {
	file, err := openNetNS(path)
	if err == nil {
		return file.Close()
	}
	if !errors.Is(err, errdefs.ErrNotFound) {
		return err
	}
	if err := makeMountPoint(path); err != nil {
		return err
	}
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount network namespace on %s: %w", path, err)
		}
		return nil
	})
}

// makeMountPoint makes an empty file, and its directory. Another cluster that goes may remove that as long as it is empty.
func makeMountPoint(path string) error {
	unlock, err := lockNetNSDir()
	if err != nil {
		return err
	}
	defer unlock()
	if err := makeNetNSDir(); err != nil {
		return err
	}
	mountpoint, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	return mountpoint.Close()
}

// lockNetNSDir waits until no other command makes or removes the directory. The lock is its parent's, since it comes and goes.
func lockNetNSDir() (unlock func(), err error) {
	dir, err := os.Open(filepath.Dir(netnsDir))
	if err != nil {
		return nil, fmt.Errorf("lock the directory for network namespaces: %w", err)
	}
	for {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX)
		if err == nil {
			return func() { dir.Close() }, nil
		}
		if !errors.Is(err, unix.EINTR) {
			dir.Close()
			return nil, fmt.Errorf("lock the directory for network namespaces: flock %s: %w", dir.Name(), err)
		}
	}
}

func makeNetNSDir() error {
	if _, err := os.Stat(netnsDir); err == nil {
		return nil
	}
	if err := os.WriteFile(madeNetNSDir, nil, 0o600); err != nil {
		return fmt.Errorf("note that %s is made: %w", netnsDir, err)
	}
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("make directory for network namespaces: %w", err)
	}
	return nil
}

// removeNetNSDir removes the directory if it was made here and nobody uses it.
func removeNetNSDir() error {
	unlock, err := lockNetNSDir()
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(madeNetNSDir); err != nil {
		return nil
	}
	err = os.Remove(netnsDir)
	if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EBUSY) {
		return nil
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = os.Remove(madeNetNSDir)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove directory for network namespaces: %w", err)
	}
	return nil
}

// removeNetNS unmounts all that is mounted on the path: a repair after a crash may have mounted twice.
func removeNetNS(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount network namespace %s: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}

// configure sets what the namespace that the thread is in needs to forward.
func (n Network) configure() error {
	settings := [][2]string{
		{"ipv4/ip_forward", "1"},
		// Loose: a packet may come in on another interface than the one its answer leaves by.
		{"ipv4/conf/all/rp_filter", "2"},
		{"ipv4/conf/default/rp_filter", "2"},
	}
	if n.IPv6 {
		settings = append(settings, [][2]string{
			{"ipv6/conf/all/disable_ipv6", "0"},
			{"ipv6/conf/default/disable_ipv6", "0"},
			{"ipv6/conf/all/forwarding", "1"},
			{"ipv6/conf/default/forwarding", "1"},
			// Addresses are usable at once; there are no others on these links.
			{"ipv6/conf/all/accept_dad", "0"},
			{"ipv6/conf/default/accept_dad", "0"},
			{"ipv6/conf/default/accept_ra", "0"},
		}...)
	}
	for _, s := range settings {
		file := filepath.Join("/proc/sys/net", s[0])
		if err := os.WriteFile(file, []byte(s[1]), 0); err != nil {
			return fmt.Errorf("set sysctl: %w", err)
		}
	}
	return loopbackUp()
}
