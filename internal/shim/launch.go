package shim

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"bulkhead.dev/bulkhead/internal/config"
	"bulkhead.dev/bulkhead/internal/guestimage"
	"bulkhead.dev/bulkhead/internal/rootfs"
	"bulkhead.dev/bulkhead/internal/sandbox"
	"bulkhead.dev/bulkhead/internal/shim/task"
	"bulkhead.dev/bulkhead/internal/vmm/qemu"
)

// launcher starts pods' VMs with what this host has.
type launcher struct {
	arguments
	log   *slog.Logger
	level *slog.LevelVar
}

var _ task.Launcher = (*launcher)(nil)

// Launch implements [task.Launcher].
func (l *launcher) Launch(ctx context.Context, launch task.Launch) (task.Machine, error) {
	cfg, err := config.Load(launch.ConfigPath)
	if err != nil {
		return nil, err
	}
	if !l.debug {
		l.level.Set(cfg.Log.Level)
	}
	spec, err := sandbox.FromOCI(cfg, launch.Spec)
	if err != nil {
		return nil, err
	}
	spec.ID, spec.Namespace = launch.ID, l.namespace
	deps, err := l.deps(ctx, cfg)
	if err != nil {
		return nil, err
	}
	spec.Dir = sandboxDir(cfg, l.address, l.namespace, launch.ID)
	// First of all, so that "delete" can find what there is whenever this process dies.
	if err := writeRecord(launch.Bundle, sandboxFile, sandboxRecord{Version: 1, Dir: spec.Dir, Config: cfg}); err != nil {
		return nil, err
	}
	if err := prepareDir(ctx, cfg, spec.Dir); err != nil {
		return nil, err
	}
	s, err := sandbox.Start(ctx, deps, spec)
	if err != nil {
		return nil, errors.Join(err, discardDir(spec.Dir))
	}
	return &launched{Machine: task.Adapt(s), dir: spec.Dir}, nil
}

func (l *launcher) deps(ctx context.Context, cfg config.Config) (sandbox.Deps, error) {
	image, err := guestimage.Find(cfg)
	if err != nil {
		return sandbox.Deps{}, err
	}
	acceleration, warning, err := qemu.Resolve(ctx, cfg.VMM.Acceleration, qemu.ProbeOptions{
		Binary: cfg.VMM.Binary, Kernel: image.Kernel, Initramfs: image.Initramfs, CacheDir: cfg.StateDir,
	})
	if err != nil {
		return sandbox.Deps{}, err
	}
	if warning != "" {
		l.log.Warn(warning)
	}
	return sandbox.Deps{
		Driver:       qemu.New(qemu.Options{Binary: cfg.VMM.Binary}),
		Cache:        rootfs.NewCache(cfg.LayersDir()),
		Config:       cfg,
		Guest:        image,
		Acceleration: acceleration,
		Logger:       l.log,
	}, nil
}

// sandboxDir is the private directory of a sandbox. It holds sockets, so its path is short, and two containerds on one host
// may use the same names, so it is different for each.
func sandboxDir(cfg config.Config, containerd, namespace, id string) string {
	name := sha256.Sum256([]byte(containerd + "\x00" + namespace + "\x00" + id))
	return filepath.Join(cfg.RunDir, "sandboxes", fmt.Sprintf("%x", name[:16]))
}

// prepareDir makes the directory. If there is one, its shim is dead, for this process has the socket that goes with the ID;
// and "delete" was not called, or failed.
func prepareDir(ctx context.Context, cfg config.Config, dir string) error {
	if _, err := os.Lstat(dir); err == nil {
		if err := sandbox.Cleanup(ctx, cfg, dir); err != nil {
			return fmt.Errorf("clean up after an earlier sandbox of the same ID: %w", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove the directory of an earlier sandbox: %w", err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make the sandbox's directory: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return fmt.Errorf("make the sandbox's directory: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make the sandbox's directory: %w", err)
	}
	return nil
}

// discardDir removes the directory of a sandbox that did not start. Where not everything could be undone its record is still
// there: then the directory stays, for "delete" and for a later sandbox of the same ID, which clean up by the record.
func discardDir(dir string) error {
	if recorded, err := sandbox.Recorded(dir); err != nil || recorded {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the sandbox's directory: %w", err)
	}
	return nil
}

// launched is a machine whose directory goes with it.
type launched struct {
	task.Machine
	dir string
}

// Stop implements [task.Machine].
func (l *launched) Stop(ctx context.Context) error {
	if err := l.Machine.Stop(ctx); err != nil {
		return err // the record in the directory is still wanted
	}
	if err := os.RemoveAll(l.dir); err != nil {
		return fmt.Errorf("remove the sandbox's directory: %w", err)
	}
	return nil
}
