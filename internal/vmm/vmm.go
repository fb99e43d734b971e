// Package vmm is the seam between a pod's sandbox and the virtual machine monitor that runs it.
//
// A [Driver] starts one VM per pod, as one process. The sandbox hands it plain data and open descriptors; it gets back a
// [VM] with the byte stream to the guest's agent, hot-added disks, and the VM's end. Nothing here needs virtio-fs or
// vhost-vsock, so that small VMMs can be drivers too. Package vmmtest holds the conformance suite that every driver and
// the in-memory [vmmtest.Fake] pass; package qemu holds the first driver.
//
// Errors are of the classes of github.com/containerd/errdefs: ErrInvalidArgument for a Spec that can't be, ErrFailedPrecondition
// for what this host lacks (with what to do about it in the text), ErrUnavailable once the VM has ended.
package vmm

import (
	"context"
	"net"
	"os"
)

// Acceleration says what runs the guest's instructions.
type Acceleration string

const (
	// Hardware is virtualization by the processor (KVM): the wall this project promises.
	Hardware Acceleration = "hardware"
	// Emulated is translation in software. It works everywhere and is no security boundary: for development and CI.
	Emulated Acceleration = "emulated"
)

// Spec describes a VM that is to be started.
type Spec struct {
	// ID names the VM in logs and process titles: 1 to 64 characters of [a-zA-Z0-9_.-].
	ID string
	// VCPUs is the number of virtual processors, at least 1.
	VCPUs int
	// MemoryBytes is the guest's memory, a multiple of 1 MiB.
	MemoryBytes int64
	// Kernel and Initramfs are paths of files that the VMM's user can read.
	Kernel, Initramfs string
	// KernelArgs are appended to the driver's own kernel command line.
	KernelArgs []string
	// Acceleration is Hardware or Emulated, never empty: whoever starts a VM has decided.
	Acceleration Acceleration
	// NICs are the network devices, in order. Their descriptors stay the caller's; the driver duplicates what it needs.
	NICs []NIC
	// Jail confines the VMM process.
	Jail Jail
}

// NIC is a network device backed by an open tap.
type NIC struct {
	// Tap is an open tap device (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR).
	Tap *os.File
	// MAC is the address the guest sees.
	MAC net.HardwareAddr
	// MTU of the link, at least 68.
	MTU int
}

// Jail says where and as whom the VMM process lives.
type Jail struct {
	// UID and GID are the process's own ids; it has no supplementary groups and no capabilities.
	UID, GID uint32
	// Cgroup is the path of a cgroup relative to the hierarchy's root ("/kubepods/pod1/vm"), made by the caller in every
	// hierarchy; empty: the caller's own.
	Cgroup string
	// NetNS is the path of the network namespace to run in; empty: a new one with nothing in it.
	NetNS string
}

// Disk is a raw disk image that is to be attached.
type Disk struct {
	// File is the open image. The driver duplicates the descriptor; the caller may close its own afterwards.
	File *os.File
	// ReadOnly is enforced on the host, whatever the guest does.
	ReadOnly bool
}

// Address is where the guest finds a disk: "scsi:LUN".
type Address string

// Stats are figures of the VMM process, as the host sees it.
type Stats struct {
	// PID of the VMM process.
	PID int
	// PrivateBytes is memory of this process alone.
	PrivateBytes int64
}

// Driver starts VMs.
type Driver interface {
	// Start starts a VM and returns as soon as its process runs; the guest may still be booting. When it fails, nothing is
	// left of what it began. Cancelling ctx afterwards does not end the VM.
	Start(ctx context.Context, spec Spec) (VM, error)
}

// VM is a running virtual machine. Its methods may be called from several goroutines.
type VM interface {
	// Dial returns the byte stream to the guest's agent. There is one: a second call is ErrFailedPrecondition. Bytes written
	// before the guest listens are kept for it.
	Dial(ctx context.Context) (net.Conn, error)
	// AddDisk attaches a disk. The guest sees it a moment later.
	AddDisk(ctx context.Context, disk Disk) (Address, error)
	// RemoveDisk detaches what AddDisk attached; an unknown address is ErrNotFound. The guest must have stopped using it.
	RemoveDisk(ctx context.Context, at Address) error
	// Wait returns when the VM has ended, with nil if it was stopped and else with the reason. Every caller gets the same.
	Wait(ctx context.Context) error
	// Stop ends the VM at once and waits until its process is gone. It is idempotent; it doesn't ask the guest.
	Stop(ctx context.Context) error
	// Stats reads figures of the VMM process.
	Stats(ctx context.Context) (Stats, error)
}

// Console is implemented by VMs that keep what the guest's kernel printed.
type Console interface {
	// ConsoleTail returns the last part of it, at most 64 KiB. It is hostile input: escape it before showing it.
	ConsoleTail() string
}

// Process is implemented by VMs whose process another process must be able to find and end, after a crash of its parent.
type Process interface {
	// PID and the start time of that process (field 22 of /proc/PID/stat), which together name it for ever.
	PID() (pid int, startTime uint64)
}
