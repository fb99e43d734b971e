// Package durable replaces files so that, whatever happens and whenever the power goes, either the old or the new content is
// there in full.
//
//	content ─► PATH.new-RANDOM (fsync) ─► rename to PATH ─► fsync of the directory
//
// A crash may leave a PATH.new-RANDOM behind, which nobody reads; the next Write of PATH removes it. Writers of one file
// exclude each other by a lock of their own.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Write replaces the file's content and gives it the mode, whatever the process's umask. The file's directory must exist. A file
// that is there keeps its owner: root may write a user's file.
func Write(path string, data []byte, mode fs.FileMode) error {
	err := write(path, data, mode, true)
	if err == nil {
		err = SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Replace is Write without the waits for the disk: nobody sees half a file, but one written shortly before a power cut may be old
// or damaged. It is for what is checked when it is read, and can be made again.
func Replace(path string, data []byte, mode fs.FileMode) error {
	if err := write(path, data, mode, false); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func write(path string, data []byte, mode fs.FileMode, sync bool) error {
	removeLeftovers(path)
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	if err := fill(f, path, data, mode, sync); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func fill(f *os.File, path string, data []byte, mode fs.FileMode, sync bool) error {
	_, err := f.Write(data)
	if err == nil {
		err = keepOwner(f, path)
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// keepOwner gives the new file the owner of the one that it replaces.
func keepOwner(f *os.File, path string) error {
	var old, fresh unix.Stat_t
	if err := unix.Stat(path, &old); errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return fmt.Errorf("look at %s: %w", path, err)
	}
	if err := unix.Fstat(int(f.Fd()), &fresh); err != nil {
		return fmt.Errorf("look at %s: %w", f.Name(), err)
	}
	if old.Uid == fresh.Uid && old.Gid == fresh.Gid {
		return nil
	}
	return f.Chown(int(old.Uid), int(old.Gid))
}

// removeLeftovers is for tidiness only: what it can't remove does no harm.
func removeLeftovers(path string) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(path)+".new-") {
			os.Remove(filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
}

// SyncDir makes the names in a directory durable: what was created, renamed and removed in it.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		d.Close()
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return d.Close()
}
