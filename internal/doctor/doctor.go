// Package doctor looks at a host and says what it has and what it lacks for running pods in VMs.
//
// [Examine] runs a list of checks against a [Host]. Each check answers with one [Check]: what it looked at, whether that
// will do, what was found, and, when it won't do, the command or setting that repairs it. Checks only look: what they make
// to find out (a network namespace, a VM for the probe of KVM) is gone when they answer.
//
//	Host ── checks ── []Check ── Report{Ready, Isolation}
//
// A host is ready when nothing is missing. A warning is for what works but is worse than it could be; emulation is one, and
// the loudest, because it is no isolation.
package doctor

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"bulkhead.dev/bulkhead/internal/config"
	"bulkhead.dev/bulkhead/internal/vmm"
)

// Status is the result of one check.
type Status string

const (
	// OK needs nothing done.
	OK Status = "ok"
	// Warn works, but not as well as it could, or only for some uses.
	Warn Status = "warn"
	// Missing keeps pods from running in VMs.
	Missing Status = "missing"
)

// Check is what was found about one thing.
type Check struct {
	// Name is what was looked at, such as "tun".
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Found is what is there, for people.
	Found string `json:"found"`
	// Fix is the command or setting that repairs it; empty when the status is OK.
	Fix string `json:"fix,omitempty"`
}

// Report is what Examine found out.
type Report struct {
	// Ready says that pods can run in VMs here. Look at Isolation for whether these VMs isolate.
	Ready bool `json:"ready"`
	// Isolation is "hardware", "emulated" or "none". Only hardware is a security boundary.
	Isolation string  `json:"isolation"`
	Checks    []Check `json:"checks"`
}

// IsolationNone is the isolation of a host that can't start a VM.
const IsolationNone = "none"

// Host is the machine that is examined. Tests give one that lives in a directory.
type Host struct {
	// Root is the directory that stands for "/".
	Root string
	// UID is the effective user of this process.
	UID int
	// Config is the runtime's configuration.
	Config config.Config
	// LookPath finds a program, as exec.LookPath does.
	LookPath func(name string) (string, error)
	// Run runs a program and gives what it wrote to stdout and stderr.
	Run func(ctx context.Context, name string, args ...string) ([]byte, error)
	// Accelerate says what would run a guest under vmm.acceleration of Config, having tried it, with a warning when that
	// is worse than asked for.
	Accelerate func(ctx context.Context) (vmm.Acceleration, string, error)
	// TrafficControl makes a tap and a tc redirect to it in a namespace of its own, and removes them.
	TrafficControl func(ctx context.Context) error
	// FreeBytes is the space left to this user in the file system that holds the path or its nearest parent.
	FreeBytes func(path string) (int64, error)
	// ContainerdConfig is containerd's configuration file.
	ContainerdConfig string
	// Containerd is the containerd program: a path, or a name to look up.
	Containerd string
}

// This is the host that this process runs on, with the system's containerd.
func This(cfg config.Config, accelerate func(context.Context) (vmm.Acceleration, string, error)) Host {
	return Host{
		Root: "/", UID: os.Geteuid(), Config: cfg, LookPath: lookPath, Run: runProgram,
		Accelerate: accelerate, TrafficControl: tryTrafficControl, FreeBytes: freeBytes,
		ContainerdConfig: "/etc/containerd/config.toml", Containerd: "containerd",
	}
}

// lookPath also looks where distributions keep programs for root, which is on root's PATH only.
func lookPath(name string) (string, error) {
	found, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err == nil {
			break
		}
		found, err = exec.LookPath(filepath.Join(dir, name))
	}
	return found, err
}

// programTimeout bounds a program that only prints its version.
const programTimeout = 30 * time.Second

func runProgram(ctx context.Context, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, programTimeout)
	defer cancel()
	return exec.CommandContext(ctx, name, args...).CombinedOutput()
}

// Examine runs all checks, in the order in which one would repair what they find.
func Examine(ctx context.Context, h Host) Report {
	r := Report{Ready: true, Isolation: IsolationNone}
	// Isolation is what people come here for, so it stands first; the two that it is found out with come before.
	qemu, image := h.vmm(ctx), h.guestImage(ctx)
	var kvm Check
	kvm, r.Isolation = h.acceleration(ctx, qemu.Status != Missing && image.Status != Missing)
	r.Checks = []Check{kvm, h.user(ctx), qemu, image}
	for _, check := range []func(context.Context) Check{
		h.memory, h.disk, h.cgroup, h.tun, h.trafficControl, h.overlay, h.fuse, h.erofs, h.mkfsExt4,
		h.containerd, h.shim, h.containerdRuntime,
	} {
		r.Checks = append(r.Checks, check(ctx))
	}
	for _, c := range r.Checks {
		r.Ready = r.Ready && c.Status != Missing
	}
	return r
}

// path gives the place of an absolute path of the host.
func (h Host) path(name string) string { return filepath.Join(h.Root, name) }

func ok(name, found string) Check { return Check{Name: name, Status: OK, Found: found} }
func warn(name, found, fix string) Check {
	return Check{Name: name, Status: Warn, Found: found, Fix: fix}
}
func missing(name, found, fix string) Check {
	return Check{Name: name, Status: Missing, Found: found, Fix: fix}
}
