package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	guestapi "bulkhead.dev/bulkhead/api/guest"
)

// disks mounts disks, each once, however many containers use it: containers of one image share its layers.
type disks struct {
	devices *Devices
	scsi    scsi
	// dir holds the mount points: dir/0, dir/1 and so on. It is short, since overlayfs takes the paths of all layers in
	// one page.
	dir string

	mu      sync.Mutex
	mounted map[string]*disk // guarded by mu; by address
	used    map[int]bool     // guarded by mu; numbers of mount points
}

type disk struct {
	address  string
	readonly bool
	number   int
	path     string
	users    int // guarded by disks.mu
	ready    chan struct{}
	err      error // set once ready is closed
}

func newDisks(devices *Devices, dir string) *disks {
	return &disks{
		devices: devices, scsi: scsi{"/sys", "/dev"}, dir: dir,
		mounted: make(map[string]*disk), used: make(map[int]bool),
	}
}

// mount returns where a disk is mounted. Each mount needs an unmount.
func (d *disks) mount(want *guestapi.Disk) (string, error) {
	flags, options, err := diskOptions(want)
	if err != nil {
		return "", err
	}
	if _, err := parseAddress(want.Address); err != nil {
		return "", err
	}
	d.mu.Lock()
	m := d.mounted[want.Address]
	if m != nil {
		if !m.readonly || !want.Readonly {
			d.mu.Unlock()
			return "", fmt.Errorf("disk %s is in use and not shareable: %w", want.Address, errdefs.ErrAlreadyExists)
		}
		m.users++
		d.mu.Unlock()
		<-m.ready
		if m.err != nil {
			return "", errors.Join(m.err, d.unmount(want.Address))
		}
		return m.path, nil
	}
	m = &disk{address: want.Address, readonly: want.Readonly, number: d.free(), users: 1, ready: make(chan struct{})}
	m.path = filepath.Join(d.dir, strconv.Itoa(m.number))
	d.mounted[want.Address], d.used[m.number] = m, true
	d.mu.Unlock()

	m.err = d.attach(m, want.Fstype, flags, options)
	close(m.ready)
	if m.err != nil {
		return "", errors.Join(m.err, d.unmount(want.Address))
	}
	return m.path, nil
}

// free returns a number that no mount point has. The caller holds mu.
func (d *disks) free() int {
	n := 0
	for d.used[n] {
		n++
	}
	return n
}

func diskOptions(want *guestapi.Disk) (flags uintptr, options string, err error) {
	switch want.GetFstype() {
	case "erofs":
		if !want.Readonly {
			return 0, "", fmt.Errorf("disk %s: erofs is read-only: %w", want.Address, errdefs.ErrInvalidArgument)
		}
		return unix.MS_RDONLY | unix.MS_NOATIME, "", nil
	case "ext4":
		if want.Readonly {
			return unix.MS_RDONLY | unix.MS_NOATIME, "norecovery", nil
		}
		return unix.MS_NOATIME, "discard", nil
	}
	return 0, "", fmt.Errorf("disk %s: file system %q: %w", want.GetAddress(), want.GetFstype(), errdefs.ErrInvalidArgument)
}

func (d *disks) attach(m *disk, fstype string, flags uintptr, options string) error {
	node, err := d.scsi.findDisk(d.devices, m.address)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(m.path, 0o755); err != nil {
		return fmt.Errorf("making the mount point of disk %s: %w", m.address, err)
	}
	if err := unix.Mount(node, m.path, fstype, flags, options); err != nil {
		os.Remove(m.path)
		return fmt.Errorf("mounting disk %s (%s): %w", m.address, fstype, err)
	}
	return nil
}

// unmount takes back one mount. With the last one the kernel forgets the disk.
func (d *disks) unmount(address string) error {
	d.mu.Lock()
	m := d.mounted[address]
	if m == nil {
		d.mu.Unlock()
		return nil
	}
	if m.users--; m.users > 0 {
		d.mu.Unlock()
		return nil
	}
	d.mu.Unlock()
	<-m.ready
	var err error
	if m.err == nil {
		err = errors.Join(unmount(m.path), d.scsi.release(address))
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.mounted, address)
	delete(d.used, m.number)
	return err
}

// unmountTimeout is how long a mount may be busy: processes that were killed may still be on their way out.
const unmountTimeout = 5 * time.Second

// unmount unmounts a mount point and removes it. What stays busy is detached, and goes when its last user does.
func unmount(path string) error {
	for deadline := time.Now().Add(unmountTimeout); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
		if err == nil || err == unix.EINVAL || err == unix.ENOENT { // not mounted: done
			break
		}
		if err != unix.EBUSY {
			return fmt.Errorf("unmounting %s: %w", path, err)
		}
		if time.Now().After(deadline) {
			if err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil {
				return fmt.Errorf("detaching %s: %w", path, err)
			}
			break
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the mount point: %w", err)
	}
	return nil
}
