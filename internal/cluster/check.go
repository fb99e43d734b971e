package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/cluster/component"
	"bulkhead.dev/bulkhead/internal/cluster/spec"
	"bulkhead.dev/bulkhead/internal/config"
	"bulkhead.dev/bulkhead/internal/feature"
	"bulkhead.dev/bulkhead/internal/guestimage"
	"bulkhead.dev/bulkhead/internal/vmm"
	"bulkhead.dev/bulkhead/internal/vmm/qemu"
)

// minFree is the space that a new cluster needs for its data to begin with: etcd preallocates its logs.
const minFree = 1 << 30

// checkHost finds out whether this host can have a cluster at all.
func (m *Manager) checkHost() error {
	if os.Geteuid() != 0 {
		return errdefs.ErrPermissionDenied.WithMessage("create a cluster: network namespaces and containers need root")
	}
	for _, name := range []string{"bulkhead", "bulkhead-kube", "containerd", "ctr", "containerd-shim-runc-v2", "cni/loopback", "cni/tuning", "cni/ptp", "cni/host-local", "cni/portmap"} {
		if _, err := exec.LookPath(filepath.Join(m.o.BinDir, name)); err != nil {
			return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("look for the cluster's programs in --bin-dir %s: %v: build them with make bin", m.o.BinDir, err))
		}
	}
	for program, pkg := range map[string]string{"nft": "nftables", "runc": "runc"} {
		if _, err := exec.LookPath(program); err != nil {
			return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("%v: install the Debian package %s", err, pkg))
		}
	}
	if err := checkStateDir(m.o.StateDir); err != nil {
		return err
	}
	if err := os.MkdirAll(m.o.StateDir, 0o711); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(m.o.StateDir, &fs); err != nil {
		return fmt.Errorf("look at the file system of --state-dir %s: %w", m.o.StateDir, err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < minFree {
		return &spec.ParameterError{
			Parameter: "--state-dir", Value: m.o.StateDir,
			Reason: fmt.Sprintf("has %d MiB left, and a cluster needs %d MiB to begin with", free>>20, minFree>>20),
			Fix:    "free some, or take a directory on another file system",
		}
	}
	return nil
}

// noteForwarding says how far pods will reach, where that is not far.
func (m *Manager) noteForwarding() {
	if data, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward"); err == nil && strings.TrimSpace(string(data)) == "0" {
		m.o.Progress("note: this host doesn't forward packets (net.ipv4.ip_forward is 0): nodes and pods will reach each other, and nothing beyond this host")
	}
}

// checkStateDir refuses a path that components would take apart: it stands in mount options, in lists of TARGET=SOURCE, and
// between quotes in files where braces are variables.
func checkStateDir(dir string) error {
	bad := func(r rune) bool { return strings.ContainsRune(`,:\="{}`, r) || r < ' ' || r == 0x7f }
	if i := strings.IndexFunc(dir, bad); i >= 0 {
		return &spec.ParameterError{
			Parameter: "--state-dir", Value: dir, Reason: fmt.Sprintf("has the character %q, which means something else to what runs in it", dir[i]),
			Fix: "take a directory without",
		}
	}
	return nil
}

// checkPool finds out whether this host can have such a pool.
func (m *Manager) checkPool(ctx context.Context, p spec.Pool, c spec.Config) error {
	if err := p.Validate(); err != nil {
		return err
	}
	if p.Runtime != spec.VMIsolation {
		return nil
	}
	refuse := func(reason, fix string) error {
		return &spec.ParameterError{Parameter: "--workload-runtime", Value: string(spec.VMIsolation), Reason: reason, Fix: fix}
	}
	if _, err := exec.LookPath(filepath.Join(m.o.BinDir, "containerd-shim-bulkhead-v2")); err != nil {
		return refuse(err.Error(), "build it with make bin")
	}
	if _, err := guestimage.Open(m.o.GuestDir); err != nil {
		return fmt.Errorf("--workload-runtime %q: %w", p.Runtime, err)
	}
	acceleration, warning, err := m.isolation(ctx, c.VM.Acceleration)
	if errors.Is(err, context.Canceled) {
		return err
	}
	if err != nil {
		return refuse(err.Error(), "see bulkhead doctor")
	}
	if acceleration == vmm.Hardware {
		return nil
	}
	f, err := m.features.Get(feature.EmulatedVMIsolation)
	if err != nil {
		return err
	}
	if f.State != feature.Registered {
		return refuse(
			fmt.Sprintf("VMs would be emulated here, which is no isolation and the preview feature %s, and it is %s", f.Name, f.State),
			fmt.Sprintf("bulkhead feature register %s (why they would be: %s)", f.Name, warning),
		)
	}
	m.o.Progress("note: pool %s: the VMs of its pods are emulated: EMULATION IS NOT ISOLATION", p.Name)
	return nil
}

// isolation finds out what runs a guest on this host. A host is probed once, by booting the guest.
func (m *Manager) isolation(ctx context.Context, mode string) (vmm.Acceleration, string, error) {
	if _, err := guestimage.Open(m.o.GuestDir); err != nil {
		return "", "", err // it says what to do
	}
	if mode == "" {
		mode = config.AccelerationAuto
	}
	return qemu.Resolve(ctx, mode, qemu.ProbeOptions{
		Kernel: filepath.Join(m.o.GuestDir, "kernel"), Initramfs: filepath.Join(m.o.GuestDir, "initramfs"), CacheDir: m.o.StateDir,
	})
}

// hasVMs says whether a pool of the cluster runs pods in VMs.
func (c *cluster) hasVMs() bool {
	for _, p := range c.spec.Pools {
		if p.Runtime == spec.VMIsolation {
			return true
		}
	}
	return false
}

// kubernetesVersion asks bulkhead-kube. A program that doesn't answer is found out about when it is started.
func (m *Manager) kubernetesVersion(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, filepath.Join(m.o.BinDir, "bulkhead-kube"), "version", "-o", "json").Output()
	if err != nil {
		return ""
	}
	var versions struct {
		Programs map[string]string `json:"programs"`
	}
	if err := json.Unmarshal(out, &versions); err != nil {
		return ""
	}
	return versions.Programs[component.APIServer]
}
