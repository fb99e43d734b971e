// Package sizing turns what a pod is allowed to use into the size of its VM. It is pure: annotations and numbers in,
// a [Size] or an error out.
//
// Where figures come from, strongest first:
//
//	bulkhead.dev/vcpus, bulkhead.dev/memory, bulkhead.dev/scratch-size     the pod's author, for the VM as such
//	io.kubernetes.cri.sandbox-{cpu-quota,cpu-period,memory}                the sum of the pod's limits, from the CRI
//	linux.resources of the OCI spec                                        a container that is no pod's (`ctr run`)
//	Inputs                                                                 the node's configuration
//
// and how a profile makes a VM of them, where x is the CPU limit and y the memory limit:
//
//	profile    without limits                     with limits
//	standard   default vCPUs, default + need      ceil(x) vCPUs, y + need
//	aks        1 vCPU, 2 GiB                      1 + ceil(x) vCPUs, 2 GiB + y
//
// need is what the guest takes for itself: [GuestNeed], and 1/64 of the memory for the kernel's array of pages, so that a container
// with the limit y can use y.
//
// A limit is an upper bound, and Kubernetes allows limits above what a node has. So a limit beyond the host's own
// processors or memory gives a VM as big as the host; the bound holds all the same. What the pod's author asks
// for the VM as such is exact: it is given or refused.
package sizing

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// Alignment of a VM's memory. The kernel's own memory blocks are 128 MiB on bigger machines only; 2 MiB is what huge pages need.
	Alignment = 2 << 20
	// GuestNeed is what the guest takes for itself beside the page array: kernel, agent, unpacked initramfs, and room to
	// start a process. Measured with the packaged kernel: of 192 MiB a container finds 124 available, of 324 MiB 250. So 66
	// are taken, and the rest is for what grows with use: sockets, dentries, page tables.
	GuestNeed = 96 << 20
	// MinimumLimit is the least memory limit with which a container can start at all.
	MinimumLimit = 4 << 20
	// MinimumMemory is the least memory of a VM. With 128 MiB the packaged kernel boots too, but takes twice the time.
	MinimumMemory = 160 << 20
	// MaximumMemory is what 40 bits of physical addresses reach, the least that processors (and the emulator) have.
	MaximumMemory = 1 << 40
	// MaximumVCPUs is the most that a machine without interrupt remapping can address.
	MaximumVCPUs = 240
	// MinimumScratch is the least size of a scratch disk: a journal and room for some files.
	MinimumScratch = 16 << 20
	// MaximumScratch is the most an ext4 image of 4 KiB blocks is made for here.
	MaximumScratch = 16 << 40

	aksMemory = 2 << 30
	aksVCPUs  = 1

	// defaultPeriod is the kernel's CFS period in µs, and minPeriod to maxPeriod what it accepts
	// (Documentation/scheduler/sched-bwc.rst).
	defaultPeriod = 100_000
	minPeriod     = 1_000
	maxPeriod     = 1_000_000
)

// Profile names a rule.
type Profile string

const (
	// Standard: the VM has what the pod may use, plus the guest's own need.
	Standard Profile = "standard"
	// AKS is the first rule of AKS Pod Sandboxing: 1 vCPU and 2 GB, plus what the pod may use.
	AKS Profile = "aks"
)

// Size is the size of a VM.
type Size struct {
	// VCPUs is at least 1.
	VCPUs int
	// MemoryBytes is the VM's memory, a multiple of Alignment.
	MemoryBytes int64
	// ScratchBytes is the size of each container's writable disk.
	ScratchBytes int64
}

// Inputs are the node's figures, and the limits of a container that is no pod's.
type Inputs struct {
	// DefaultMemoryBytes is what a pod without a memory limit may use, under Standard.
	DefaultMemoryBytes int64
	// DefaultVCPUs of a pod without a CPU limit, under Standard; 0: 1.
	DefaultVCPUs int
	// ScratchBytes is the default size of scratch disks.
	ScratchBytes int64
	// MaxVCPUs is the most that the driver can give; 0: MaximumVCPUs. More is an error.
	MaxVCPUs int
	// HostVCPUs and HostMemoryBytes are what the host has; 0: unknown. Limits beyond are cut to it.
	HostVCPUs       int
	HostMemoryBytes int64
	// Resources of the OCI spec, for a container without CRI annotations; may be nil.
	Resources *specs.LinuxResources
}

// Compute returns the size of the VM for a pod with these annotations. profile is the node's default ("" is Standard), which
// the annotation bulkhead.dev/profile overrides. A value that can't be honoured is an ErrInvalidArgument that names
// the annotation and the value.
func Compute(profile Profile, annotations map[string]string, in Inputs) (Size, error) {
	own, err := parseOwn(annotations)
	if err != nil {
		return Size{}, err
	}
	lim, err := parseLimits(annotations, in.Resources)
	if err != nil {
		return Size{}, err
	}
	if own.profile != "" {
		profile = own.profile
	}
	if profile == "" {
		profile = Standard
	}
	if profile != Standard && profile != AKS {
		return Size{}, invalid("sizing profile", string(profile), "known are standard and aks")
	}
	vcpus, err := computeVCPUs(profile, own, lim, in)
	if err != nil {
		return Size{}, err
	}
	memory, err := computeMemory(profile, own, lim, in)
	if err != nil {
		return Size{}, err
	}
	scratch, err := computeScratch(own, in)
	if err != nil {
		return Size{}, err
	}
	return Size{VCPUs: vcpus, MemoryBytes: memory, ScratchBytes: scratch}, nil
}

func computeVCPUs(profile Profile, own own, lim limits, in Inputs) (int, error) {
	most := in.MaxVCPUs
	if most <= 0 || most > MaximumVCPUs {
		most = MaximumVCPUs
	}
	if own.vcpus.set {
		if in.HostVCPUs > 0 && in.HostVCPUs < most {
			most = in.HostVCPUs
		}
		if own.vcpus.n < 1 || own.vcpus.n > int64(most) {
			return 0, invalid(VCPUs, own.vcpus.text, fmt.Sprintf("a VM here can have 1 to %d", most))
		}
		return int(own.vcpus.n), nil
	}
	n, from := int64(in.DefaultVCPUs), number{name: "the node's default vCPUs", text: strconv.Itoa(in.DefaultVCPUs)}
	if n == 0 {
		n = 1
	}
	if lim.cpu.set {
		n, from = lim.cpu.n, lim.cpu
		if in.HostVCPUs > 0 {
			n = min(n, int64(in.HostVCPUs))
		}
	}
	switch {
	case profile == AKS && lim.cpu.set:
		n += aksVCPUs
	case profile == AKS:
		n = aksVCPUs
	}
	if n < 1 || n > int64(most) {
		return 0, invalid(from.name, from.text, fmt.Sprintf("the VM would need %d vCPUs; it can have 1 to %d", n, most))
	}
	return int(n), nil
}

func computeMemory(profile Profile, own own, lim limits, in Inputs) (int64, error) {
	if lim.memory.set && lim.memory.n < MinimumLimit {
		return 0, invalid(lim.memory.name, lim.memory.text, "no container starts with less than 4 MiB")
	}
	if own.memory.set {
		return ownMemory(own.memory, lim, in)
	}
	usable := number{name: "the node's default memory", text: strconv.FormatInt(in.DefaultMemoryBytes, 10), n: in.DefaultMemoryBytes}
	if lim.memory.set {
		usable = lim.memory
	}
	if usable.n < 0 {
		return 0, invalid(usable.name, usable.text, "must not be negative")
	}
	host := int64(math.MaxInt64)
	if in.HostMemoryBytes > 0 {
		host = max(in.HostMemoryBytes&^(Alignment-1), MinimumMemory)
		usable.n = min(usable.n, host)
	}
	if usable.n > MaximumMemory {
		return 0, invalid(usable.name, usable.text, "a VM can have at most 1 TiB")
	}
	var total int64
	switch {
	case profile == AKS && lim.memory.set:
		total = aksMemory + usable.n
	case profile == AKS:
		total = aksMemory
	default:
		total = withNeed(usable.n)
	}
	total = min(max(alignUp(total), MinimumMemory), host)
	if total > MaximumMemory {
		return 0, invalid(usable.name, usable.text, "the VM would need more than 1 TiB")
	}
	return total, nil
}

// ownMemory honours bulkhead.dev/memory, which is the whole VM's and must hold what the pod is allowed.
func ownMemory(memory number, lim limits, in Inputs) (int64, error) {
	most := int64(MaximumMemory)
	if in.HostMemoryBytes > 0 {
		most = min(most, in.HostMemoryBytes)
	}
	if memory.n < MinimumMemory || memory.n > most {
		return 0, invalid(memory.name, memory.text, fmt.Sprintf("a VM here can have %d to %d bytes", int64(MinimumMemory), most))
	}
	// The page array is left out of this check: whoever sets both to nearly the same knows what they do.
	if lim.memory.set && memory.n < lim.memory.n {
		return 0, invalid(memory.name, memory.text, fmt.Sprintf("less than the limit of %s in %s", lim.memory.text, lim.memory.name))
	}
	return min(alignUp(memory.n), most&^(Alignment-1)), nil
}

func computeScratch(own own, in Inputs) (int64, error) {
	scratch := number{name: "the node's scratch size", text: strconv.FormatInt(in.ScratchBytes, 10), n: in.ScratchBytes}
	if own.scratch.set {
		scratch = own.scratch
	}
	if scratch.n < MinimumScratch || scratch.n > MaximumScratch {
		return 0, invalid(scratch.name, scratch.text, fmt.Sprintf("a scratch disk can have %d to %d bytes", int64(MinimumScratch), int64(MaximumScratch)))
	}
	// Whole MiB, so that no file system has a block cut in half at its end.
	return (scratch.n + 1<<20 - 1) &^ (1<<20 - 1), nil
}

// withNeed adds what the guest takes: n must be at most MaximumMemory, so that nothing overflows.
func withNeed(n int64) int64 { return n + n/64 + GuestNeed }

func alignUp(n int64) int64 { return (n + Alignment - 1) &^ (Alignment - 1) }

// ceilCPUs is ceil(quota/period) for positive numbers, without overflow.
func ceilCPUs(quota, period uint64) int64 {
	q, r := bits.Div64(0, quota, period)
	if r > 0 {
		q++
	}
	return int64(min(q, math.MaxInt32))
}

func invalid(name, value, why string) error {
	const most = 80
	if len(value) > most {
		value = value[:most] + "…"
	}
	return fmt.Errorf("%s = %q: %s: %w", name, value, why, errdefs.ErrInvalidArgument)
}
