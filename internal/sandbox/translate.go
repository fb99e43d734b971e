package sandbox

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	guestapi "bulkhead.dev/bulkhead/api/guest"
)

// mountsDir is where the guest makes the mounts of a CreateContainerRequest (see guest.proto).
const mountsDir = "/run/bulkhead/mounts/"

// guestOCIVersion is of the spec that the guest is given. Runtimes refuse versions they don't know (crun 1.8 all but 1.0), and
// pass over fields they don't know.
const guestOCIVersion = "1.0.2"

// translation is what a container's OCI spec means for the guest.
type translation struct {
	// Spec is for the OCI runtime in the guest.
	Spec *specs.Spec
	// Mounts are made by the agent first; Spec refers to them. The Source of a volume is filled in when it is served.
	Mounts []*guestapi.Mount
	// Binds are the host's directories and files that have to be served, each for the mount of that name.
	Binds []bind
}

// bind is a bind mount of the host's.
type bind struct {
	Mount    string // name of the mount in the guest
	Source   string // clean absolute path on the host
	ReadOnly bool
}

// surroundings are what a spec is translated in.
type surroundings struct {
	// ID of the container.
	ID string
	// MountPrefix makes names of mounts unique in the pod: lower-case letters, digits and dashes.
	MountPrefix string
	// Terminal of the container's init.
	Terminal bool
	// Sysctls are the pod's, already set.
	Sysctls map[string]string
	// PIDs is the path, in the guest, of the pid namespace that a spec means that joins one; empty: the pod's shared one.
	PIDs string
}

// translate turns the OCI spec that was written for the host into the guest's. It is pure and makes a new spec from
// what it knows, so a field that nobody has thought about doesn't reach the guest.
//
// What becomes of each part:
//
//	process      kept. AppArmor and SELinux labels go when they are the runtime's defaults (the guest's kernel has
//	             neither, and the wall is the VM); one that somebody chose is refused.
//	root         assembled in the guest; read-only stays.
//	hostname     the pod's, set once for the VM.
//	mounts       proc, sysfs, tmpfs, mqueue, devpts and cgroup stay. A bind is served from the host, except the CRI's
//	             /dev/shm, which is the pod's own in the guest. Other types, shared and slave propagation and id-mapped mounts
//	             are refused: nothing the host mounts later shows up in a VM.
//	hooks        refused: they are programs of the host.
//	annotations  dropped: runtimes take orders from them.
//	namespaces   mount and cgroup new; network, ipc and uts are the VM's own, so all containers share them; pid new, another
//	             container's, or left out for the one that containers of the pod share. user is refused. time is kept.
//	sysctl       must be the pod's (see FromOCI).
//	resources    memory, cpu, pids, huge pages and the same of unified stay. What speaks of the host's devices, CPUs and
//	             NUMA nodes goes, and so do limits of cgroup v1 and of swap, of which the guest has none.
//	devices      the standard nodes and /dev/fuse are made anew in the guest. A privileged container's list of the host's
//	             devices goes, and it may use all of the guest's; any other device is refused.
//	seccomp, rlimits, masked and read-only paths, personality: kept. A seccomp listener is refused.
//	intelRdt, memoryPolicy: dropped, they speak of the host's processors.
func translate(in *specs.Spec, env surroundings) (translation, error) {
	if err := checkSpec(in); err != nil {
		return translation{}, err
	}
	process, err := translateProcess(in.Process, env.Terminal)
	if err != nil {
		return translation{}, err
	}
	t := translation{Spec: &specs.Spec{
		Version: guestOCIVersion,
		Process: process,
		Root:    &specs.Root{Path: "rootfs", Readonly: in.Root != nil && in.Root.Readonly},
	}}
	if err := t.addMounts(in.Mounts, env.MountPrefix); err != nil {
		return translation{}, err
	}
	t.Spec.Linux, err = translateLinux(in.Linux, env)
	return t, err
}

// unsupported is the error for what a sandbox can't do. It is of the class ErrInvalidArgument, since kubelet and
// containerd take ErrNotImplemented for a runtime that lacks the call.
func unsupported(format string, args ...any) error {
	return fmt.Errorf("not possible in a sandbox: %s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

func checkSpec(in *specs.Spec) error {
	switch {
	case in == nil || in.Process == nil || in.Linux == nil:
		return fmt.Errorf("OCI spec without a process or a linux section: %w", errdefs.ErrInvalidArgument)
	case in.Windows != nil || in.Solaris != nil || in.ZOS != nil || in.FreeBSD != nil || in.VM != nil:
		return fmt.Errorf("OCI spec has a section for another platform: %w", errdefs.ErrInvalidArgument)
	case in.Domainname != "":
		return unsupported("NIS domain name %q", in.Domainname)
	}
	if h := in.Hooks; h != nil {
		for _, hook := range slices.Concat(h.Prestart, h.CreateRuntime, h.CreateContainer, h.StartContainer, h.Poststart, h.Poststop) { //nolint:staticcheck // old specs have prestart hooks
			return unsupported("OCI hook %s: it is a program of the host", hook.Path)
		}
	}
	return nil
}

// translateProcess is for a container's init and for execs alike.
func translateProcess(in *specs.Process, terminal bool) (*specs.Process, error) {
	switch {
	case in == nil || len(in.Args) == 0:
		return nil, fmt.Errorf("process without arguments: %w", errdefs.ErrInvalidArgument)
	case !path.IsAbs(in.Cwd):
		return nil, fmt.Errorf("working directory %q is not absolute: %w", in.Cwd, errdefs.ErrInvalidArgument)
	case !slices.Contains([]string{"", "unconfined", "cri-containerd.apparmor.d", "docker-default"}, in.ApparmorProfile):
		return nil, unsupported("AppArmor profile %q: the guest's kernel has no AppArmor", in.ApparmorProfile)
	case !isDefaultLabel(in.SelinuxLabel):
		return nil, unsupported("SELinux label %q: the guest's kernel has no SELinux", in.SelinuxLabel)
	case in.ExecCPUAffinity != nil:
		return nil, unsupported("CPU affinity of execs: it speaks of the host's processors")
	}
	out := *in
	out.Terminal = terminal
	out.ApparmorProfile, out.SelinuxLabel, out.CommandLine = "", "", ""
	return &out, nil
}

// isDefaultLabel knows the labels that container runtimes give on their own on hosts with SELinux; the last part, the
// categories, is random.
func isDefaultLabel(label string) bool {
	if label == "" {
		return true
	}
	parts := strings.SplitN(label, ":", 4)
	types := []string{"container_t", "container_init_t", "container_kvm_t", "container_file_t", "container_ro_file_t", "spc_t"}
	return len(parts) >= 3 && parts[0] == "system_u" && slices.Contains(types, parts[2])
}

func translateLinux(in *specs.Linux, env surroundings) (*specs.Linux, error) {
	switch {
	case len(in.UIDMappings) > 0 || len(in.GIDMappings) > 0:
		return nil, unsupported("user namespaces (hostUsers: false)")
	case len(in.NetDevices) > 0:
		return nil, unsupported("moving the host's network devices")
	case strings.HasSuffix(in.RootfsPropagation, "shared"):
		return nil, unsupported("mount propagation %q of the root: nothing mounted in a VM can show up on the host", in.RootfsPropagation)
	case !isDefaultLabel(in.MountLabel):
		return nil, unsupported("SELinux label %q of mounts", in.MountLabel)
	case in.Seccomp != nil && in.Seccomp.ListenerPath != "":
		return nil, unsupported("seccomp listener %s: it is a socket of the host", in.Seccomp.ListenerPath)
	}
	for name, value := range in.Sysctl {
		if pods, ok := env.Sysctls[name]; !ok || pods != value {
			return nil, unsupported("sysctl %s = %q of one container: sysctls are the pod's", name, value)
		}
	}
	namespaces, err := translateNamespaces(in.Namespaces, env.PIDs)
	if err != nil {
		return nil, err
	}
	devices, err := translateDevices(in.Devices, isPrivileged(in))
	if err != nil {
		return nil, err
	}
	out := &specs.Linux{
		Namespaces:        namespaces,
		CgroupsPath:       "/bulkhead/" + env.ID,
		Devices:           devices,
		Resources:         translateResources(in.Resources),
		Seccomp:           in.Seccomp,
		RootfsPropagation: "rprivate",
		MaskedPaths:       in.MaskedPaths,
		ReadonlyPaths:     in.ReadonlyPaths,
		Personality:       in.Personality,
		TimeOffsets:       in.TimeOffsets,
	}
	out.Resources.Devices = deviceRules(devices, isPrivileged(in))
	return out, nil
}

func translateNamespaces(in []specs.LinuxNamespace, pids string) ([]specs.LinuxNamespace, error) {
	out := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, ns := range in {
		if seen[ns.Type] {
			return nil, fmt.Errorf("%s namespace is listed twice: %w", ns.Type, errdefs.ErrInvalidArgument)
		}
		seen[ns.Type] = true
		switch ns.Type {
		case specs.MountNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace:
		case specs.CgroupNamespace, specs.TimeNamespace:
			if ns.Path != "" {
				return nil, unsupported("joining the %s namespace %s of the host", ns.Type, ns.Path)
			}
			out = append(out, specs.LinuxNamespace{Type: ns.Type})
		case specs.PIDNamespace:
			// The CRI names the namespace to join by the pid of a task, and the tasks of a pod all have the VMM's
			// (docs/adr/0007-task-pids.md). So which one it means has been found out otherwise: another container's, or
			// the pod's shared one, which the guest keeps for those that come without one.
			switch {
			case ns.Path == "":
				out = append(out, specs.LinuxNamespace{Type: ns.Type})
			case pids != "":
				out = append(out, specs.LinuxNamespace{Type: ns.Type, Path: pids})
			}
		case specs.UserNamespace:
			return nil, unsupported("user namespaces (hostUsers: false)")
		default:
			return nil, unsupported("namespace of the unknown type %q", ns.Type)
		}
	}
	for _, must := range []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.PIDNamespace, specs.IPCNamespace} {
		if !seen[must] {
			return nil, hostNamespace(must)
		}
	}
	return out, nil
}

func hostNamespace(t specs.LinuxNamespaceType) error {
	names := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "hostNetwork", specs.PIDNamespace: "hostPID", specs.IPCNamespace: "hostIPC"}
	return unsupported("%s (a spec without a %s namespace): a VM doesn't share the host's, that would break the wall", names[t], t)
}

// translateResources never returns nil. Its devices are left to the caller.
func translateResources(in *specs.LinuxResources) *specs.LinuxResources {
	out := &specs.LinuxResources{}
	if in == nil {
		return out
	}
	if m := in.Memory; m != nil {
		out.Memory = &specs.LinuxMemory{Limit: m.Limit, Reservation: m.Reservation}
	}
	if c := in.CPU; c != nil {
		out.CPU = &specs.LinuxCPU{Shares: c.Shares, Quota: c.Quota, Burst: c.Burst, Period: c.Period, Idle: c.Idle}
	}
	if p := in.Pids; p != nil {
		out.Pids = &specs.LinuxPids{Limit: p.Limit}
	}
	for _, h := range in.HugepageLimits {
		// The CRI limits every page size to 0 by default, also those that the guest doesn't have.
		if h.Limit > 0 {
			out.HugepageLimits = append(out.HugepageLimits, h)
		}
	}
	for key, value := range in.Unified {
		controller, _, _ := strings.Cut(key, ".")
		if slices.Contains([]string{"memory", "cpu", "pids"}, controller) && !strings.HasPrefix(key, "memory.swap.") && !strings.HasPrefix(key, "memory.zswap.") {
			if out.Unified == nil {
				out.Unified = map[string]string{}
			}
			out.Unified[key] = value
		}
	}
	return out
}
