package rootfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// MinScratch is the least size of a scratch disk: ext4 needs some room for itself.
	MinScratch = 8 << 20
	// MaxScratch is the greatest: files of host file systems end at 16 TiB.
	MaxScratch = 15 << 40
)

// CreateScratch makes a sparse file at path with an empty ext4 file system of size bytes (rounded down to whole blocks
// of 4096), mode 0600, and returns it opened for reading and writing. An existing file is an errdefs.ErrAlreadyExists.
// On error nothing is left. The caller removes the file when the disk is gone.
func CreateScratch(ctx context.Context, path string, size int64) (_ *os.File, err error) {
	if size < MinScratch || size > MaxScratch {
		return nil, fmt.Errorf("scratch disk of %d bytes: possible are %d to %d: %w", size, int64(MinScratch), int64(MaxScratch), errdefs.ErrInvalidArgument)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("scratch disk %s: %w", path, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return nil, fmt.Errorf("scratch disk: %w", classify(err))
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(path)
		}
	}()
	if err := f.Truncate(size &^ 4095); err != nil {
		return nil, fmt.Errorf("scratch disk: %w", classify(err))
	}
	if err := mkfs(ctx, f); err != nil {
		return nil, fmt.Errorf("scratch disk %s: %w", path, err)
	}
	return f, nil
}

// mkfs makes the file system. It has no journal, since it doesn't outlive its VM, and nothing that is zero anyway is
// written: neither now nor, by the guest, later (assume_storage_prezeroed). That option came with e2fsprogs 1.47.
func mkfs(ctx context.Context, f *os.File) error {
	err := runMkfs(ctx, f, "nodiscard,lazy_itable_init=1,assume_storage_prezeroed=1")
	if err != nil && strings.Contains(err.Error(), "assume_storage_prezeroed") {
		err = runMkfs(ctx, f, "nodiscard,lazy_itable_init=1")
	}
	return err
}

func runMkfs(ctx context.Context, f *os.File, extended string) error {
	cmd := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-I", "256",
		"-O", "^has_journal,^resize_inode", "-E", extended, "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin", "LC_ALL=C")
	if path, err := lookMkfs(); err == nil {
		cmd.Path, cmd.Err = path, nil
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("mkfs.ext4 is not installed (package e2fsprogs): %w", errdefs.ErrFailedPrecondition)
	case strings.Contains(stderr.String(), "No space left on device"):
		return fmt.Errorf("mkfs.ext4: %w: %w", unix.ENOSPC, errdefs.ErrResourceExhausted)
	}
	return fmt.Errorf("mkfs.ext4: %w: %.500s", err, strings.TrimSpace(stderr.String()))
}

// lookMkfs finds mkfs.ext4 also where the caller's PATH has no sbin directories.
func lookMkfs() (string, error) {
	if path, err := exec.LookPath("mkfs.ext4"); err == nil {
		return path, nil
	}
	for _, path := range []string{"/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", exec.ErrNotFound
}
