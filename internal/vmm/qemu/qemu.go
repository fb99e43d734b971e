// Package qemu is the VM driver for QEMU, version 7.2 or newer.
//
// Every VM is one QEMU process in a jail (package jail): a q35 machine that boots the kernel directly, with these devices
// and no others:
//
//	virtio-serial    one port, "bulkhead.agent": the agent's channel, a socket pair whose other end Dial returns
//	virtio-scsi      the disks, which come and go as LUNs of one target, without PCI hotplug
//	virtio-net       one per NIC, on the tap that the caller opened
//	virtio-rng       entropy
//	virtio-balloon   gives memory back that the guest has freed (free page reporting)
//	isa-serial       the kernel's console; its last 64 KiB are kept
//
// QEMU opens nothing itself but its own program, its firmware, the kernel and the initramfs. Control is QMP over another
// socket pair; disks are handed over it as descriptors, opened by the caller and put to use through /dev/fdset. A disk that is
// attached read-only is handed over as a descriptor that can't write.
//
// The kernel may be a bzImage or an uncompressed ELF image with a PVH note (vmlinux). The latter costs each VM some 30 MiB
// less: QEMU keeps a copy of a bzImage for good, but maps an ELF file from the page cache, and the guest doesn't unpack it.
//
// [Probe] finds out whether hardware acceleration works here, by booting a guest, and [Resolve] turns a configured mode into a
// decision.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/vmm"
	"bulkhead.dev/bulkhead/internal/vmm/jail"
)

const (
	// consoleSize is how much of the guest's console is kept.
	consoleSize = 64 << 10
	// outputSize is how much of what QEMU itself says is kept.
	outputSize = 8 << 10
	// startPatience bounds QEMU's own start. It takes some 0.1 s; a machine may be busy.
	startPatience = 60 * time.Second
)

// Options configure a driver.
type Options struct {
	// Binary is the path of QEMU's system emulator for this machine's architecture. Empty: it is searched for.
	Binary string
}

// Driver starts VMs with QEMU.
type Driver struct {
	binary string
}

// New returns a driver. Whether there is a QEMU is looked at when a VM is started.
func New(options Options) *Driver {
	return &Driver{binary: options.Binary}
}

// Start implements [vmm.Driver]. It needs root, for the jail.
func (d *Driver) Start(ctx context.Context, spec vmm.Spec) (vmm.VM, error) {
	if err := check(spec); err != nil {
		return nil, fmt.Errorf("start VM %s: %w", spec.ID, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start VM %s: %w", spec.ID, err)
	}
	vm, err := d.start(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("start VM %s: %w", spec.ID, err)
	}
	return vm, nil
}

func (d *Driver) start(ctx context.Context, spec vmm.Spec) (*machine, error) {
	binary, err := FindBinary(d.binary)
	if err != nil {
		return nil, err
	}
	for _, file := range []*string{&spec.Kernel, &spec.Initramfs} {
		// The jail shows the files themselves, so links to them lead nowhere.
		if *file, err = realFile(*file); err != nil {
			return nil, err
		}
	}
	channels, err := openChannels()
	if err != nil {
		return nil, err
	}
	fds := descriptors{qmp: jail.FirstFD, agent: jail.FirstFD + 1, console: jail.FirstFD + 2}
	files := slices.Clone(channels.theirs)
	for _, nic := range spec.NICs {
		fds.taps = append(fds.taps, jail.FirstFD+len(files))
		files = append(files, nic.Tap)
	}
	config := jail.Config{
		Path:        binary,
		Args:        append([]string{filepath.Base(binary)}, arguments(spec, fds)...),
		Env:         []string{"LC_ALL=C"},
		UID:         spec.Jail.UID,
		GID:         spec.Jail.GID,
		Cgroup:      spec.Jail.Cgroup,
		NetNS:       spec.Jail.NetNS,
		Root:        jailRoot(binary, spec.Kernel, spec.Initramfs),
		KVM:         spec.Acceleration == vmm.Hardware,
		NoHugePages: spec.Acceleration == vmm.Emulated,
	}
	process, err := jail.Start(ctx, config, channels.outputWriter, files)
	channels.closeTheirs()
	if err != nil {
		channels.closeOurs()
		return nil, err
	}
	vm := newMachine(spec.ID, process, channels)
	ready, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	if err := vm.qmp.negotiate(ready); err != nil {
		return nil, vm.abandon(err)
	}
	return vm, nil
}

// check finds what no VM of this driver can be.
func check(spec vmm.Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	var problem string
	switch {
	case spec.VCPUs > maxVCPUs:
		problem = fmt.Sprintf("%d vCPUs, more than %d", spec.VCPUs, maxVCPUs)
	case spec.Jail.UID == 0 || spec.Jail.GID == 0:
		problem = fmt.Sprintf("uid %d, gid %d: a VMM must not run as root", spec.Jail.UID, spec.Jail.GID)
	case commandLine(spec) > maxCommandLine:
		problem = fmt.Sprintf("a kernel command line of %d bytes, more than %d: the kernel would cut it off", commandLine(spec), maxCommandLine)
	case len(spec.NICs) > maxNICs:
		problem = fmt.Sprintf("%d NICs, more than %d", len(spec.NICs), maxNICs)
	default:
		return nil
	}
	return fmt.Errorf("%s: %w", problem, errdefs.ErrInvalidArgument)
}

// maxVCPUs is what a q35 machine can have without interrupt remapping.
const maxVCPUs = 255

// maxCommandLine is the kernel's COMMAND_LINE_SIZE on x86, without the final NUL.
const maxCommandLine = 2047

func commandLine(spec vmm.Spec) int {
	return len(strings.Join(append(kernelArguments(spec), spec.KernelArgs...), " "))
}

// maxNICs is how many devices the root bus has room for beside the others.
const maxNICs = 16

// FindBinary returns the path of QEMU's system emulator, without symbolic links. An empty name means the usual ones.
func FindBinary(name string) (string, error) {
	candidates := []string{name}
	if name == "" {
		candidates = []string{"qemu-system-x86_64", "/usr/libexec/qemu-kvm"}
	}
	for _, candidate := range candidates {
		path, err := exec.LookPath(candidate)
		if err != nil {
			continue
		}
		path, err = filepath.Abs(path)
		if err != nil {
			return "", fmt.Errorf("find QEMU: %w", err)
		}
		path, err = filepath.EvalSymlinks(path)
		if err != nil {
			return "", fmt.Errorf("find QEMU: %w", err)
		}
		return path, nil
	}
	return "", fmt.Errorf("QEMU is not installed (looked for %s): apt-get install qemu-system-x86: %w",
		strings.Join(candidates, ", "), errdefs.ErrFailedPrecondition)
}

func realFile(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", path, err)
	}
	resolved, err := filepath.EvalSymlinks(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("find %s: %w: %w", path, err, errdefs.ErrNotFound)
	}
	if err != nil {
		return "", fmt.Errorf("find %s: %w", path, err)
	}
	info, err := os.Stat(resolved)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", path, err)
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no regular file: %w", path, errdefs.ErrInvalidArgument)
	}
	return resolved, nil
}

// jailRoot is what QEMU sees of the host's files: the distribution's programs and libraries, QEMU's own directory if it is
// elsewhere, the kernel and the initramfs.
func jailRoot(binary, kernel, initramfs string) []string {
	root := []string{"/usr", "/bin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/ld.so.cache", "/etc/alternatives"}
	if !strings.HasPrefix(binary, "/usr/") {
		root = append(root, filepath.Dir(binary))
	}
	return append(root, kernel, initramfs)
}

// channels are the connections between this process and QEMU.
type channels struct {
	qmp, agent, console *net.UnixConn
	output              *os.File
	outputWriter        *os.File
	theirs              []*os.File // qmp, agent, console
}

func openChannels() (*channels, error) {
	c := &channels{}
	for _, ours := range []**net.UnixConn{&c.qmp, &c.agent, &c.console} {
		conn, file, err := socketPair()
		if err != nil {
			c.closeTheirs()
			c.closeOurs()
			return nil, err
		}
		*ours = conn
		c.theirs = append(c.theirs, file)
	}
	var err error
	if c.output, c.outputWriter, err = os.Pipe(); err != nil {
		c.closeTheirs()
		c.closeOurs()
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	return c, nil
}

func (c *channels) closeTheirs() {
	for _, file := range c.theirs {
		file.Close()
	}
	if c.outputWriter != nil {
		c.outputWriter.Close()
	}
}

func (c *channels) closeOurs() {
	for _, conn := range []*net.UnixConn{c.qmp, c.agent, c.console} {
		if conn != nil {
			conn.Close()
		}
	}
	if c.output != nil {
		c.output.Close()
	}
}

// socketPair returns a connection and the file of its other end.
func socketPair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	conn, err := net.FileConn(ours) // a duplicate
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	return conn.(*net.UnixConn), theirs, nil
}
