package jail

import (
	"context"
	"os"
	"os/exec"
	"testing"

	"github.com/containerd/errdefs"
)

func TestMain(m *testing.M) {
	Main()
	os.Exit(m.Run())
}

func TestConfigCheck(t *testing.T) {
	tests := map[string]Config{
		"no program": {UID: 1, GID: 1},
		"root":       {Path: "/bin/true", Args: []string{"true"}, GID: 1},
		"root group": {Path: "/bin/true", Args: []string{"true"}, UID: 1},
	}
	for name, config := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := Start(t.Context(), config, nil, nil); !errdefs.IsInvalidArgument(err) {
				t.Errorf("Start: %v, want ErrInvalidArgument", err)
			}
		})
	}
}

func TestKill(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	pid := cmd.Process.Pid
	start, err := StartTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	// Another process that has the same pid later must not be touched.
	if err := Kill(t.Context(), pid, start+1); err != nil {
		t.Fatal(err)
	}
	if now, err := StartTime(pid); err != nil || now != start {
		t.Fatalf("the process is gone after Kill with another start time: %v", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	_ = Kill(cancelled, pid, start) // signals; may or may not see the end
	for range 2 {
		if err := Kill(t.Context(), pid, start); err != nil {
			t.Fatal(err)
		}
	}
	if state, err := cmd.Process.Wait(); err != nil || state.Success() {
		t.Errorf("sleep ended with %v, %v", state, err)
	}
	if err := Kill(t.Context(), pid, start); err != nil {
		t.Errorf("Kill of a process that is gone: %v", err)
	}
}
