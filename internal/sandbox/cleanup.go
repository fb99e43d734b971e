package sandbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/config"
)

// Cleanup undoes what Start and CreateContainer made for the sandbox whose record is in dir, after a crash of the
// process that made it: it ends the VMM and removes taps, cgroup, uid lock, scratch files. It is idempotent; without a
// record there is nothing to do. It must not be called while the process that started the sandbox lives.
func Cleanup(ctx context.Context, cfg config.Config, dir string) error {
	return cleanup(ctx, cfg, dir, realHost(Deps{}))
}

func cleanup(ctx context.Context, cfg config.Config, dir string, h host) error {
	rec, err := readRecord(dir)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("clean up after a sandbox: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	r := &recorder{dir: dir, rec: rec}
	if err := r.cleanup(ctx, cfg, h); err != nil {
		return fmt.Errorf("clean up after sandbox %s: %w", rec.ID, err)
	}
	return nil
}

// cleanup does what the undo of a sandbox does, in the same order. The record goes only when all else has gone.
func (r *recorder) cleanup(ctx context.Context, cfg config.Config, h host) error {
	rec := r.rec
	lock, errs := endVMM(ctx, cfg, r.dir, rec)
	for _, path := range rec.Scratch {
		errs = append(errs, removeIfThere(path))
	}
	if rec.NetNS != "" {
		errs = append(errs, h.detach(rec.NetNS))
	}
	if rec.Cgroup != "" {
		errs = append(errs, h.removeCgroup(rec.Cgroup))
	}
	if err := errors.Join(errs...); err != nil {
		if lock != nil {
			lock.file.Close()
		}
		return err
	}
	if lock != nil {
		if err := lock.release(); err != nil {
			return fmt.Errorf("release uid %d: %w", rec.UID, err)
		}
	}
	return r.remove()
}

// endVMM ends the VMM that the record names, and whatever runs as its user, as long as the uid is still this sandbox's.
// The lock is nil when it isn't.
func endVMM(ctx context.Context, cfg config.Config, dir string, rec record) (*uidLock, []error) {
	var errs []error
	if rec.VMM != nil {
		errs = append(errs, killProcess(ctx, *rec.VMM))
	}
	if rec.UID == 0 {
		return nil, errs
	}
	lock, err := reclaimUID(uidDir(cfg.RunDir), rec.UID, dir)
	if lock != nil {
		err = killUser(ctx, rec.UID)
	}
	return lock, append(errs, err)
}
