package sandbox

import (
	"context"
	"errors"
	"os"

	"github.com/containerd/errdefs"

	guestapi "bulkhead.dev/bulkhead/api/guest"
	"bulkhead.dev/bulkhead/internal/cgroup"
	"bulkhead.dev/bulkhead/internal/rootfs"
	"bulkhead.dev/bulkhead/internal/vmm"
)

// host is what a sandbox does to the host besides running a VM. Most of it needs root; tests without it have another.
type host struct {
	// cgroupPath turns an OCI cgroupsPath into a path relative to the hierarchies' roots.
	cgroupPath func(spec string) (string, error)
	makeCgroup func(path string) error
	// removeCgroup ends what still runs in the cgroup; it is nothing to do when there is none.
	removeCgroup func(path string) error

	attach func(netns string) (*network, error)
	// detach does after a crash what network.close does.
	detach func(netns string) error

	prepare       func(ctx context.Context, mounts []rootfs.Mount) (*rootfs.RootFS, error)
	createScratch func(ctx context.Context, path string, size int64) (*os.File, error)

	// after is called after each step of a construction. An error from it fails the step.
	after func(step string) error
}

// network is what the pod's network namespace was found to have, as the guest is told it.
type network struct {
	nics       []vmm.NIC
	interfaces []*guestapi.Interface
	routes     []*guestapi.Route
	neighbours []*guestapi.Neighbour
	close      func() error
}

func realHost(deps Deps) host {
	return host{
		cgroupPath: cgroup.Path,
		makeCgroup: func(path string) error {
			_, err := cgroup.Create(path)
			return err
		},
		removeCgroup:  removeCgroup,
		attach:        attach,
		detach:        detach,
		prepare:       deps.Cache.Prepare,
		createScratch: rootfs.CreateScratch,
		after:         func(string) error { return nil },
	}
}

func removeCgroup(path string) error {
	c, err := cgroup.Load(path)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(c.Kill(), c.Remove())
}

func attach(string) (*network, error) { return nil, errdefs.ErrNotImplemented }

func detach(string) error { return nil }
