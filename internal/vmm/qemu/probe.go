package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/vmm"
)

const (
	// probePatience is how long a guest may take to boot before the answer is no. With a working KVM it takes about a second.
	probePatience = 10 * time.Second
	// refusalLifetime is how long a no is believed: a machine that was too busy for the guest may not be so for ever.
	refusalLifetime = time.Hour
	// probeMemory is enough for any guest image and small enough for any host.
	probeMemory = 256 << 20
	// probeUser is who the probe's VMM runs as: nobody.
	probeUser = 65534

	kvmDevice = "/dev/kvm"
)

// ProbeOptions say what a probe boots, and where its answer is kept.
type ProbeOptions struct {
	// Binary is QEMU's path. Empty: it is searched for.
	Binary string
	// Kernel and Initramfs are the guest that VMs here run: what must work is that very kernel.
	Kernel, Initramfs string
	// CacheDir is a directory that only root can write to; it is made if it is missing. Empty: nothing is kept, and every
	// probe boots a guest.
	CacheDir string
	// Patience is how long the guest may take to boot. 0: 10 seconds.
	Patience time.Duration
}

// ProbeResult is a probe's answer.
type ProbeResult struct {
	// Works is whether a guest has booted with hardware acceleration.
	Works bool `json:"works"`
	// Reason says what was tried and what came of it, as one line.
	Reason string `json:"reason"`
	// At is when the guest was booted.
	At time.Time `json:"at"`
	// Cached is set on an answer that was kept from an earlier probe.
	Cached bool `json:"-"`
}

// probeRecord is the content of the cache file, kvm-probe.json:
//
//	{"version": 1, "key": "…", "result": {"works": true, "reason": "…", "at": "…"}}
//
// The key names everything that the answer depends on: this boot of the host, its kernel, QEMU, the guest. Another
// version or another key means: probe again.
type probeRecord struct {
	Version int         `json:"version"`
	Key     string      `json:"key"`
	Result  ProbeResult `json:"result"`
}

const (
	probeVersion = 1
	probeFile    = "kvm-probe.json"
	maxProbeFile = 64 << 10
)

// Probe finds out whether hardware acceleration works on this machine. That /dev/kvm exists says little: on some hosts
// that are VMs themselves it runs nothing but special kernels. So a VM is started with the kernel and the initramfs that pods
// will run in, and the answer is yes if the agent in it opens its channel in time.
//
// The answer is kept in CacheDir until the host boots again or one of the parts changes; a no for one hour only. Several
// processes that ask at once wait for the first one's answer. An error means that there is no answer: QEMU or the guest image is missing.
func Probe(ctx context.Context, options ProbeOptions) (ProbeResult, error) {
	if reason := kvmMissing(); reason != "" {
		return ProbeResult{Reason: reason, At: time.Now()}, nil // as quick as any cache
	}
	binary, err := FindBinary(options.Binary)
	if err != nil {
		return ProbeResult{}, fmt.Errorf("probe hardware acceleration: %w", err)
	}
	options.Binary = binary
	key, err := probeKey(options)
	if err != nil {
		return ProbeResult{}, fmt.Errorf("probe hardware acceleration: %w", err)
	}
	if options.CacheDir == "" {
		return boot(ctx, options, vmm.Hardware)
	}
	if err := os.MkdirAll(options.CacheDir, 0o700); err != nil {
		return ProbeResult{}, fmt.Errorf("probe hardware acceleration: %w", err)
	}
	file := filepath.Join(options.CacheDir, probeFile)
	if result, ok := readProbe(file, key, time.Now()); ok {
		return result, nil
	}
	unlock, err := lock(ctx, file+".lock")
	if err != nil {
		return ProbeResult{}, fmt.Errorf("probe hardware acceleration: %w", err)
	}
	defer unlock()
	if result, ok := readProbe(file, key, time.Now()); ok {
		return result, nil // somebody else's, just now
	}
	result, err := boot(ctx, options, vmm.Hardware)
	if err != nil {
		return ProbeResult{}, err
	}
	if err := writeProbe(file, probeRecord{Version: probeVersion, Key: key, Result: result}); err != nil {
		return ProbeResult{}, fmt.Errorf("keep the answer of the probe: %w", err)
	}
	return result, nil
}

// Resolve turns the configured mode, "auto", "hardware" or "emulated", into a decision. The warning, if any, is for whoever
// relies on the wall between pods. With "hardware", an error says what was tried and what to do.
func Resolve(ctx context.Context, mode string, options ProbeOptions) (acceleration vmm.Acceleration, warning string, err error) {
	const noWall = "emulated VMs are slow and no security boundary"
	switch mode {
	case "emulated":
		return vmm.Emulated, "acceleration is configured as emulated: " + noWall, nil
	case "auto", "hardware":
	default:
		return "", "", fmt.Errorf("acceleration %q is not auto, hardware or emulated: %w", mode, errdefs.ErrInvalidArgument)
	}
	result, err := Probe(ctx, options)
	switch {
	case err != nil:
		return "", "", err
	case result.Works:
		return vmm.Hardware, "", nil
	case mode == "auto":
		return vmm.Emulated, "hardware acceleration doesn't work here (" + result.Reason + "): " + noWall, nil
	default:
		return "", "", fmt.Errorf("hardware acceleration is required and doesn't work here: %s. %s: %w", result.Reason, advice, errdefs.ErrFailedPrecondition)
	}
}

const advice = "Turn on virtualization (VT-x or AMD-V) in the firmware, load the module kvm_intel or kvm_amd, " +
	"and if this machine is a VM itself, let its host allow nested virtualization; " +
	`or set acceleration = "emulated" in the section [vmm] of the configuration, for development only`

// kvmMissing says why KVM can't work, as far as that shows without a VM.
func kvmMissing() string {
	const getAPIVersion = 0xae00 // KVM_GET_API_VERSION, Documentation/virt/kvm/api.rst 4.1
	fd, err := unix.Open(kvmDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Sprintf("opened %s: %v", kvmDevice, err)
	}
	defer unix.Close(fd)
	version, err := unix.IoctlRetInt(fd, getAPIVersion)
	if err != nil || version != 12 {
		return fmt.Sprintf("asked %s for its version: %d, %v; 12 is needed", kvmDevice, version, err)
	}
	return ""
}

// probeKey names what the answer depends on. Files count with size and time of change: no process is started for it.
func probeKey(options ProbeOptions) (string, error) {
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		return "", fmt.Errorf("read the kernel's version: %w", err)
	}
	parts := []string{strings.TrimSpace(string(bootID)), unix.ByteSliceToString(uname.Release[:]), unix.ByteSliceToString(uname.Version[:])}
	for _, file := range []string{options.Binary, options.Kernel, options.Initramfs} {
		if file == "" {
			return "", fmt.Errorf("no guest image to boot: %w", errdefs.ErrFailedPrecondition)
		}
		resolved, err := realFile(file)
		if err != nil {
			return "", err
		}
		info, err := os.Stat(resolved)
		if err != nil {
			return "", err
		}
		parts = append(parts, fmt.Sprintf("%s:%d:%d", resolved, info.Size(), info.ModTime().UnixNano()))
	}
	return strings.Join(parts, " "), nil
}

// boot boots the guest and waits for its agent.
func boot(ctx context.Context, options ProbeOptions, acceleration vmm.Acceleration) (ProbeResult, error) {
	patience := options.Patience
	if patience == 0 {
		patience = probePatience
	}
	limited, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	start := time.Now()
	reason, err := bootOnce(limited, options, acceleration)
	switch {
	case err == nil:
		took := time.Since(start).Round(time.Millisecond)
		return ProbeResult{Works: true, Reason: fmt.Sprintf("booted a guest with KVM in %v", took), At: start}, nil
	case ctx.Err() != nil: // the caller's patience, not ours
		return ProbeResult{}, fmt.Errorf("probe hardware acceleration: %w", err)
	case errors.Is(err, context.DeadlineExceeded):
		return ProbeResult{Reason: fmt.Sprintf("tried to boot a guest with KVM: its agent didn't come up within %v%s", patience, reason), At: start}, nil
	case errdefs.IsUnavailable(err): // the VMM or the guest has ended
		return ProbeResult{Reason: fmt.Sprintf("tried to boot a guest with KVM: %v", err), At: start}, nil
	default:
		return ProbeResult{}, fmt.Errorf("probe hardware acceleration: %w", err)
	}
}

// bootOnce returns what the console showed too, for the reason of a failure.
func bootOnce(ctx context.Context, options ProbeOptions, acceleration vmm.Acceleration) (said string, err error) {
	spec := vmm.Spec{
		ID:           "probe-kvm",
		VCPUs:        1,
		MemoryBytes:  probeMemory,
		Kernel:       options.Kernel,
		Initramfs:    options.Initramfs,
		Acceleration: acceleration,
		Jail:         vmm.Jail{UID: probeUser, GID: probeUser},
	}
	started, err := New(Options{Binary: options.Binary}).Start(ctx, spec)
	if err != nil {
		return "", err
	}
	vm := started.(*machine)
	defer func() {
		if stopErr := vm.Stop(context.WithoutCancel(ctx)); stopErr != nil {
			err = errors.Join(err, stopErr)
		}
	}()
	select {
	case <-vm.qmp.opened:
		return "", nil
	case <-vm.ended:
		return "", vm.cause
	case <-ctx.Done():
		if text := lastLines(vm.ConsoleTail(), maxText); text != "" {
			return fmt.Sprintf("; its console said %q", text), ctx.Err()
		}
		return "; its console was silent", ctx.Err()
	}
}

// readProbe reads a kept answer. One that can't be read, is for another key or too old is none.
func readProbe(file, key string, now time.Time) (ProbeResult, bool) {
	info, err := os.Stat(file)
	if err != nil || info.Size() > maxProbeFile {
		return ProbeResult{}, false
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return ProbeResult{}, false
	}
	var record probeRecord
	if err := json.Unmarshal(data, &record); err != nil || record.Version != probeVersion || record.Key != key {
		return ProbeResult{}, false
	}
	age := now.Sub(record.Result.At)
	if !record.Result.Works && (age < 0 || age > refusalLifetime) {
		return ProbeResult{}, false
	}
	record.Result.Cached = true
	return record.Result, true
}

// writeProbe replaces the file as a whole.
func writeProbe(file string, record probeRecord) error {
	data, err := json.Marshal(record)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".kvm-probe-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(data, '\n'))
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}

// lock takes an exclusive lock on a file; the kernel gives it back if this process dies.
func lock(ctx context.Context, file string) (unlock func(), err error) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", file, err)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", file, ctx.Err())
		}
	}
}
