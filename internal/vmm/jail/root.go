package jail

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// stage is where the new root directory is put together, in the jail's own mount namespace. It exists on every host, and
// nothing below it is needed any more.
const stage = "/sys"

// buildRoot changes what the program sees of the file system. The mount namespace must be new.
func buildRoot(config Config) error {
	// Slave, not private: what the host unmounts must not live on here and keep devices and directories busy.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("detach mounts from the host: %w", err)
	}
	if len(config.Root) == 0 {
		return buildDev("/dev", config)
	}
	if err := unix.Mount("root", stage, "tmpfs", unix.MS_NOSUID, "mode=0755,size=1m"); err != nil {
		return fmt.Errorf("mount the new root: %w", err)
	}
	for _, path := range config.Root {
		if err := show(path); err != nil {
			return fmt.Errorf("show %s in the new root: %w", path, err)
		}
	}
	dev := filepath.Join(stage, "dev")
	if err := os.MkdirAll(dev, 0o755); err != nil {
		return err
	}
	if err := buildDev(dev, config); err != nil {
		return err
	}
	if err := unix.Mount("", stage, "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("make the new root read-only: %w", err)
	}
	return enterRoot()
}

// enterRoot makes stage the root and lets go of the old one. The same directory for both arguments stacks the old root on
// top of the new one, from where it is unmounted: pivot_root(2), "pivot_root(".", ".")".
func enterRoot() error {
	if err := unix.Chdir(stage); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the host's root: %w", err)
	}
	return unix.Chdir("/")
}

// show makes a path of the host visible in the new root, at the same place.
func show(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	target := filepath.Join(stage, path)
	if _, err := os.Lstat(target); err == nil {
		return nil // it lies in a directory that is shown already
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	switch {
	case info.Mode().Type() == os.ModeSymlink:
		to, err := os.Readlink(path)
		if err != nil {
			return err
		}
		return os.Symlink(to, target)
	case info.IsDir():
		err = os.Mkdir(target, 0o755)
	default:
		err = os.WriteFile(target, nil, 0o644)
	}
	if err != nil {
		return err
	}
	if err := unix.Mount(path, target, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "")
}

// buildDev puts a /dev with the harmless devices at the path.
func buildDev(at string, config Config) error {
	if err := unix.Mount("dev", at, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=0755,size=64k"); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	nodes := []struct {
		name         string
		major, minor uint32
	}{
		{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9},
	}
	unix.Umask(0)
	for _, n := range nodes {
		if err := unix.Mknod(filepath.Join(at, n.name), unix.S_IFCHR|0o666, int(unix.Mkdev(n.major, n.minor))); err != nil {
			return fmt.Errorf("make /dev/%s: %w", n.name, err)
		}
	}
	if config.KVM {
		kvm := filepath.Join(at, "kvm")
		if err := unix.Mknod(kvm, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 232))); err != nil {
			return fmt.Errorf("make /dev/kvm: %w", err)
		}
		if err := os.Chown(kvm, int(config.UID), int(config.GID)); err != nil {
			return fmt.Errorf("give /dev/kvm to user %d: %w", config.UID, err)
		}
	}
	if err := unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("make /dev read-only: %w", err)
	}
	return nil
}
