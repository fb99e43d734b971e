package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func runDemo(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	status = Main(t.Context(), append([]string{"demo"}, args...), strings.NewReader(""), &out, &errOut)
	return status, out.String(), errOut.String()
}

func TestDemoUpNeedsTheGuestImage(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	status, _, stderr := runDemo(t, "up", "--state-dir", state)
	if status != exitFailed || !strings.Contains(stderr, "guest image") || !strings.Contains(stderr, "bulkhead guest build") {
		t.Errorf("exit status %d, %s", status, stderr)
	}
	if _, err := os.Lstat(state); err == nil {
		t.Error("it made the state directory all the same")
	}
}

func TestDemoDown(t *testing.T) {
	state := filepath.Join(t.TempDir(), "state")
	down := func() (int, string, string) { return runDemo(t, "down", "--state-dir", state) }
	if status, stdout, stderr := down(); status != exitDone || stdout != "nothing is left\n" {
		t.Errorf("down of nothing: exit status %d, %q, %q", status, stdout, stderr)
	}

	for _, name := range []string{"guest/kernel", "packages/crun.deb", "mine"} {
		path := filepath.Join(state, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if status, _, stderr := down(); status != exitFailed || !strings.Contains(stderr, filepath.Join(state, "mine")) {
		t.Errorf("down with somebody's file: exit status %d, %q", status, stderr)
	}
	if entries, err := os.ReadDir(state); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v; want only somebody's file", entries, err)
	}
	if err := os.Remove(filepath.Join(state, "mine")); err != nil {
		t.Fatal(err)
	}
	if status, _, stderr := down(); status != exitDone {
		t.Errorf("down: exit status %d, %q", status, stderr)
	}
	if _, err := os.Lstat(state); err == nil {
		t.Error("the state directory is left")
	}
}

func TestDemoSaysThatEmulationIsNoIsolation(t *testing.T) {
	var out bytes.Buffer
	writeEmulated(&out, "KVM is missing")
	for _, want := range []string{"EMULATION IS NOT ISOLATION", "why: KVM"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it doesn't say %q:\n%s", want, out.String())
		}
	}
}
