package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/vmm"
)

const (
	// firstLUN to lastLUN are given away. LUN 0 is what a guest asks for a list of the others, and above 255 the ways of
	// writing a LUN differ between the two sides' logs.
	firstLUN = 1
	lastLUN  = 255
	// removePatience bounds the wait for a device's end. QEMU needs no guest for it.
	removePatience = 30 * time.Second
	// undoPatience bounds what must be done although the caller has gone.
	undoPatience = 10 * time.Second
)

// disks knows which LUNs are in use.
type disks struct {
	mu    sync.Mutex
	last  int                // the LUN that was given away last
	count int                // of disks ever added: it makes names unique
	byLUN map[int]*diskState // present while the LUN is in use
}

// diskState is what has been made for a disk so far, for undoing it.
type diskState struct {
	name    string // of the device and the block node
	fdset   int64
	hasFD   bool
	hasNode bool
	hasDisk bool

	// Guarded by disks.mu; the others belong to the one call that adds or removes the disk.
	ready    bool // AddDisk has returned it
	removing bool // a RemoveDisk is at work
}

// AddDisk implements [vmm.VM].
func (vm *machine) AddDisk(ctx context.Context, disk vmm.Disk) (vmm.Address, error) {
	file, driver, err := openForVMM(disk)
	if err != nil {
		return "", fmt.Errorf("add disk to VM %s: %w", vm.id, err)
	}
	defer file.Close()
	if vm.over() {
		return "", vm.gone("add disk to")
	}
	lun, state, err := vm.disks.take()
	if err != nil {
		return "", fmt.Errorf("add disk to VM %s: %w", vm.id, err)
	}
	if err := vm.attach(ctx, lun, state, file, driver, disk.ReadOnly); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoPatience)
		defer cancel()
		if undoErr := vm.detach(undo, state); undoErr == nil {
			vm.disks.give(lun)
		} // else the LUN stays taken: nobody knows what is there
		if vm.over() {
			return "", vm.gone("add disk to")
		}
		return "", fmt.Errorf("add disk to VM %s: %w", vm.id, err)
	}
	vm.disks.set(state, true, false)
	return vmm.Address("scsi:" + strconv.Itoa(lun)), nil
}

// openForVMM duplicates the disk's descriptor, with no more rights than the VMM shall have, and names the block driver.
func openForVMM(disk vmm.Disk) (file *os.File, driver string, err error) {
	if disk.File == nil {
		return nil, "", fmt.Errorf("no file: %w", errdefs.ErrInvalidArgument)
	}
	name := disk.File.Name()
	info, err := disk.File.Stat()
	if err != nil {
		return nil, "", fmt.Errorf("look at %s: %w", name, err)
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		driver = "file"
	case mode.Type() == os.ModeDevice:
		driver = "host_device"
	default:
		return nil, "", fmt.Errorf("%s is %s, neither a regular file nor a block device: %w", name, mode, errdefs.ErrInvalidArgument)
	}
	// A raw descriptor, once: Fd would make the file blocking, which is the caller's business.
	control, err := disk.File.SyscallConn()
	if err != nil {
		return nil, "", fmt.Errorf("look at %s: %w", name, err)
	}
	controlErr := control.Control(func(fd uintptr) { file, err = duplicate(int(fd), name, disk.ReadOnly) })
	if err := errors.Join(controlErr, err); err != nil {
		return nil, "", err
	}
	return file, driver, nil
}

func duplicate(fd int, name string, readOnly bool) (*os.File, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", name, err)
	}
	access := flags & unix.O_ACCMODE
	switch {
	case !readOnly && access != unix.O_RDWR:
		return nil, fmt.Errorf("%s is not open for reading and writing: %w", name, errdefs.ErrInvalidArgument)
	case readOnly && access != unix.O_RDONLY:
		// Opened anew, because a duplicate could write, whatever the VMM is told.
		fd, err = unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	default:
		fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	}
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor of %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// attach gives QEMU the descriptor, makes a block node of it, and plugs a disk in. State follows how far it came: a step that
// was sent counts, whatever became of it.
func (vm *machine) attach(ctx context.Context, lun int, state *diskState, file *os.File, driver string, readOnly bool) error {
	var added struct {
		FDSet int64 `json:"fdset-id"`
	}
	if err := vm.qmp.execute(ctx, "add-fd", nil, file, &added); err != nil {
		return err
	}
	state.fdset, state.hasFD = added.FDSet, true

	discard := "unmap"
	if readOnly {
		discard = "ignore"
	}
	node := map[string]any{
		"driver":    "raw",
		"node-name": state.name,
		"read-only": readOnly,
		"discard":   discard,
		"file": map[string]any{
			"driver":    driver,
			"filename":  "/dev/fdset/" + strconv.FormatInt(added.FDSet, 10),
			"read-only": readOnly,
			"discard":   discard,
			"aio":       "threads",
			// Layers are shared by many VMs: no VMM may lock another one out.
			"locking": "off",
		},
	}
	state.hasNode = true
	if err := vm.qmp.execute(ctx, "blockdev-add", node, nil, nil); err != nil {
		return err
	}
	device := map[string]any{
		"driver":        "scsi-hd",
		"id":            state.name,
		"drive":         state.name,
		"bus":           scsiBus,
		"channel":       0,
		"scsi-id":       0,
		"lun":           lun,
		"rotation_rate": 1, // none: not a disk that turns
	}
	state.hasDisk = true
	return vm.qmp.execute(ctx, "device_add", device, nil, nil)
}

// detach undoes what attach has made. It may be called again when it couldn't. What QEMU doesn't know is undone.
func (vm *machine) detach(ctx context.Context, state *diskState) error {
	if state.hasDisk {
		deleted, forget := vm.qmp.expectDeleted(state.name)
		defer forget()
		err := vm.qmp.execute(ctx, "device_del", map[string]any{"id": state.name}, nil, nil)
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		if err == nil {
			select {
			case <-deleted:
			case <-vm.qmp.done:
				return vm.qmp.over()
			case <-ctx.Done():
				return fmt.Errorf("wait for the end of the device: %w", ctx.Err())
			}
		}
		state.hasDisk = false
	}
	if state.hasNode {
		err := vm.qmp.execute(ctx, "blockdev-del", map[string]any{"node-name": state.name}, nil, nil)
		if err != nil && !vm.lacksNode(ctx, state.name) {
			return err
		}
		state.hasNode = false
	}
	if state.hasFD {
		if err := vm.qmp.execute(ctx, "remove-fd", map[string]any{"fdset-id": state.fdset}, nil, nil); err != nil {
			return err
		}
		state.hasFD = false
	}
	return nil
}

// lacksNode says whether QEMU answers that there is no such block node; its error for a missing one has no class of its own.
func (vm *machine) lacksNode(ctx context.Context, name string) bool {
	var nodes []struct {
		Name string `json:"node-name"`
	}
	if err := vm.qmp.execute(ctx, "query-named-block-nodes", map[string]any{"flat": true}, nil, &nodes); err != nil {
		return false
	}
	for _, node := range nodes {
		if node.Name == name {
			return false
		}
	}
	return true
}

// RemoveDisk implements [vmm.VM].
func (vm *machine) RemoveDisk(ctx context.Context, at vmm.Address) error {
	if vm.over() {
		return vm.gone("remove disk of")
	}
	lun, state, err := vm.disks.find(at)
	if err != nil {
		return fmt.Errorf("remove disk %s of VM %s: %w", at, vm.id, err)
	}
	ctx, cancel := context.WithTimeout(ctx, removePatience)
	defer cancel()
	if err := vm.detach(ctx, state); err != nil {
		vm.disks.set(state, true, false)
		if vm.over() {
			return vm.gone("remove disk of")
		}
		return fmt.Errorf("remove disk %s of VM %s: %w", at, vm.id, err)
	}
	vm.disks.give(lun)
	return nil
}

// take reserves a LUN, the one that was free for longest as far as can be told: guests remember a disk's properties for a
// while after its end.
func (d *disks) take() (int, *diskState, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.byLUN == nil {
		d.byLUN, d.last = make(map[int]*diskState), lastLUN
	}
	for range lastLUN - firstLUN + 1 {
		d.last++
		if d.last > lastLUN {
			d.last = firstLUN
		}
		if _, taken := d.byLUN[d.last]; !taken {
			d.count++
			state := &diskState{name: fmt.Sprintf("disk%d-%d", d.last, d.count)}
			d.byLUN[d.last] = state
			return d.last, state, nil
		}
	}
	return 0, nil, fmt.Errorf("it has %d disks already: %w", len(d.byLUN), errdefs.ErrResourceExhausted)
}

// give frees a LUN.
func (d *disks) give(lun int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.byLUN, lun)
}

// find reserves a disk for removing it.
func (d *disks) find(at vmm.Address) (int, *diskState, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for lun, state := range d.byLUN {
		if at == vmm.Address("scsi:"+strconv.Itoa(lun)) {
			if !state.ready || state.removing {
				break // not there yet, or not any more
			}
			state.removing = true
			return lun, state, nil
		}
	}
	return 0, nil, errdefs.ErrNotFound
}

func (d *disks) set(state *diskState, ready, removing bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	state.ready, state.removing = ready, removing
}
