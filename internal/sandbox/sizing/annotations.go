package sizing

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// The annotations of a pod's author. The list is closed: an unknown name with the prefix is an error.
const (
	// Prefix of our own annotations.
	Prefix = "bulkhead.dev/"
	// ProfileName overrides the node's profile: "standard" or "aks".
	ProfileName = Prefix + "profile"
	// VCPUs is the exact number of the VM's virtual processors.
	VCPUs = Prefix + "vcpus"
	// Memory is the exact memory of the VM, guest's need included: bytes, or a quantity such as "512Mi".
	Memory = Prefix + "memory"
	// ScratchSize is the size of each container's writable disk, in the same form.
	ScratchSize = Prefix + "scratch-size"
)

// What containerd's CRI says about a pod (pkg annotations of containerd).
const (
	criContainerType = "io.kubernetes.cri.container-type"
	criQuota         = "io.kubernetes.cri.sandbox-cpu-quota"
	criPeriod        = "io.kubernetes.cri.sandbox-cpu-period"
	criMemory        = "io.kubernetes.cri.sandbox-memory"
)

// Known lists our own annotations, sorted.
func Known() []string { return []string{Memory, ProfileName, ScratchSize, VCPUs} }

// number is a figure together with where it came from, for error messages.
type number struct {
	name, text string
	n          int64
	set        bool
}

// own are the values of our annotations; a number is not set where the annotation is absent.
type own struct {
	profile                Profile
	vcpus, memory, scratch number
}

// limits are what the pod may use; a number is not set where there is no limit. cpu is in whole processors.
type limits struct {
	cpu, memory number
}

func parseOwn(annotations map[string]string) (own, error) {
	var o own
	var unknown []string
	for name, value := range annotations {
		if !strings.HasPrefix(name, Prefix) {
			continue
		}
		var err error
		switch name {
		case ProfileName:
			o.profile, err = parseProfile(value)
		case VCPUs:
			o.vcpus, err = parseNumber(name, value)
		case Memory:
			o.memory, err = parseQuantity(name, value)
		case ScratchSize:
			o.scratch, err = parseQuantity(name, value)
		default:
			unknown = append(unknown, name)
		}
		if err != nil {
			return own{}, err
		}
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		return own{}, fmt.Errorf("annotation %.100q is unknown; known are %s: %w", unknown[0], strings.Join(Known(), ", "), errdefs.ErrInvalidArgument)
	}
	return o, nil
}

func parseProfile(value string) (Profile, error) {
	switch p := Profile(value); p {
	case Standard, AKS:
		return p, nil
	}
	return "", invalid(ProfileName, value, "known are standard and aks")
}

func parseLimits(annotations map[string]string, resources *specs.LinuxResources) (limits, error) {
	if isCRI(annotations) {
		return criLimits(annotations)
	}
	return resourceLimits(resources)
}

func isCRI(annotations map[string]string) bool {
	for _, name := range []string{criContainerType, criQuota, criPeriod, criMemory} {
		if _, ok := annotations[name]; ok {
			return true
		}
	}
	return false
}

// criLimits reads the sums that the kubelet hands over. 0 is its way to say that there is none.
func criLimits(annotations map[string]string) (limits, error) {
	var l limits
	quota, err := optional(annotations, criQuota)
	if err != nil {
		return l, err
	}
	period, err := optional(annotations, criPeriod)
	if err != nil {
		return l, err
	}
	if l.cpu, err = cpuLimit(quota, period); err != nil {
		return l, err
	}
	if l.memory, err = optional(annotations, criMemory); err != nil {
		return l, err
	}
	if l.memory.n < 0 {
		return l, invalid(criMemory, l.memory.text, "must not be negative")
	}
	l.memory.set = l.memory.n > 0
	return l, nil
}

// resourceLimits reads the OCI spec's, in which -1 is no limit.
func resourceLimits(r *specs.LinuxResources) (limits, error) {
	var l limits
	if r == nil {
		return l, nil
	}
	if c := r.CPU; c != nil && c.Quota != nil {
		quota := number{name: "linux.resources.cpu.quota", text: strconv.FormatInt(*c.Quota, 10), n: *c.Quota, set: true}
		var period number
		if c.Period != nil {
			period = number{name: "linux.resources.cpu.period", text: strconv.FormatUint(*c.Period, 10), n: int64(min(*c.Period, maxPeriod+1)), set: true}
		}
		var err error
		if l.cpu, err = cpuLimit(quota, period); err != nil {
			return l, err
		}
	}
	if m := r.Memory; m != nil && m.Limit != nil {
		l.memory = number{name: "linux.resources.memory.limit", text: strconv.FormatInt(*m.Limit, 10), n: *m.Limit, set: *m.Limit > 0}
		if *m.Limit < -1 {
			return l, invalid(l.memory.name, l.memory.text, "must be a number of bytes, or -1 for no limit")
		}
	}
	return l, nil
}

// cpuLimit is ceil(quota/period) in whole processors. A quota of 0 or less is none; a period of 0 is the kernel's.
func cpuLimit(quota, period number) (number, error) {
	if period.set && period.n != 0 && (period.n < minPeriod || period.n > maxPeriod) {
		return number{}, invalid(period.name, period.text, fmt.Sprintf("the kernel takes %d to %d µs", minPeriod, maxPeriod))
	}
	if !quota.set || quota.n <= 0 {
		return number{}, nil
	}
	if period.n == 0 {
		period.n = defaultPeriod
	}
	quota.n = ceilCPUs(uint64(quota.n), uint64(period.n))
	return quota, nil
}

func optional(annotations map[string]string, name string) (number, error) {
	value, ok := annotations[name]
	if !ok {
		return number{name: name}, nil
	}
	return parseNumber(name, value)
}

// parseNumber reads a plain decimal number: no spaces, no sign but a minus.
func parseNumber(name, value string) (number, error) {
	if strings.HasPrefix(value, "+") {
		return number{}, invalid(name, value, "not a whole number")
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return number{}, invalid(name, value, "not a whole number of 64 bits")
	}
	return number{name: name, text: value, n: n, set: true}, nil
}

// parseQuantity reads a positive whole number of bytes with one of the suffixes that Kubernetes has for them. Fractions
// ("1.5Gi") and exponents are refused: nobody needs them here.
func parseQuantity(name, value string) (number, error) {
	i := 0
	for i < len(value) && value[i] >= '0' && value[i] <= '9' {
		i++
	}
	const form = "not a number of bytes such as 536870912, 512Mi or 2G"
	unit, ok := units()[value[i:]]
	if !ok || i == 0 {
		return number{}, invalid(name, value, form)
	}
	n, err := strconv.ParseInt(value[:i], 10, 64)
	if err != nil || n > (1<<63-1)/unit {
		return number{}, invalid(name, value, "more than 64 bits hold")
	}
	return number{name: name, text: value, n: n * unit, set: true}, nil
}

func units() map[string]int64 {
	return map[string]int64{
		"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
		"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
	}
}
