package feature

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func works(context.Context) error { return nil }

func state(t *testing.T, dir string) State {
	t.Helper()
	f, err := Open(dir).Get(EmulatedVMIsolation)
	must(t, err)
	return f.State
}

func TestLife(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s := Open(dir)
	list, err := s.List()
	must(t, err)
	if len(list) != len(known()) || list[0].State != NotRegistered || list[0].About == "" {
		t.Errorf("a new host has %+v", list)
	}
	must(t, s.Unregister(EmulatedVMIsolation))
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("looking made the state directory: %v", err)
	}
	must(t, s.Register(t.Context(), "emulatedVMisolation", func(context.Context) error {
		if got := state(t, dir); got != Registering {
			t.Errorf("%s during the check", got)
		}
		return nil
	}))
	if got := state(t, dir); got != Registered {
		t.Errorf("%s after the check", got)
	}
	must(t, s.Register(t.Context(), EmulatedVMIsolation, func(context.Context) error {
		t.Error("a registered feature is checked again")
		return nil
	}))
	for range 2 {
		must(t, s.Unregister("EMULATEDVMISOLATION"))
		if got := state(t, dir); got != NotRegistered {
			t.Errorf("%s after Unregister", got)
		}
	}
}

func TestFailedCheck(t *testing.T) {
	dir := t.TempDir()
	errNoQEMU := errors.New("there is no QEMU")
	err := Open(dir).Register(t.Context(), EmulatedVMIsolation, func(context.Context) error { return errNoQEMU })
	if !errors.Is(err, errNoQEMU) || !strings.Contains(err.Error(), "register feature EmulatedVMIsolation: there is no QEMU") {
		t.Errorf("error: %v", err)
	}
	if got := state(t, dir); got != NotRegistered {
		t.Error(got)
	}
}

// Ctrl-C during the check, or before it, leaves the feature unregistered, even when the check takes no notice.
func TestCancelled(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 2 {
		err := Open(dir).Register(ctx, EmulatedVMIsolation, func(context.Context) error {
			cancel()
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error: %v", err)
		}
		if got := state(t, dir); got != NotRegistered {
			t.Error(got)
		}
	}
}

func TestInterrupted(t *testing.T) {
	dir := t.TempDir()
	must(t, Open(dir).move(t.Context(), EmulatedVMIsolation, Registering, nil)) // and then it was killed
	if got := state(t, dir); got != Registering {
		t.Error(got)
	}
	must(t, Open(dir).Register(t.Context(), EmulatedVMIsolation, works))
	if got := state(t, dir); got != Registered {
		t.Error(got)
	}
	must(t, Open(dir).Unregister(EmulatedVMIsolation))
	must(t, Open(dir).move(t.Context(), EmulatedVMIsolation, Registering, nil))
	must(t, Open(dir).Unregister(EmulatedVMIsolation))
	if got := state(t, dir); got != NotRegistered {
		t.Error(got)
	}
}

func TestAtTheSameTime(t *testing.T) {
	t.Run("unregistered during the check", func(t *testing.T) {
		dir := t.TempDir()
		err := Open(dir).Register(t.Context(), EmulatedVMIsolation, func(context.Context) error { return Open(dir).Unregister(EmulatedVMIsolation) })
		if !errdefs.IsAborted(err) || state(t, dir) != NotRegistered {
			t.Errorf("%s, %v", state(t, dir), err)
		}
	})
	t.Run("another check succeeds", func(t *testing.T) {
		dir := t.TempDir()
		err := Open(dir).Register(t.Context(), EmulatedVMIsolation, func(ctx context.Context) error {
			must(t, Open(dir).Register(ctx, EmulatedVMIsolation, works))
			return errors.New("too late")
		})
		if err == nil || state(t, dir) != Registered {
			t.Errorf("%s, %v", state(t, dir), err)
		}
	})
	t.Run("many", func(t *testing.T) {
		dir := t.TempDir()
		var wait sync.WaitGroup
		for range 16 {
			wait.Go(func() {
				if err := Open(dir).Register(t.Context(), EmulatedVMIsolation, works); err != nil {
					t.Error(err)
				}
			})
		}
		wait.Wait()
		if got := state(t, dir); got != Registered {
			t.Error(got)
		}
	})
	t.Run("the lock is held", func(t *testing.T) {
		dir := t.TempDir()
		f, err := os.Create(filepath.Join(dir, "features.lock"))
		must(t, err)
		defer f.Close()
		must(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := Open(dir).Register(ctx, EmulatedVMIsolation, works); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "features.lock") {
			t.Errorf("error: %v", err)
		}
		if got := state(t, dir); got != NotRegistered { // reading needs no lock
			t.Error(got)
		}
	})
}

func TestUnknown(t *testing.T) {
	s := Open(t.TempDir())
	for name, meant := range map[string]bool{
		"EmulatedVMIsolaton": true, "emulatedvm": true, "VMIsolation": true, "Emulated-VM-Isolation": true,
		"": false, "x": false, "KubernetesDashboard": false, strings.Repeat("EmulatedVMIsolation", 50): false,
	} {
		_, err := s.Get(name)
		if !errdefs.IsNotFound(err) || !strings.HasSuffix(err.Error(), "; the features are EmulatedVMIsolation") {
			t.Errorf("%q: %v", name, err)
		}
		if got := strings.Contains(err.Error(), ": did you mean EmulatedVMIsolation?"); got != meant {
			t.Errorf("%q: proposes: %v, want %v", name, got, meant)
		}
	}
	if err := s.Register(t.Context(), "x", works); !errdefs.IsNotFound(err) {
		t.Errorf("error: %v", err)
	}
	if err := s.Unregister("x"); !errdefs.IsNotFound(err) {
		t.Errorf("error: %v", err)
	}
}

func TestStored(t *testing.T) {
	tests := []struct {
		name, text string
		want       State
		err        string
	}{
		{"version 1", `{"version": 1, "features": {"EmulatedVMIsolation": {"state": "Registered", "since": "2026-01-31T12:00:00Z"}}}`, Registered, ""},
		{"no features", `{"version": 1}`, NotRegistered, ""},
		{"only others", `{"version": 1, "features": {"Other": {"state": "Registered"}}}`, NotRegistered, ""},
		{"newer", `{"version": 2}`, "", "has version 2 and this program reads version 1: use the newer bulkhead that wrote it"},
		{"no version", `{}`, "", "is damaged: its version is 0: remove it, and register again what you need"},
		{"empty", ``, "", "is damaged: unexpected end of JSON input: remove it"},
		{"unknown state", `{"version": 1, "features": {"EmulatedVMIsolation": {"state": "On"}}}`, "", `is damaged: feature "EmulatedVMIsolation" is in the unknown state "On"`},
		{"huge", `{"version": 1}` + strings.Repeat(" ", maxFile), "", "is damaged: it has more than 1048576 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "features.json")
			must(t, os.WriteFile(file, []byte(tt.text), 0o600))
			f, err := Open(dir).Get(EmulatedVMIsolation)
			if f.State != tt.want || (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), file+" "+tt.err) {
				t.Errorf("%q, %v", f.State, err)
			}
			if tt.err == "" {
				return
			}
			if err := Open(dir).Register(t.Context(), EmulatedVMIsolation, works); err == nil {
				t.Error("a feature was registered in it")
			}
			if data, err := os.ReadFile(file); err != nil || string(data) != tt.text {
				t.Errorf("the file was changed: %v", err)
			}
		})
	}
}

// What this program doesn't know, a later one may have registered.
func TestOthersStay(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "features.json")
	must(t, os.WriteFile(file, []byte(`{"version": 1, "features": {"Other": {"state": "Registered", "since": "2026-01-31T12:00:00Z"}}}`), 0o600))
	must(t, Open(dir).Register(t.Context(), EmulatedVMIsolation, works))
	data, err := os.ReadFile(file)
	must(t, err)
	var got stored
	must(t, json.Unmarshal(data, &got))
	if len(got.Features) != 2 || got.Features["Other"].State != Registered || got.Features["Other"].Since.IsZero() || got.Features[EmulatedVMIsolation].Since.IsZero() {
		t.Errorf("%s", data)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"version": 1, "features": {"A": {"state": "Registering"}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := parse("features.json", data)
		if err != nil {
			return
		}
		again, err := json.Marshal(file)
		must(t, err)
		if _, err := parse("features.json", again); err != nil {
			t.Errorf("%s: %v", again, err)
		}
	})
}
