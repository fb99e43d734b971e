package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	guestapi "bulkhead.dev/bulkhead/api/guest"
)

// podShm is the file system that the pod's containers share as their /dev/shm.
const podShm = "/dev/shm"

// mounts are the sources of bind mounts that the host asks for, at dir/NAME. Containers that ask for the same thing by the
// same name share it.
type mounts struct {
	dir     string
	volumes string // where the host's volumes are mounted

	mu   sync.Mutex
	made map[string]*sharedMount // guarded by mu
}

type sharedMount struct {
	kind, source string
	options      []string
	users        int
}

func newMounts(dir, volumes string) *mounts {
	return &mounts{dir: dir, volumes: volumes, made: make(map[string]*sharedMount)}
}

// add makes a mount, or takes part in one that is there. Each add needs a remove.
func (m *mounts) add(want *guestapi.Mount) error {
	if !validMountName(want.GetName()) {
		return fmt.Errorf("mount name %q: %w", want.GetName(), errdefs.ErrInvalidArgument)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.made[want.Name]; s != nil {
		if s.kind != want.Type || s.source != want.Source || !slices.Equal(s.options, want.Options) {
			return fmt.Errorf("mount %q is there and is another one: %w", want.Name, errdefs.ErrAlreadyExists)
		}
		s.users++
		return nil
	}
	if err := m.make(want, filepath.Join(m.dir, want.Name)); err != nil {
		return fmt.Errorf("mount %q: %w", want.Name, err)
	}
	m.made[want.Name] = &sharedMount{kind: want.Type, source: want.Source, options: want.Options, users: 1}
	return nil
}

func (m *mounts) remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.made[name]
	if s == nil {
		return nil
	}
	if s.users > 1 {
		s.users--
		return nil
	}
	if err := unmount(filepath.Join(m.dir, name)); err != nil {
		return err
	}
	delete(m.made, name)
	return nil
}

func (m *mounts) make(want *guestapi.Mount, target string) error {
	flags, data, err := mountOptions(want.Options)
	if err != nil {
		return err
	}
	switch want.Type {
	case "volume":
		if data != "" {
			return fmt.Errorf("options %q of a volume: %w", data, errdefs.ErrInvalidArgument)
		}
		if err := bindVolume(m.volumes, want.Source, target); err != nil {
			return err
		}
	case "tmpfs":
		return mountTmpfs(target, flags, data)
	case "shm":
		if data != "" {
			return fmt.Errorf("options %q of the shared memory: %w", data, errdefs.ErrInvalidArgument)
		}
		if err := bindDir(podShm, target); err != nil {
			return err
		}
	default:
		return fmt.Errorf("type %q: %w", want.Type, errdefs.ErrInvalidArgument)
	}
	if flags != 0 {
		if err := unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""); err != nil {
			return errors.Join(fmt.Errorf("setting options %v: %w", want.Options, err), unmount(target))
		}
	}
	return nil
}

// mountOptions divides options into flags of mount(2) and the file system's own.
func mountOptions(options []string) (flags uintptr, data string, err error) {
	known := map[string]uintptr{
		"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC, "noatime": unix.MS_NOATIME,
		"rw": 0, "suid": 0, "dev": 0, "exec": 0, "relatime": 0, "bind": 0, "rbind": 0, "private": 0, "rprivate": 0,
	}
	var own []string
	for _, o := range options {
		if flag, ok := known[o]; ok {
			flags |= flag
			continue
		}
		key, value, ok := strings.Cut(o, "=")
		if !ok || !slices.Contains([]string{"size", "mode", "uid", "gid", "nr_inodes"}, key) || strings.ContainsAny(value, ", \t\n\\") {
			return 0, "", fmt.Errorf("option %q: %w", o, errdefs.ErrInvalidArgument)
		}
		own = append(own, o)
	}
	return flags, strings.Join(own, ","), nil
}

func mountTmpfs(target string, flags uintptr, data string) error {
	if err := os.Mkdir(target, 0o755); err != nil {
		return fmt.Errorf("making a mount point: %w", err)
	}
	if err := unix.Mount("tmpfs", target, "tmpfs", flags, data); err != nil {
		os.Remove(target)
		return fmt.Errorf("mounting a tmpfs (%s): %w", data, err)
	}
	return nil
}

func bindDir(source, target string) error {
	if err := os.Mkdir(target, 0o755); err != nil {
		return fmt.Errorf("making a mount point: %w", err)
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		os.Remove(target)
		return fmt.Errorf("binding %s: %w", source, err)
	}
	return nil
}

// bindVolume binds a volume, a directory or a file, to target, which is made where it is not there. A name that is a
// symbolic link is not followed.
func bindVolume(volumes, name, target string) error {
	if !validVolumeName(name) {
		return fmt.Errorf("volume name %q: %w", name, errdefs.ErrInvalidArgument)
	}
	path := filepath.Join(volumes, name)
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		if err == unix.ENOENT {
			return fmt.Errorf("volume %q: %w", name, errdefs.ErrNotFound)
		}
		return fmt.Errorf("opening volume %q: %w", name, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("looking at volume %q: %w", name, err)
	}
	made := false
	if _, err := os.Lstat(target); err != nil {
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			err = os.Mkdir(target, 0o755)
		} else {
			err = os.WriteFile(target, nil, 0o600)
		}
		if err != nil {
			return fmt.Errorf("making a mount point: %w", err)
		}
		made = true
	}
	if err := unix.Mount(fdPath(fd), target, "", unix.MS_BIND, ""); err != nil {
		if made {
			os.Remove(target)
		}
		return fmt.Errorf("binding volume %q: %w", name, err)
	}
	return nil
}
