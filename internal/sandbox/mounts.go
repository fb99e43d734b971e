package sandbox

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	guestapi "bulkhead.dev/bulkhead/api/guest"
)

// maxMounts bounds what one container asks for; the guest's own limit of mounts is far higher.
const maxMounts = 1024

// addMounts translates the spec's mounts, in order.
func (t *translation) addMounts(mounts []specs.Mount, prefix string) error {
	if len(mounts) > maxMounts {
		return fmt.Errorf("%d mounts, at most %d: %w", len(mounts), maxMounts, errdefs.ErrInvalidArgument)
	}
	for i, m := range mounts {
		if err := t.addMount(m, prefix+"-"+strconv.Itoa(i)); err != nil {
			return fmt.Errorf("mount at %q: %w", m.Destination, err)
		}
	}
	return nil
}

func (t *translation) addMount(m specs.Mount, name string) error {
	switch {
	case !path.IsAbs(m.Destination) || path.Clean(m.Destination) == "/":
		return fmt.Errorf("the destination must be absolute and not the root: %w", errdefs.ErrInvalidArgument)
	case len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0:
		return unsupported("an id-mapped mount")
	}
	isBind := m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
	options, err := mountOptions(m.Options, isBind)
	if err != nil {
		return err
	}
	if !isBind {
		if !slices.Contains([]string{"proc", "sysfs", "tmpfs", "mqueue", "devpts", "cgroup", "cgroup2"}, m.Type) {
			return unsupported("a mount of type %q", m.Type)
		}
		t.Spec.Mounts = append(t.Spec.Mounts, specs.Mount{Destination: m.Destination, Type: m.Type, Source: m.Type, Options: options})
		return nil
	}
	source := path.Clean(m.Source)
	if !path.IsAbs(source) {
		return fmt.Errorf("source %q of a bind mount is not absolute: %w", m.Source, errdefs.ErrInvalidArgument)
	}
	if isPodShm(source, m.Destination) {
		t.Mounts = append(t.Mounts, &guestapi.Mount{Name: name, Type: "shm"})
	} else {
		t.Mounts = append(t.Mounts, &guestapi.Mount{Name: name, Type: "volume"})
		t.Binds = append(t.Binds, bind{Mount: name, Source: source, ReadOnly: slices.Contains(options, "ro")})
	}
	t.Spec.Mounts = append(t.Spec.Mounts, specs.Mount{Destination: m.Destination, Type: "bind", Source: mountsDir + name, Options: options})
	return nil
}

// isPodShm knows the shared memory that containerd's CRI makes for a pod: STATE/sandboxes/ID/shm, seen at /dev/shm.
// A volume that merely has the name (…/volumes/kubernetes.io~empty-dir/shm) is another thing.
func isPodShm(source, destination string) bool {
	dir, base := path.Split(source)
	return path.Clean(destination) == "/dev/shm" && base == "shm" && path.Base(path.Dir(path.Clean(dir))) == "sandboxes"
}

// bindOptions are the options of a bind mount that mean in the guest what they mean on the host.
func bindOptions() []string {
	return []string{
		"bind", "rbind", "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "private", "rprivate",
		"atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime", "nosymfollow", "symfollow",
		"async", "sync", "dirsync", "defaults",
	}
}

// mountOptions checks a mount's options. Those of the kernel's own file systems are passed on, but for propagation.
func mountOptions(in []string, isBind bool) ([]string, error) {
	out := make([]string, 0, len(in))
	for _, o := range in {
		switch o {
		case "shared", "rshared", "slave", "rslave":
			return nil, unsupported("mount propagation %q (Bidirectional, HostToContainer): what is mounted on one side of a VM's wall doesn't show up on the other", o)
		case "rro":
			o = "ro" // a served volume has no mounts below it
		}
		if isBind && !slices.Contains(bindOptions(), o) {
			return nil, unsupported("option %q of a bind mount", o)
		}
		if strings.ContainsFunc(o, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return nil, fmt.Errorf("mount option %q has a control character: %w", o, errdefs.ErrInvalidArgument)
		}
		out = append(out, o)
	}
	return out, nil
}
