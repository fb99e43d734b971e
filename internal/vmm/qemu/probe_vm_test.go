//go:build vm

package qemu

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/vmm"
)

// TestProbe can't know what this machine can do. It checks that there is an answer in time, that it is kept, and that
// Resolve does what it says.
func TestProbe(t *testing.T) {
	spec := testSpec(t)
	options := ProbeOptions{Kernel: spec.Kernel, Initramfs: spec.Initramfs, CacheDir: t.TempDir()}
	start := time.Now()
	first, err := Probe(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("after %v: %+v", time.Since(start), first)
	if first.Reason == "" {
		t.Error("no reason")
	}
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("the probe took %v", took)
	}
	second, err := Probe(t.Context(), options)
	if err != nil || second.Works != first.Works {
		t.Errorf("second probe: %+v, %v", second, err)
	}
	if kvmMissing() == "" && !second.Cached {
		t.Error("the second answer doesn't come from the cache")
	}
	got, warning, err := Resolve(t.Context(), "auto", options)
	if want := map[bool]vmm.Acceleration{true: vmm.Hardware, false: vmm.Emulated}[first.Works]; err != nil || got != want {
		t.Errorf("auto: %q, %v; want %q", got, err, want)
	}
	if (warning == "") != first.Works {
		t.Errorf("warning %q", warning)
	}
	got, _, err = Resolve(t.Context(), "hardware", options)
	if first.Works && (err != nil || got != vmm.Hardware) {
		t.Errorf("hardware: %q, %v", got, err)
	}
	if !first.Works && !errdefs.IsFailedPrecondition(err) {
		t.Errorf("hardware: %q, %v; want ErrFailedPrecondition", got, err)
	}
	t.Logf("hardware: %v", err)
}

// TestProbeBoot boots emulated guests, which work everywhere: the probe must see the agent's channel open, and must
// give up in time on a guest that doesn't come up.
func TestProbeBoot(t *testing.T) {
	spec := testSpec(t)
	options := ProbeOptions{Kernel: spec.Kernel, Initramfs: spec.Initramfs, Patience: 2 * time.Minute}
	result, err := boot(t.Context(), options, vmm.Emulated)
	if err != nil || !result.Works {
		t.Errorf("a guest that boots: %+v, %v", result, err)
	}
	options.Patience = 300 * time.Millisecond // emulated, a kernel needs longer on any machine
	result, err = boot(t.Context(), options, vmm.Emulated)
	if err != nil || result.Works {
		t.Errorf("a guest that doesn't come up: %+v, %v", result, err)
	}
	t.Logf("reason: %s", result.Reason)
}
