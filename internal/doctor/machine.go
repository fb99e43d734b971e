package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/config"
	"bulkhead.dev/bulkhead/internal/guestimage"
	"bulkhead.dev/bulkhead/internal/sandbox/sizing"
	"bulkhead.dev/bulkhead/internal/vmm"
)

// NotIsolation is said wherever emulation is reported.
const NotIsolation = "THIS IS NOT ISOLATION: emulation is no security boundary; run only code you trust"

// acceleration asks for the truth about KVM: a guest is booted, because /dev/kvm can be there and not run one. Bootable says
// that there is a VMM and a guest for that.
func (h Host) acceleration(ctx context.Context, bootable bool) (check Check, isolation string) {
	const name = "kvm"
	if !bootable {
		return missing(name, "not known: only a guest that boots can tell", "repair qemu and guest image, then run this again"), IsolationNone
	}
	fix := `run on a machine with VT-x or AMD-V turned on in the firmware, or in a VM with nested virtualization; ` +
		`"modprobe kvm_intel" or "modprobe kvm_amd" loads the driver`
	acceleration, warning, err := h.Accelerate(ctx)
	switch {
	case err != nil:
		return missing(name, err.Error(), fix), IsolationNone
	case acceleration == vmm.Hardware:
		return ok(name, "a guest booted with hardware virtualization"), string(vmm.Hardware)
	case h.Config.VMM.Acceleration == config.AccelerationEmulated:
		return warn(name, NotIsolation+". vmm.acceleration of the configuration asks for it",
			`set vmm.acceleration = "hardware" in `+config.DefaultPath), string(vmm.Emulated)
	}
	if warning == "" {
		warning = "no guest boots with hardware virtualization"
	}
	return warn(name, NotIsolation+". "+warning, fix), string(vmm.Emulated)
}

func (h Host) user(context.Context) Check {
	if h.UID == 0 {
		return ok("user", "root")
	}
	return missing("user", fmt.Sprintf("uid %d: not everything could be looked at, and pods are run by root", h.UID), "sudo bulkhead doctor")
}

// versionPattern finds a version in what a program prints.
var versionPattern = regexp.MustCompile(`\d+\.\d+(\.\d+)?([-+~][0-9A-Za-z.+~-]+)?`)

// version runs a program that prints its version, and gives that.
func (h Host) version(ctx context.Context, program string, args ...string) (string, error) {
	out, err := h.Run(ctx, program, args...)
	if version := versionPattern.FindString(string(out)); version != "" {
		return version, nil // some programs exit with 1 after it
	}
	if err != nil {
		return "", fmt.Errorf("%s doesn't run: %w", program, err)
	}
	return "", fmt.Errorf("%s says no version", program)
}

// atLeast compares the first two numbers of a version.
func atLeast(version string, major, minor int) bool {
	var a, b int
	if _, err := fmt.Sscanf(version, "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}

// qemuMajor and qemuMinor are the oldest QEMU that this project is tested with.
const qemuMajor, qemuMinor = 7, 2

func (h Host) vmm(ctx context.Context) Check {
	const name = "qemu"
	fix := "apt-get install qemu-system-x86 (or qemu-system-arm), or set vmm.binary in " + config.DefaultPath
	program := h.Config.VMM.Binary
	if program == "" {
		var err error
		for _, candidate := range []string{"qemu-system-" + qemuArch, "/usr/libexec/qemu-kvm"} {
			if program, err = h.LookPath(candidate); err == nil {
				break
			}
		}
		if err != nil {
			return missing(name, "qemu-system-"+qemuArch+" is not on the PATH", fix)
		}
	}
	version, err := h.version(ctx, program, "--version")
	if err != nil {
		return missing(name, err.Error(), fix)
	}
	if !atLeast(version, qemuMajor, qemuMinor) {
		return warn(name, fmt.Sprintf("%s %s", program, version), fmt.Sprintf("install QEMU %d.%d or newer: older ones are not tested", qemuMajor, qemuMinor))
	}
	return ok(name, fmt.Sprintf("%s %s", program, version))
}

func (h Host) guestImage(context.Context) Check {
	const name = "guest image"
	fix := "bulkhead guest build"
	img, err := guestimage.Find(h.Config)
	if err == nil {
		err = img.Verify()
	}
	if err != nil {
		return missing(name, err.Error(), fix)
	}
	if img.Dir == "" {
		return ok(name, fmt.Sprintf("own: kernel %s, initramfs %s", img.Kernel, img.Initramfs))
	}
	return ok(name, fmt.Sprintf("kernel %s in %s", img.Manifest.KernelVersion, img.Dir))
}

// roomForPod is what a pod takes besides its VM's memory: the VMM's own, and the shim.
const roomForPod = 128 << 20

func (h Host) memory(context.Context) Check {
	const name = "memory"
	available, err := h.memAvailable()
	if err != nil {
		return warn(name, err.Error(), "see whether /proc is mounted")
	}
	lower := "set sandbox.default_memory lower in " + config.DefaultPath
	if h.Config.Sandbox.Profile == config.ProfileAKS {
		lower = `set sandbox.profile = "standard" in ` + config.DefaultPath
	}
	size, err := sizing.Compute(sizing.Profile(h.Config.Sandbox.Profile), nil, sizing.Inputs{
		DefaultMemoryBytes: h.Config.Sandbox.DefaultMemory, DefaultVCPUs: h.Config.Sandbox.DefaultVCPUs, ScratchBytes: h.Config.Sandbox.ScratchSize,
	})
	if err != nil {
		return missing(name, err.Error(), lower)
	}
	need := size.MemoryBytes + roomForPod
	found := fmt.Sprintf("%d MiB available, %d for one pod without limits: a VM of %d, its VMM and shim", available>>20, need>>20, size.MemoryBytes>>20)
	switch {
	case available < need:
		return missing(name, found, "free memory, or "+lower)
	case available < 4*need:
		return warn(name, found, "a node for sandboxed pods wants more memory")
	}
	return ok(name, found)
}

func (h Host) memAvailable() (int64, error) {
	f, err := os.Open(h.path("/proc/meminfo"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) >= 2 && fields[0] == "MemAvailable:" {
			kib, err := strconv.ParseInt(fields[1], 10, 64)
			return kib << 10, err
		}
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}

// Room for converted layers and scratch disks.
const (
	diskLow  = 512 << 20
	diskFine = 5 << 30
)

func (h Host) disk(context.Context) Check {
	const name = "disk"
	free, err := h.FreeBytes(h.Config.StateDir)
	if err != nil {
		return warn(name, err.Error(), "see whether state_dir of "+config.DefaultPath+" is right")
	}
	found := fmt.Sprintf("%d MiB free for %s", free>>20, h.Config.StateDir)
	fix := "free space, or move state_dir in " + config.DefaultPath
	switch {
	case free < diskLow:
		return missing(name, found, fix)
	case free < diskFine:
		return warn(name, found, fix)
	}
	return ok(name, found)
}

// freeBytes looks at the nearest parent that exists: the state directory is made by whoever first needs it.
func freeBytes(path string) (int64, error) {
	for {
		var stat unix.Statfs_t
		err := unix.Statfs(path, &stat)
		if err == nil {
			return int64(stat.Bavail) * int64(stat.Bsize), nil
		}
		if !errors.Is(err, fs.ErrNotExist) || path == filepath.Dir(path) {
			return 0, fmt.Errorf("look at the file system of %s: %w", path, err)
		}
		path = filepath.Dir(path)
	}
}

func (h Host) cgroup(context.Context) Check {
	const name = "cgroup"
	need := []string{"cpu", "memory", "pids"}
	if data, err := os.ReadFile(h.path("/sys/fs/cgroup/cgroup.controllers")); err == nil {
		have := strings.Fields(string(data))
		if lacking := without(need, have); len(lacking) > 0 {
			return missing(name, "v2 without "+strings.Join(lacking, ", "), "turn these controllers on (cgroup_enable=memory on the kernel's command line for memory)")
		}
		return ok(name, "v2")
	}
	var have []string
	for _, controller := range need {
		if _, err := os.Stat(h.path("/sys/fs/cgroup/" + controller)); err == nil {
			have = append(have, controller)
		}
	}
	if lacking := without(need, have); len(lacking) > 0 {
		return missing(name, "neither v2 nor v1 with "+strings.Join(lacking, ", "), "mount -t cgroup2 cgroup2 /sys/fs/cgroup")
	}
	return warn(name, "v1, which Kubernetes is giving up", "boot with systemd.unified_cgroup_hierarchy=1 for v2")
}

func without(list, remove []string) (rest []string) {
	for _, s := range list {
		found := false
		for _, r := range remove {
			found = found || s == r
		}
		if !found {
			rest = append(rest, s)
		}
	}
	return rest
}

func (h Host) tun(context.Context) Check {
	const name, device = "tun", "/dev/net/tun"
	f, err := os.OpenFile(h.path(device), os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return missing(name, "no permission to open "+device, "run as root")
	case err != nil:
		return missing(name, err.Error(), "modprobe tun")
	}
	f.Close()
	return ok(name, device)
}

func (h Host) trafficControl(ctx context.Context) Check {
	const name = "tc"
	if h.UID != 0 {
		return warn(name, "not looked at: it needs root", "sudo bulkhead doctor")
	}
	if err := h.TrafficControl(ctx); err != nil {
		return missing(name, err.Error(), "modprobe -a sch_ingress cls_u32 act_mirred, or a kernel with CONFIG_NET_SCH_INGRESS, CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED")
	}
	return ok(name, "ingress, u32 and mirred redirect to a tap")
}

func (h Host) overlay(context.Context) Check {
	return h.fileSystem("overlay", "overlayfs", Missing, "containerd's default snapshotter needs it")
}

func (h Host) fuse(context.Context) Check {
	return h.fileSystem("fuse", "fuse", Warn, "only programs of this host need it; the guest has its own")
}

func (h Host) erofs(context.Context) Check {
	return h.fileSystem("erofs", "erofs", Warn, "only containerd's erofs snapshotter needs it; the guest has its own")
}

// fileSystem looks whether the kernel has a file system, or a module for it.
func (h Host) fileSystem(name, dir string, status Status, why string) Check {
	if data, err := os.ReadFile(h.path("/proc/filesystems")); err == nil {
		for line := range strings.Lines(string(data)) {
			if fields := strings.Fields(line); len(fields) > 0 && fields[len(fields)-1] == name {
				return ok(name, "in the running kernel")
			}
		}
	}
	release, _ := os.ReadFile(h.path("/proc/sys/kernel/osrelease"))
	modules := filepath.Join(h.path("/lib/modules"), filepath.Base(strings.TrimSpace(string(release))), "modules.dep")
	if data, err := os.ReadFile(modules); err == nil && strings.Contains(string(data), "/"+dir+"/"+name+".ko") {
		return ok(name, "as a module, loaded when it is used")
	}
	return Check{Name: name, Status: status, Found: "the kernel doesn't have it: " + why, Fix: "modprobe " + name}
}

func (h Host) mkfsExt4(ctx context.Context) Check {
	const name, fix = "mkfs.ext4", "apt-get install e2fsprogs"
	program, err := h.LookPath(name)
	if err != nil {
		return missing(name, "not on the PATH: it makes the disks that pods write to", fix)
	}
	version, err := h.version(ctx, program, "-V")
	if err != nil {
		return missing(name, err.Error(), fix)
	}
	return ok(name, version)
}
