package vmmtest

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/vmm"
)

// Fake is a [vmm.Driver] whose VMs live in memory: no kernel boots, a function plays the guest. It keeps the whole
// contract of the seam and passes the conformance suite, so code above the seam can be tested with it as with the real
// thing. Its VMs have no process of their own: they don't implement [vmm.Process], and [vmm.Stats.PID] is 0.
type Fake struct {
	serve func(net.Conn, *FakeGuest)

	// Fail, if set before the first Start, is asked before every operation ("start", "add-disk", "remove-disk") on the VM of
	// that id; an error from it is what the operation returns.
	Fail func(operation, id string) error

	mu  sync.Mutex
	vms []*fakeVM // those that run
}

// FakeGuest is what the function playing the guest can see and do besides its connection.
type FakeGuest struct{ vm *fakeVM }

// FakeDisk is a disk as the guest of a [Fake] sees it.
type FakeDisk struct {
	// File is the driver's own duplicate; it is closed when the disk is removed.
	File     *os.File
	ReadOnly bool
}

type fakeVM struct {
	fake *Fake
	spec vmm.Spec
	host net.Conn // the end that Dial gives away
	peer net.Conn // the guest's end

	ended  chan struct{} // closed when the VM has ended
	served chan struct{} // closed when the serve function has returned

	mu     sync.Mutex
	dialed bool
	over   bool  // the VM has ended
	reason error // why; nil when stopped
	next   int   // LUN that is tried next
	disks  map[vmm.Address]FakeDisk

	console string // its last consoleSize bytes
}

const consoleSize = 64 << 10

// fakeLUNs is how many disks a fake VM can have at once.
const fakeLUNs = 255

// NewFake returns a driver whose VMs run serve with the guest's end of Dial's connection, each in a goroutine of its own,
// from Start on. The connection is closed when the VM ends, and serve must return then; Stop waits for it. When serve
// returns earlier the VM stays up, as a guest does whose agent has closed the channel.
func NewFake(serve func(conn net.Conn)) *Fake {
	return NewFakeGuest(func(conn net.Conn, _ *FakeGuest) { serve(conn) })
}

// NewFakeGuest is NewFake for guests that look at their disks or crash.
func NewFakeGuest(serve func(conn net.Conn, guest *FakeGuest)) *Fake {
	return &Fake{serve: serve}
}

// Start implements [vmm.Driver]. It looks at the Spec only; kernel and initramfs needn't exist.
func (f *Fake) Start(ctx context.Context, spec vmm.Spec) (vmm.VM, error) {
	if err := spec.Validate(); err != nil {
		return nil, fmt.Errorf("start VM %s: %w", spec.ID, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start VM %s: %w", spec.ID, err)
	}
	if err := f.fail("start", spec.ID); err != nil {
		return nil, err
	}
	vm := &fakeVM{
		fake:   f,
		spec:   spec,
		ended:  make(chan struct{}),
		served: make(chan struct{}),
		disks:  make(map[vmm.Address]FakeDisk),

		console: "this guest is a fake\n",
	}
	vm.host, vm.peer = net.Pipe()
	f.mu.Lock()
	f.vms = append(f.vms, vm)
	f.mu.Unlock()
	go func() {
		defer close(vm.served)
		f.serve(vm.peer, &FakeGuest{vm: vm})
	}()
	return vm, nil
}

// Kill ends the running VM of that id as if its process had been killed from outside. An unknown id is ErrNotFound.
func (f *Fake) Kill(id string) error {
	vm, err := f.find(id)
	if err != nil {
		return err
	}
	vm.end(fmt.Errorf("VM %s: the VMM was ended by signal killed: %w", id, errdefs.ErrUnavailable))
	return nil
}

// Running returns the ids of the VMs that run, in the order of their start.
func (f *Fake) Running() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	ids := make([]string, 0, len(f.vms))
	for _, vm := range f.vms {
		ids = append(ids, vm.spec.ID)
	}
	return ids
}

// Spec returns what the running VM of that id was started with.
func (f *Fake) Spec(id string) (vmm.Spec, error) {
	vm, err := f.find(id)
	if err != nil {
		return vmm.Spec{}, err
	}
	return vm.spec, nil
}

// Disks returns the disks of the running VM of that id.
func (f *Fake) Disks(id string) (map[vmm.Address]FakeDisk, error) {
	vm, err := f.find(id)
	if err != nil {
		return nil, err
	}
	return (&FakeGuest{vm: vm}).Disks(), nil
}

func (f *Fake) find(id string) (*fakeVM, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, vm := range f.vms {
		if vm.spec.ID == id {
			return vm, nil
		}
	}
	return nil, fmt.Errorf("VM %s: %w", id, errdefs.ErrNotFound)
}

func (f *Fake) fail(operation, id string) error {
	if f.Fail == nil {
		return nil
	}
	return f.Fail(operation, id)
}

// Disks returns the disks that are attached now.
func (g *FakeGuest) Disks() map[vmm.Address]FakeDisk {
	g.vm.mu.Lock()
	defer g.vm.mu.Unlock()
	return maps.Clone(g.vm.disks)
}

// Print adds to what the VM's ConsoleTail returns.
func (g *FakeGuest) Print(text string) {
	g.vm.mu.Lock()
	defer g.vm.mu.Unlock()
	g.vm.console += text
	g.vm.console = g.vm.console[max(0, len(g.vm.console)-consoleSize):]
}

// Panic ends the VM the way a crash of the guest's kernel does.
func (g *FakeGuest) Panic() {
	g.vm.end(fmt.Errorf("VM %s: guest kernel panicked or rebooted: %w", g.vm.spec.ID, errdefs.ErrUnavailable))
}

// Dial implements [vmm.VM].
func (vm *fakeVM) Dial(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("dial VM %s: %w", vm.spec.ID, err)
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.over {
		return nil, vm.gone("dial")
	}
	if vm.dialed {
		return nil, fmt.Errorf("dial VM %s: the agent's channel is taken: %w", vm.spec.ID, errdefs.ErrFailedPrecondition)
	}
	vm.dialed = true
	return vm.host, nil
}

// AddDisk implements [vmm.VM].
func (vm *fakeVM) AddDisk(ctx context.Context, disk vmm.Disk) (vmm.Address, error) {
	if err := checkDisk(disk); err != nil {
		return "", fmt.Errorf("add disk to VM %s: %w", vm.spec.ID, err)
	}
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("add disk to VM %s: %w", vm.spec.ID, err)
	}
	if err := vm.fake.fail("add-disk", vm.spec.ID); err != nil {
		return "", err
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.over {
		return "", vm.gone("add disk to")
	}
	at, err := vm.freeAddress()
	if err != nil {
		return "", err
	}
	fd, err := unix.FcntlInt(disk.File.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return "", fmt.Errorf("add disk to VM %s: duplicate descriptor of %s: %w", vm.spec.ID, disk.File.Name(), err)
	}
	vm.disks[at] = FakeDisk{File: os.NewFile(uintptr(fd), disk.File.Name()), ReadOnly: disk.ReadOnly}
	return at, nil
}

// freeAddress gives addresses away round-robin, as drivers do. vm.mu is held.
func (vm *fakeVM) freeAddress() (vmm.Address, error) {
	for range fakeLUNs {
		at := address(vm.next)
		vm.next = (vm.next + 1) % fakeLUNs
		if _, taken := vm.disks[at]; !taken {
			return at, nil
		}
	}
	return "", fmt.Errorf("add disk to VM %s: it has %d disks already: %w", vm.spec.ID, fakeLUNs, errdefs.ErrResourceExhausted)
}

// RemoveDisk implements [vmm.VM].
func (vm *fakeVM) RemoveDisk(ctx context.Context, at vmm.Address) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("remove disk %s of VM %s: %w", at, vm.spec.ID, err)
	}
	if err := vm.fake.fail("remove-disk", vm.spec.ID); err != nil {
		return err
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.over {
		return vm.gone("remove disk of")
	}
	disk, ok := vm.disks[at]
	if !ok {
		return fmt.Errorf("remove disk %s of VM %s: %w", at, vm.spec.ID, errdefs.ErrNotFound)
	}
	delete(vm.disks, at)
	return disk.File.Close()
}

// Wait implements [vmm.VM].
func (vm *fakeVM) Wait(ctx context.Context) error {
	select {
	case <-vm.ended:
		return vm.reason
	case <-ctx.Done():
		return fmt.Errorf("wait for VM %s: %w", vm.spec.ID, ctx.Err())
	}
}

// Stop implements [vmm.VM].
func (vm *fakeVM) Stop(ctx context.Context) error {
	vm.end(nil)
	select {
	case <-vm.served:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop VM %s: %w", vm.spec.ID, ctx.Err())
	}
}

// Stats implements [vmm.VM].
func (vm *fakeVM) Stats(context.Context) (vmm.Stats, error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.over {
		return vmm.Stats{}, vm.gone("read stats of")
	}
	return vmm.Stats{PrivateBytes: vm.spec.MemoryBytes / 4}, nil
}

// ConsoleTail implements [vmm.Console].
func (vm *fakeVM) ConsoleTail() string {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return vm.console
}

// end ends the VM once, with the reason that Wait returns.
func (vm *fakeVM) end(reason error) {
	vm.mu.Lock()
	if vm.over {
		vm.mu.Unlock()
		return
	}
	vm.over, vm.reason = true, reason
	for _, disk := range vm.disks {
		disk.File.Close()
	}
	clear(vm.disks)
	vm.mu.Unlock()

	vm.peer.Close()
	vm.fake.mu.Lock()
	vm.fake.vms = slices.DeleteFunc(vm.fake.vms, func(other *fakeVM) bool { return other == vm })
	vm.fake.mu.Unlock()
	close(vm.ended)
}

func (vm *fakeVM) gone(doing string) error {
	return fmt.Errorf("%s VM %s: it has ended: %w", doing, vm.spec.ID, errdefs.ErrUnavailable)
}

func address(lun int) vmm.Address { return vmm.Address("scsi:" + strconv.Itoa(lun)) }

func parseAddress(at vmm.Address) (lun int, err error) {
	number, ok := strings.CutPrefix(string(at), "scsi:")
	if lun, err = strconv.Atoi(number); !ok || err != nil {
		return 0, fmt.Errorf("address %q is not scsi:LUN", at)
	}
	return lun, nil
}

// checkDisk refuses what can't be a raw image.
func checkDisk(disk vmm.Disk) error {
	if disk.File == nil {
		return fmt.Errorf("no file: %w", errdefs.ErrInvalidArgument)
	}
	info, err := disk.File.Stat()
	if err != nil {
		return fmt.Errorf("look at %s: %w", disk.File.Name(), err)
	}
	if mode := info.Mode(); !mode.IsRegular() && mode.Type() != os.ModeDevice {
		return fmt.Errorf("%s is %s, neither a regular file nor a block device: %w", disk.File.Name(), mode, errdefs.ErrInvalidArgument)
	}
	if disk.ReadOnly {
		return nil
	}
	flags, err := unix.FcntlInt(disk.File.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return fmt.Errorf("look at %s: %w", disk.File.Name(), err)
	}
	if flags&unix.O_ACCMODE != unix.O_RDWR {
		return fmt.Errorf("%s is not open for reading and writing: %w", disk.File.Name(), errdefs.ErrInvalidArgument)
	}
	return nil
}
