package qemu

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"bulkhead.dev/bulkhead/internal/vmm"
	"bulkhead.dev/bulkhead/internal/vmm/jail"
)

func TestMain(m *testing.M) {
	jail.Main()
	os.Exit(m.Run())
}

func TestStartFindsWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	good := vmm.Spec{
		ID: "a", VCPUs: 1, MemoryBytes: 128 << 20, Kernel: file, Initramfs: file,
		Acceleration: vmm.Emulated, Jail: vmm.Jail{UID: 65534, GID: 65534},
	}
	tests := map[string]struct {
		binary string
		change func(*vmm.Spec)
		is     func(error) bool
		text   string
	}{
		"no QEMU":          {filepath.Join(dir, "missing"), func(*vmm.Spec) {}, errdefs.IsFailedPrecondition, "apt-get install qemu-system-x86"},
		"no kernel":        {"/bin/true", func(s *vmm.Spec) { s.Kernel = filepath.Join(dir, "missing") }, errdefs.IsNotFound, "missing"},
		"no initramfs":     {"/bin/true", func(s *vmm.Spec) { s.Initramfs = filepath.Join(dir, "missing") }, errdefs.IsNotFound, "missing"},
		"kernel directory": {"/bin/true", func(s *vmm.Spec) { s.Kernel = dir }, errdefs.IsInvalidArgument, "no regular file"},
		"root":             {"/bin/true", func(s *vmm.Spec) { s.Jail.UID = 0 }, errdefs.IsInvalidArgument, "must not run as root"},
		"too many vCPUs":   {"/bin/true", func(s *vmm.Spec) { s.VCPUs = 256 }, errdefs.IsInvalidArgument, "vCPUs"},
		"long arguments":   {"/bin/true", func(s *vmm.Spec) { s.KernelArgs = []string{strings.Repeat("x", maxCommandLine)} }, errdefs.IsInvalidArgument, "command line"},
		"group MAC":        {"/bin/true", func(s *vmm.Spec) { s.NICs = []vmm.NIC{{Tap: os.Stdin, MAC: []byte{1, 0, 0, 0, 0, 0}, MTU: 1500}} }, errdefs.IsInvalidArgument, "MAC"},
		"too many NICs": {"/bin/true", func(s *vmm.Spec) {
			s.NICs = slices.Repeat([]vmm.NIC{{Tap: os.Stdin, MAC: []byte{2, 0, 0, 0, 0, 1}, MTU: 1500}}, maxNICs+1)
		}, errdefs.IsInvalidArgument, "17 NICs"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			spec := good
			tc.change(&spec)
			_, err := New(Options{Binary: tc.binary}).Start(t.Context(), spec)
			if !tc.is(err) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("Start: %v", err)
			}
		})
	}
}

func TestTail(t *testing.T) {
	tail := newTail(8)
	for _, step := range []struct{ write, want string }{
		{"", ""}, {"abc", "abc"}, {"defgh", "abcdefgh"}, {"i", "bcdefghi"}, {"jklmnop", "ijklmnop"},
		{"qrstuvwxyz", "stuvwxyz"}, {"12345678", "12345678"}, {"9", "23456789"},
	} {
		if n, err := tail.Write([]byte(step.write)); n != len(step.write) || err != nil {
			t.Errorf("Write(%q) = %d, %v", step.write, n, err)
		}
		if got := tail.String(); got != step.want {
			t.Errorf("after %q: %q, want %q", step.write, got, step.want)
		}
	}
}

func TestLastWords(t *testing.T) {
	panicked := "old\n[1.0] Kernel panic - not syncing: gone\n" + strings.Repeat("trace\n", 1000)
	tests := map[string]struct{ text, want string }{
		"short": {" a\nb\n", "a\nb"},
		"long":  {strings.Repeat("0123456\n", 1000), strings.TrimSpace(strings.Repeat("0123456\n", quotedConsole/8))},
		"panic": {panicked, strings.TrimSpace(panicked[10:][:quotedConsole])},
		"empty": {"", ""},
	}
	for name, tc := range tests {
		if diff := cmp.Diff(tc.want, lastWords(tc.text)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestDisksTakeRoundRobin(t *testing.T) {
	var d disks
	names := make(map[string]bool)
	for want := firstLUN; want <= lastLUN; want++ {
		lun, state, err := d.take()
		if err != nil || lun != want {
			t.Fatalf("take() = %d, %v; want %d", lun, err, want)
		}
		names[state.name] = true
	}
	if _, _, err := d.take(); !errdefs.IsResourceExhausted(err) {
		t.Errorf("one too many: %v, want ErrResourceExhausted", err)
	}
	d.give(9)
	lun, state, err := d.take()
	if err != nil || lun != 9 || names[state.name] {
		t.Errorf("take() = %d, %q, %v; want 9 with a new name", lun, state.name, err)
	}
	if _, _, err := d.find("scsi:9"); !errdefs.IsNotFound(err) {
		t.Errorf("a disk that is being added: %v, want ErrNotFound", err)
	}
	d.set(state, true, false)
	if _, _, err := d.find("scsi:9"); err != nil {
		t.Error(err)
	}
	if _, _, err := d.find("scsi:9"); !errdefs.IsNotFound(err) {
		t.Errorf("a disk that is being removed: %v, want ErrNotFound", err)
	}
}

func TestOpenForVMM(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 512), 0o644); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := os.Remove(path); err != nil { // a name is not needed
		t.Fatal(err)
	}
	readOnly, driver, err := openForVMM(vmm.Disk{File: file, ReadOnly: true})
	if err != nil || driver != "file" {
		t.Fatal(driver, err)
	}
	defer readOnly.Close()
	if _, err := readOnly.WriteAt([]byte{1}, 0); err == nil {
		t.Error("the descriptor of a read-only disk can write")
	}
	writable, _, err := openForVMM(vmm.Disk{File: file})
	if err != nil {
		t.Fatal(err)
	}
	defer writable.Close()
	if _, err := writable.WriteAt([]byte{1}, 0); err != nil {
		t.Error(err)
	}
}

func TestProbeCache(t *testing.T) {
	file := filepath.Join(t.TempDir(), probeFile)
	now := time.Now()
	if _, ok := readProbe(file, "key", now); ok {
		t.Error("an answer without a file")
	}
	tests := map[string]struct {
		works   bool
		key     string
		version int
		age     time.Duration
		want    bool
	}{
		"yes":            {works: true, key: "key", version: probeVersion, want: true},
		"old yes":        {works: true, key: "key", version: probeVersion, age: 1000 * time.Hour, want: true},
		"no":             {key: "key", version: probeVersion, want: true},
		"old no":         {key: "key", version: probeVersion, age: refusalLifetime + time.Second},
		"no from future": {key: "key", version: probeVersion, age: -time.Hour},
		"other key":      {works: true, key: "other", version: probeVersion},
		"other version":  {works: true, key: "key", version: probeVersion + 1},
	}
	for name, tc := range tests {
		record := probeRecord{Version: tc.version, Key: tc.key, Result: ProbeResult{Works: tc.works, At: now.Add(-tc.age)}}
		if err := writeProbe(file, record); err != nil {
			t.Fatal(err)
		}
		got, ok := readProbe(file, "key", now)
		if ok != tc.want || ok && (got.Works != tc.works || !got.Cached) {
			t.Errorf("%s: %+v, %v", name, got, ok)
		}
	}
	if err := os.WriteFile(file, []byte(`{"version": 1, "key": "key", "res`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok := readProbe(file, "key", now); ok {
		t.Error("an answer from half a file")
	}
	if entries, err := os.ReadDir(filepath.Dir(file)); err != nil || len(entries) != 1 {
		t.Errorf("files left: %v, %v", entries, err)
	}
}

func TestLock(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := lock(ctx, file); err == nil {
		t.Error("locked twice")
	}
	unlock()
	unlock, err = lock(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestResolve(t *testing.T) {
	if got, warning, err := Resolve(t.Context(), "emulated", ProbeOptions{}); got != vmm.Emulated || warning == "" || err != nil {
		t.Errorf("emulated: %q, %q, %v", got, warning, err)
	}
	for _, mode := range []string{"", "kvm", "Auto"} {
		if _, _, err := Resolve(t.Context(), mode, ProbeOptions{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v, want ErrInvalidArgument", mode, err)
		}
	}
}
