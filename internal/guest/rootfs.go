package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	guestapi "bulkhead.dev/bulkhead/api/guest"
)

// maxLayers is overlayfs's own limit.
const maxLayers = 500

// rootfs is a container's assembled root file system.
type rootfs struct {
	path     string
	readonly bool // whatever the spec says
	scratch  string
	// What the empty scratch file system takes up itself.
	baseBytes, baseInodes uint64
	undo                  undo
}

// assembler makes root file systems.
type assembler struct {
	disks   *disks
	volumes string // where the host's volumes are mounted
}

// assemble makes a root file system below dir, which exists. On an error nothing is left.
func (a *assembler) assemble(dir string, want *guestapi.RootFS) (_ *rootfs, err error) {
	r := &rootfs{path: filepath.Join(dir, "rootfs")}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.undo.run())
		}
	}()
	if err := os.Mkdir(r.path, 0o755); err != nil {
		return nil, fmt.Errorf("making the root's mount point: %w", err)
	}
	whole := r.path // narrow changes r.path
	r.undo.add(func() error { return unmount(whole) })
	switch {
	case want.GetVolume() != "":
		if len(want.Layers) > 0 || want.Scratch != nil {
			return nil, fmt.Errorf("root is both volume %q and disks: %w", want.Volume, errdefs.ErrInvalidArgument)
		}
		err = bindVolume(a.volumes, want.Volume, r.path)
	case len(want.GetLayers()) > 0:
		err = a.stack(r, dir, want)
	default:
		err = fmt.Errorf("root has neither layers nor a volume: %w", errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, err
	}
	if want.Subdirectory != "" {
		if err := r.narrow(filepath.Join(dir, "subroot"), want.Subdirectory); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// stack mounts the layers, and over them what the container writes: the scratch disk, or without one a small tmpfs,
// which takes the mount points that the runtime makes in a root that is then read-only.
func (a *assembler) stack(r *rootfs, dir string, want *guestapi.RootFS) error {
	if len(want.Layers) > maxLayers {
		return fmt.Errorf("root has %d layers, more than %d: %w", len(want.Layers), maxLayers, errdefs.ErrInvalidArgument)
	}
	// Overlaid mount points are unmounted before the layers: undo runs backwards.
	overlaid := r.undo
	r.undo = nil
	var lower []string
	for _, layer := range want.Layers {
		if !layer.GetReadonly() {
			return fmt.Errorf("layer %s is not read-only: %w", layer.GetAddress(), errdefs.ErrInvalidArgument)
		}
		path, err := a.disks.mount(layer)
		if err != nil {
			r.undo = append(r.undo, overlaid...)
			return err
		}
		r.undo.add(func() error { return a.disks.unmount(layer.Address) })
		lower = append(lower, path)
	}
	err := a.addUpper(r, dir, want.Scratch)
	r.undo = append(r.undo, overlaid...)
	if err != nil {
		return err
	}
	upper, work := filepath.Join(r.scratch, "upper"), filepath.Join(r.scratch, "work")
	if err := makeUpper(upper, work, lower[0]); err != nil {
		return err
	}
	return mountOverlay(r.path, lower, upper, work)
}

// addUpper mounts what takes the container's writes.
func (a *assembler) addUpper(r *rootfs, dir string, scratch *guestapi.Disk) error {
	if scratch == nil {
		r.readonly = true
		r.scratch = filepath.Join(dir, "upper")
		if err := mountTmpfs(r.scratch, unix.MS_NODEV, "size=1m,mode=0755"); err != nil {
			return err
		}
		r.undo.add(func() error { return unmount(r.scratch) })
		return nil
	}
	if scratch.Readonly || scratch.Fstype != "ext4" {
		return fmt.Errorf("scratch disk %s is read-only or not ext4: %w", scratch.Address, errdefs.ErrInvalidArgument)
	}
	path, err := a.disks.mount(scratch)
	if err != nil {
		return err
	}
	r.undo.add(func() error { return a.disks.unmount(scratch.Address) })
	r.scratch = path
	r.baseBytes, r.baseInodes, err = usage(path)
	return err
}

// usage returns what a file system has in use.
func usage(path string) (bytes, inodes uint64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, fmt.Errorf("reading the usage of %s: %w", path, err)
	}
	return (st.Blocks - st.Bfree) * uint64(st.Bsize), st.Files - st.Ffree, nil
}

// makeUpper makes the upper directory. The overlay's root has its owner and mode, so it gets those of the image's root.
func makeUpper(upper, work, lower string) error {
	var st unix.Stat_t
	if err := unix.Stat(lower, &st); err != nil {
		return fmt.Errorf("looking at the uppermost layer: %w", err)
	}
	// What an earlier attempt left in the work directory, such as the mark of a volatile mount, would forbid another.
	if err := os.RemoveAll(work); err != nil {
		return fmt.Errorf("preparing the scratch disk: %w", err)
	}
	for _, dir := range []string{upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("preparing the scratch disk: %w", err)
		}
	}
	if err := unix.Chown(upper, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("preparing the scratch disk: %w", err)
	}
	if err := unix.Chmod(upper, st.Mode&0o7777); err != nil {
		return fmt.Errorf("preparing the scratch disk: %w", err)
	}
	return nil
}

// mountOverlay stacks directories, the uppermost first. Their paths must not have the characters ":" and ",".
//
// The scratch disk lives no longer than the pod, so the overlay needs not sync ("volatile").
func mountOverlay(target string, lower []string, upper, work string) error {
	options := "lowerdir=" + strings.Join(lower, ":") + ",upperdir=" + upper + ",workdir=" + work + ",volatile"
	if len(options) >= os.Getpagesize() {
		return fmt.Errorf("mounting the root: options of %d layers take %d bytes, more than a page: %w", len(lower), len(options), errdefs.ErrInvalidArgument)
	}
	if err := unix.Mount("overlay", target, "overlay", 0, options); err != nil {
		return fmt.Errorf("mounting the root of %d layers: %w", len(lower), err)
	}
	return nil
}

// narrow makes a directory beneath the root the root. Symbolic links in the image can't lead it out.
func (r *rootfs) narrow(target, subdirectory string) error {
	root, err := unix.Open(r.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening the root: %w", err)
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, strings.TrimLeft(subdirectory, "/"), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return fmt.Errorf("opening directory %q of the root: %w", subdirectory, err)
	}
	defer unix.Close(fd)
	if err := os.Mkdir(target, 0o755); err != nil {
		return fmt.Errorf("making the root's mount point: %w", err)
	}
	r.undo.add(func() error { return unmount(target) })
	if err := unix.Mount(fdPath(fd), target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding directory %q of the root: %w", subdirectory, err)
	}
	r.path = target
	return nil
}

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
