package sandbox

import (
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/config"
	"bulkhead.dev/bulkhead/internal/sandbox/sizing"
)

// FromOCI derives a sandbox's Spec from the OCI spec of the pod's sandbox container (CRI), or of the only container
// (plain `ctr run`): host name, network namespace, cgroup, sysctls, shared memory and size. ID, Namespace and Dir are
// left to the caller. What would break the wall (host network, PID or IPC namespace) and an annotation that can't be
// honoured are each an ErrInvalidArgument.
func FromOCI(cfg config.Config, spec *specs.Spec) (Spec, error) {
	if spec == nil || spec.Linux == nil {
		return Spec{}, fmt.Errorf("OCI spec without a linux section: %w", errdefs.ErrInvalidArgument)
	}
	netns, err := podNetNS(spec.Linux.Namespaces)
	if err != nil {
		return Spec{}, err
	}
	if err := checkSysctls(spec.Linux.Sysctl); err != nil {
		return Spec{}, err
	}
	shm, err := shmBytes(spec.Mounts)
	if err != nil {
		return Spec{}, err
	}
	size, err := SizeOf(cfg, spec.Annotations, spec.Linux.Resources)
	if err != nil {
		return Spec{}, err
	}
	return Spec{
		Hostname: spec.Hostname, NetNS: netns, CgroupsPath: spec.Linux.CgroupsPath,
		Size: size, Sysctls: spec.Linux.Sysctl, ShmBytes: shm,
	}, nil
}

// SizeOf computes the size of a pod's VM on this host. resources are those of a container that is no pod's; may be nil.
func SizeOf(cfg config.Config, annotations map[string]string, resources *specs.LinuxResources) (sizing.Size, error) {
	in := sizing.Inputs{
		DefaultMemoryBytes: cfg.Sandbox.DefaultMemory,
		DefaultVCPUs:       cfg.Sandbox.DefaultVCPUs,
		ScratchBytes:       cfg.Sandbox.ScratchSize,
		HostVCPUs:          runtime.NumCPU(),
		Resources:          resources,
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return sizing.Size{}, fmt.Errorf("read the host's memory: %w", err)
	}
	in.HostMemoryBytes = int64(uint64(info.Totalram) * uint64(info.Unit))
	return sizing.Compute(sizing.Profile(cfg.Sandbox.Profile), annotations, in)
}

// podNetNS returns the path of the network namespace, "" for a new one, in which there is only loopback.
func podNetNS(namespaces []specs.LinuxNamespace) (string, error) {
	has := func(t specs.LinuxNamespaceType) int {
		return slices.IndexFunc(namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == t })
	}
	for _, t := range []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.PIDNamespace, specs.IPCNamespace} {
		if has(t) < 0 {
			return "", hostNamespace(t)
		}
	}
	if has(specs.UserNamespace) >= 0 {
		return "", unsupported("user namespaces (hostUsers: false)")
	}
	return namespaces[has(specs.NetworkNamespace)].Path, nil
}

// sysctlName is a dotted or slashed name below /proc/sys, without a way out of it.
var sysctlName = regexp.MustCompile(`^[a-zA-Z0-9_-]+([./][a-zA-Z0-9_:-]+)+$`)

func checkSysctls(sysctls map[string]string) error {
	const most = 256
	if len(sysctls) > most {
		return fmt.Errorf("%d sysctls, at most %d: %w", len(sysctls), most, errdefs.ErrInvalidArgument)
	}
	for name, value := range sysctls {
		if len(name) > most || !sysctlName.MatchString(name) {
			return fmt.Errorf("sysctl %.100q is no name of a sysctl: %w", name, errdefs.ErrInvalidArgument)
		}
		if len(value) > 4096 || strings.ContainsAny(value, "\x00\n") {
			return fmt.Errorf("sysctl %s has a value of several lines or more than 4096 bytes: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// shmBytes reads the size of a tmpfs at /dev/shm; 0 where it has none.
func shmBytes(mounts []specs.Mount) (uint64, error) {
	for _, m := range mounts {
		if m.Destination != "/dev/shm" || m.Type != "tmpfs" {
			continue
		}
		for _, o := range m.Options {
			if value, ok := strings.CutPrefix(o, "size="); ok {
				return parseTmpfsSize(value)
			}
		}
	}
	return 0, nil
}

// parseTmpfsSize reads the kernel's form (memparse): a number with a suffix of k, m or g. A share of the memory ("50%") is
// left to the guest's default.
func parseTmpfsSize(value string) (uint64, error) {
	if strings.HasSuffix(value, "%") {
		return 0, nil
	}
	digits, shift := value, 0
	if i := strings.IndexAny(value, "kKmMgG"); i >= 0 && i == len(value)-1 {
		digits, shift = value[:i], map[byte]int{'k': 10, 'm': 20, 'g': 30}[value[i]|0x20]
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || n > 1<<44>>shift {
		return 0, fmt.Errorf("size %q of /dev/shm is no number of bytes up to 16T: %w", value, errdefs.ErrInvalidArgument)
	}
	return n << shift, nil
}
