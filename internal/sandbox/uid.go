package sandbox

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Every VMM runs as a user of its own, so that one that was taken over reaches no other. Who has which is kept in one
// file per uid, RunDir/uids/UID, which holds the owner's Spec.Dir and is locked (flock) while the owner's process lives.
//
// A file that is not locked but not empty is a crashed owner's. Its uid is free when no process runs as it any more. The
// name in the file tells Cleanup of the crashed owner whether the uid has gone to somebody else since.
type uidLock struct {
	uid  uint32
	file *os.File
}

func uidDir(runDir string) string { return filepath.Join(runDir, "uids") }

// takeUID takes a free uid of the range, ErrResourceExhausted when there is none.
func takeUID(dir string, base, count uint32, owner string) (*uidLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of uid locks: %w", err)
	}
	// Starting at a place of the owner's own keeps a busy node from trying every uid in use first.
	hash := fnv.New32a()
	hash.Write([]byte(owner))
	start := hash.Sum32()
	for i := range count {
		uid := base + (start%count+i)%count
		lock, err := tryUID(dir, uid, owner)
		if err != nil {
			return nil, fmt.Errorf("take uid %d: %w", uid, err)
		}
		if lock != nil {
			return lock, nil
		}
	}
	return nil, fmt.Errorf("all %d uids from %d on are taken (keys vmm.uid_base, vmm.uid_count): %w", count, base, errdefs.ErrResourceExhausted)
}

// tryUID returns nil when the uid is somebody's.
func tryUID(dir string, uid uint32, owner string) (*uidLock, error) {
	f, err := lockFile(filepath.Join(dir, strconv.FormatUint(uint64(uid), 10)), os.O_CREATE)
	if f == nil || err != nil {
		return nil, err
	}
	lock := &uidLock{uid: uid, file: f}
	free, err := lock.free()
	if err == nil && free {
		err = lock.claim(owner)
	}
	if err != nil || !free {
		f.Close()
		return nil, err
	}
	return lock, nil
}

// lockFile opens and locks a file. It returns nil when another process has it, or has just removed it.
func lockFile(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// Its owner may have removed it between our open and our lock.
	opened, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if now, err := os.Lstat(path); err != nil || !os.SameFile(opened, now) {
		f.Close()
		return nil, nil
	}
	return f, nil
}

func (l *uidLock) owner() (string, error) {
	data, err := io.ReadAll(io.LimitReader(io.NewSectionReader(l.file, 0, 1<<20), 1<<16))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", l.file.Name(), err)
	}
	return string(data), nil
}

func (l *uidLock) free() (bool, error) {
	owner, err := l.owner()
	if err != nil || owner == "" {
		return err == nil, err
	}
	pids, err := pidsOf(l.uid)
	return len(pids) == 0, err
}

func (l *uidLock) claim(owner string) error {
	if err := l.file.Truncate(0); err != nil {
		return err
	}
	_, err := l.file.WriteAt([]byte(owner), 0)
	return err
}

// release gives the uid back. The file goes first, the lock with it.
func (l *uidLock) release() error {
	err := removeIfThere(l.file.Name())
	if closeErr := l.file.Close(); err == nil && !errors.Is(closeErr, fs.ErrClosed) {
		err = closeErr
	}
	return err
}

// reclaimUID takes the lock of a crashed owner's uid. It returns nil when there is none or it is somebody else's by now.
func reclaimUID(dir string, uid uint32, owner string) (*uidLock, error) {
	f, err := lockFile(filepath.Join(dir, strconv.FormatUint(uint64(uid), 10)), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if f == nil || err != nil {
		return nil, err
	}
	lock := &uidLock{uid: uid, file: f}
	if got, err := lock.owner(); err != nil || got != owner {
		f.Close()
		return nil, err
	}
	return lock, nil
}
