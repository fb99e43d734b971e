package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// RemoveTree ends every process in a cgroup and in all below it, and removes them from every hierarchy. It is idempotent:
// a cgroup that isn't there is no error. It refuses to end the caller.
func RemoveTree(spec string) error {
	host, err := discover()
	if err != nil {
		return err
	}
	return host.removeTree(spec)
}

func (h host) removeTree(spec string) error {
	c, err := h.load(spec)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range c.dirs {
		errs = append(errs, d.removeTree())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove cgroup %s and those below: %w", c.path, err)
	}
	return nil
}

func (d dir) removeTree() error {
	deadline := time.Now().Add(patience)
	var groups []dir
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		var err error
		if groups, err = d.tree(); err != nil {
			return err
		}
		left, err := killOnce(groups)
		if err != nil {
			return err
		}
		if left == 0 {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes below %s are still there after %v: %w", left, d.path, patience, errdefs.ErrUnavailable)
		}
		time.Sleep(pause)
	}
	for _, group := range slices.Backward(groups) { // children come after their parents
		if err := remove(group.path, deadline); err != nil {
			return err
		}
	}
	return nil
}

// tree lists the directory's cgroup and those below it, parents first.
func (d dir) tree() ([]dir, error) {
	var groups []dir
	err := filepath.WalkDir(d.path, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil // it was removed while we looked
		}
		if err == nil && entry.IsDir() {
			groups = append(groups, dir{hierarchy: d.hierarchy, path: path})
		}
		return err
	})
	return groups, err
}

// killOnce sends SIGKILL to all processes of the groups, and returns how many there were.
func killOnce(groups []dir) (int, error) {
	found := 0
	for _, group := range groups {
		pids, err := processes(group.path)
		if err != nil {
			return 0, err
		}
		if len(pids) == 0 {
			continue
		}
		if slices.Contains(pids, os.Getpid()) {
			return 0, fmt.Errorf("kill cgroup %s: this process is in it: %w", group.path, errdefs.ErrFailedPrecondition)
		}
		one := &Cgroup{path: group.path, dirs: []dir{group}}
		if err := one.signal(pids); err != nil {
			return 0, err
		}
		found += len(pids)
	}
	return found, nil
}
