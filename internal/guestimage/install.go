package guestimage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// replaceable refuses a directory that holds something else than an image: it would be deleted.
func replaceable(dir string) error {
	names, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && len(names) == 0) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look into the guest image's directory: %w", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, ManifestFile)); err != nil {
		return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("%s holds other files and no guest image: name a directory of its own", dir))
	}
	return nil
}

// install writes an image into a new directory beside dir and puts it in dir's place in one step.
func install(dir string, c content) error {
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	fresh, err := os.MkdirTemp(parent, "."+filepath.Base(dir)+"-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(fresh) // afterwards it holds the old image, or nothing
	// The VMM's user reads the files.
	if err := os.Chmod(fresh, 0o755); err != nil {
		return err
	}
	manifest, err := c.manifest.encode()
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name  string
		data  []byte
		stamp time.Time
	}{
		{KernelFile, c.kernel, c.manifest.Kernel.stamp()},
		{InitramfsFile, c.initramfs, c.manifest.Initramfs.stamp()},
		{ManifestFile, manifest, time.Time{}},
	} {
		if err := writeSynced(filepath.Join(fresh, f.name), f.data, f.stamp); err != nil {
			return err
		}
	}
	if err := syncDir(fresh); err != nil {
		return err
	}
	if err := exchange(fresh, dir); err != nil {
		return err
	}
	return syncDir(parent)
}

// exchange puts the directory fresh in dir's place, and what was there in fresh's.
func exchange(fresh, dir string) error {
	err := os.Rename(fresh, dir) // enough when dir is missing or empty
	if err == nil || !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return err
	}
	err = unix.Renameat2(unix.AT_FDCWD, fresh, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		if err != nil {
			return &os.LinkError{Op: "exchange", Old: fresh, New: dir, Err: err}
		}
		return nil
	}
	// A file system without exchange: two steps, and back if the second can't be done.
	old := fresh + ".old"
	if err := os.Rename(dir, old); err != nil {
		return err
	}
	if err := os.Rename(fresh, dir); err != nil {
		return errors.Join(err, os.Rename(old, dir))
	}
	return os.RemoveAll(old)
}

func writeSynced(name string, data []byte, stamp time.Time) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644) // whatever the umask
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil && !stamp.IsZero() {
		err = os.Chtimes(name, stamp, stamp)
	}
	return err
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
