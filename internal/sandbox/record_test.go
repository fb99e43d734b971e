package sandbox

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"bulkhead.dev/bulkhead/internal/config"
)

// testConfig is the default configuration with its directories in the test's own.
func testConfig(t testing.TB) config.Config {
	cfg := config.Default()
	cfg.RunDir = t.TempDir()
	cfg.StateDir = t.TempDir()
	return cfg
}

func TestRecord(t *testing.T) {
	dir := t.TempDir()
	r, err := newRecorder(dir, "one", "k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.update(func(rec *record) { rec.UID, rec.VMM = 7, &process{PID: 4, StartTime: 5} }); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/a", "/b"} {
		if err := r.addScratch(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.dropScratch("/a"); err != nil {
		t.Fatal(err)
	}
	got, err := readRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := record{Version: 1, ID: "one", Namespace: "k8s.io", UID: 7, VMM: &process{PID: 4, StartTime: 5}, Scratch: []string{"/b"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	if _, err := newRecorder(dir, "two", ""); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second record: %v", err)
	}
	if err := r.remove(); err != nil {
		t.Fatal(err)
	}
	if err := r.addScratch("/c"); err == nil {
		t.Error("a removed record was written again")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("left: %v", entries)
	}
}

func TestReadRecordRefuses(t *testing.T) {
	tests := []struct {
		name, text string
		is         func(error) bool
	}{
		{"garbage", "{", errdefs.IsDataLoss},
		{"later version", `{"version": 2}`, errdefs.IsFailedPrecondition},
		{"no version", `{}`, errdefs.IsFailedPrecondition},
		{"relative scratch file", `{"version": 1, "scratch": ["x"]}`, errdefs.IsDataLoss},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, recordName), []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := readRecord(dir); err == nil || !tt.is(err) {
				t.Errorf("readRecord: %v", err)
			}
			if err := Cleanup(t.Context(), testConfig(t), dir); err == nil {
				t.Error("Cleanup took it")
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		if err := Cleanup(t.Context(), testConfig(t), t.TempDir()); err != nil {
			t.Errorf("Cleanup without a record: %v", err)
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"version": 1, "id": "x", "vmm": {"pid": 1, "start_time": 2}, "scratch": ["/a"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, err := parseRecord("f", data)
		if err == nil && rec.Version != recordVersion {
			t.Errorf("version %d was taken", rec.Version)
		}
	})
}

func TestUID(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "uids")
	const base = 3_900_000_000 // nobody's
	var locks []*uidLock
	seen := map[uint32]bool{}
	for _, owner := range []string{"/a", "/b", "/c"} {
		lock, err := takeUID(dir, base, 3, owner)
		if err != nil {
			t.Fatal(err)
		}
		locks = append(locks, lock)
		seen[lock.uid] = true
	}
	if len(seen) != 3 {
		t.Errorf("uids %v", seen)
	}
	if _, err := takeUID(dir, base, 3, "/d"); !errdefs.IsResourceExhausted(err) {
		t.Errorf("fourth of three: %v", err)
	}
	if err := locks[1].release(); err != nil {
		t.Fatal(err)
	}
	lock, err := takeUID(dir, base, 3, "/d")
	if err != nil || lock.uid != locks[1].uid {
		t.Fatalf("after a release: %+v, %v", lock, err)
	}

	// A crashed owner's.
	lock.file.Close()
	if got, err := reclaimUID(dir, lock.uid, "/other"); got != nil || err != nil {
		t.Errorf("another owner reclaims: %v, %v", got, err)
	}
	got, err := reclaimUID(dir, lock.uid, "/d")
	if got == nil || err != nil {
		t.Fatalf("reclaim: %v", err)
	}
	got.file.Close()
	if lock, err = takeUID(dir, base, 3, "/e"); err != nil {
		t.Fatalf("take a crashed owner's uid: %v", err)
	}
	if got, err := reclaimUID(dir, lock.uid, "/d"); got != nil || err != nil {
		t.Errorf("the crashed owner reclaims what has gone on: %v, %v", got, err)
	}
	for _, l := range []*uidLock{locks[0], locks[2], lock} {
		if err := l.release(); err != nil {
			t.Error(err)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("left: %v", entries)
	}
}

// TestUIDOfRunningProcess: a crashed owner's uid is not free while its VMM lives. The test's own user stands for it.
func TestUIDOfRunningProcess(t *testing.T) {
	dir := t.TempDir()
	me := uint32(os.Getuid())
	path := filepath.Join(dir, "left")
	if err := os.WriteFile(path, []byte("/crashed"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := lockFile(path, 0)
	if err != nil || file == nil {
		t.Fatal(file, err)
	}
	defer file.Close()
	free, err := (&uidLock{uid: me, file: file}).free()
	if err != nil || free {
		t.Errorf("free = %v, %v", free, err)
	}
}

func TestKillProcess(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	started, err := startTime(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := killProcess(t.Context(), process{cmd.Process.Pid, started + 1}); err != nil {
		t.Errorf("another start time: %v", err)
	}
	select {
	case <-ended:
		t.Fatal("a process with another start time was killed")
	default:
	}
	for range 2 { // the second finds it gone
		if err := killProcess(t.Context(), process{cmd.Process.Pid, started}); err != nil {
			t.Error(err)
		}
		<-ended
	}
}
