package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"bulkhead.dev/bulkhead/internal/guestimage"
)

// TestFeatures: a registration needs QEMU and a guest image. Here QEMU is a program that is never run.
func TestFeatures(t *testing.T) {
	state, bin := t.TempDir(), t.TempDir()
	t.Setenv(stateDirVariable, state)
	t.Setenv("PATH", bin)
	expect := func(line string, status int, stdout, stderr string) {
		t.Helper()
		got := runCommand(t, strings.Fields(line)...)
		if got.status != status || !regexp.MustCompile(stdout).MatchString(got.stdout) || !regexp.MustCompile(stderr).MatchString(got.stderr) {
			t.Errorf("%s: %+v\nwant %d, %s, %s", line, got, status, stdout, stderr)
		}
	}
	expect("feature list", 0, `^FEATURE +STATE +WHAT IT IS\nEmulatedVMIsolation +NotRegistered +`, `^$`)
	expect("feature show emulatedvmisolation -o json", 0, `"state": "NotRegistered"`, `^$`)
	expect("feature show Emulated", 1, `^$`, `there is no feature "Emulated".*EmulatedVMIsolation`)
	expect("feature show", 2, `^$`, `takes one argument, the feature's name, and got 0`)
	expect("feature register nothing", 1, `^$`, `there is no feature "nothing"`)

	expect("feature register EmulatedVMIsolation", 1, `^$`, `look for QEMU`)
	if err := os.WriteFile(filepath.Join(bin, "qemu-system-x86_64"), []byte("#!/bin/false\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	expect("feature register EmulatedVMIsolation", 1, `^$`, `guest image.*bulkhead guest build --dir `+state)
	expect("feature list", 0, `NotRegistered`, `^$`)

	stubGuest(t, filepath.Join(state, "guest"))
	expect("feature register emulatedVMISOLATION", 0, `^$`, `(?s)^EmulatedVMIsolation is registered.*(EMULATION IS NOT ISOLATION|KVM works)`)
	expect("feature register EmulatedVMIsolation", 0, `^$`, `is registered`)
	expect("feature show EmulatedVMIsolation", 0, ` Registered `, `^$`)
	expect("feature unregister EmulatedVMIsolation", 0, `^$`, `is not registered`)
	expect("feature list -o yaml", 0, `state: NotRegistered`, `^$`)
}

// stubGuest makes a guest image that is whole and boots nothing.
func stubGuest(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := []byte("nothing")
	sum := sha256.Sum256(text)
	file := guestimage.File{Size: int64(len(text)), SHA256: hex.EncodeToString(sum[:])}
	manifest, err := json.Marshal(guestimage.Manifest{Format: 1, Kernel: file, Initramfs: file})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{guestimage.KernelFile: text, guestimage.InitramfsFile: text, guestimage.ManifestFile: manifest} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
