package sandbox

import (
	"context"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/vmm"
)

// disks are the read-only disks of a VM. An image that several containers use is attached once: two containers of one
// container image share its layers, in the guest's page cache too.
type disks struct {
	vm vmm.VM

	mu     sync.Mutex
	shared map[fileID]*sharedDisk
}

// fileID tells whether two open files are the same.
type fileID struct{ dev, ino uint64 }

type sharedDisk struct {
	refs int // guarded by disks.mu

	mu      sync.Mutex // held while it is being attached
	address vmm.Address
}

// attachment is one use of a shared disk.
type attachment struct {
	id      fileID
	disk    *sharedDisk
	address vmm.Address
}

func newDisks(vm vmm.VM) *disks {
	return &disks{vm: vm, shared: map[fileID]*sharedDisk{}}
}

// attach makes the image a read-only disk, or finds the one that it is.
func (d *disks) attach(ctx context.Context, image *os.File) (attachment, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(int(image.Fd()), &stat); err != nil {
		return attachment{}, fmt.Errorf("look at image %s: %w", image.Name(), err)
	}
	id := fileID{uint64(stat.Dev), stat.Ino} //nolint:unconvert // Dev has another type on other architectures
	d.mu.Lock()
	disk := d.shared[id]
	if disk == nil {
		disk = &sharedDisk{}
		d.shared[id] = disk
	}
	disk.refs++
	d.mu.Unlock()

	disk.mu.Lock()
	defer disk.mu.Unlock()
	if disk.address == "" {
		address, err := d.vm.AddDisk(ctx, vmm.Disk{File: image, ReadOnly: true})
		if err != nil {
			d.unref(id, disk)
			return attachment{}, fmt.Errorf("attach image %s: %w", image.Name(), err)
		}
		disk.address = address
	}
	return attachment{id, disk, disk.address}, nil
}

// detach ends one use, and the disk with its last.
func (d *disks) detach(ctx context.Context, a attachment) error {
	if !d.unref(a.id, a.disk) {
		return nil
	}
	return removeDisk(ctx, d.vm, a.address)
}

// unref tells whether the use was the last one. From then on the image would be attached anew, as another disk.
func (d *disks) unref(id fileID, disk *sharedDisk) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	disk.refs--
	if disk.refs > 0 {
		return false
	}
	delete(d.shared, id)
	return true
}

// removeDisk takes a VM that has ended, and a disk that has gone, for a success.
func removeDisk(ctx context.Context, vm vmm.VM, at vmm.Address) error {
	err := vm.RemoveDisk(ctx, at)
	if errdefs.IsUnavailable(err) || errdefs.IsNotFound(err) {
		return nil
	}
	return err
}
