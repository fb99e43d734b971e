package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	guestapi "bulkhead.dev/bulkhead/api/guest"
)

func TestStartStop(t *testing.T) {
	w := newWorld(t)
	w.spec.Sysctls = map[string]string{"net.core.somaxconn": "9"}
	w.spec.ShmBytes = 1 << 20
	s := w.start()
	rec, err := readRecord(w.spec.Dir)
	if err != nil {
		t.Fatal(err)
	}
	want := record{Version: 1, ID: "pod", Namespace: "test", UID: s.uid.uid, Cgroup: "/kubepods/podx/bulkhead-pod", NetNS: w.spec.NetNS}
	if diff := cmp.Diff(want, rec); diff != "" {
		t.Errorf("record (-want +got):\n%s", diff)
	}
	spec, err := w.fake.Spec("pod")
	if err != nil {
		t.Fatal(err)
	}
	if spec.Jail.UID != s.uid.uid || spec.Jail.Cgroup != rec.Cgroup || spec.MemoryBytes != 256<<20 {
		t.Errorf("VM %+v", spec)
	}
	configured := w.agent.Requests("Configure")[0].(*guestapi.ConfigureRequest)
	if configured.Hostname != "pod" || configured.ShmBytes != 1<<20 || len(configured.Entropy) != 64 ||
		configured.Sysctls["net.core.somaxconn"] != "9" || len(configured.Interfaces) != 1 || configured.VolumesStream == 0 {
		t.Errorf("configured with %v", configured)
	}
	info, err := s.Info(t.Context())
	if err != nil || info.KernelRelease != "6.1.0-test" || info.BootTime <= 0 || info.VM.PrivateBytes == 0 {
		t.Errorf("Info = %+v, %v", info, err)
	}
	for range 2 {
		if err := s.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	<-s.Done()
	if err := s.Err(); err != nil {
		t.Errorf("Err after Stop: %v", err)
	}
	if _, open := <-s.Events(); open {
		t.Error("Events is open after Stop")
	}
	if n := len(w.agent.Requests("Shutdown")); n != 1 {
		t.Errorf("%d calls of Shutdown", n)
	}
	if _, err := s.CreateContainer(t.Context(), w.container("late", "exit", "0")); !errdefs.IsUnavailable(err) {
		t.Errorf("container after Stop: %v", err)
	}
	w.checkClean()
}

// TestStartFails fails after every step, and in every step that asks somebody else.
func TestStartFails(t *testing.T) {
	steps := newWorld(t)
	names := steps.steps(func() { steps.start() })
	if len(names) != 9 {
		t.Fatalf("steps %q", names)
	}
	for _, name := range names {
		t.Run("after "+name, func(t *testing.T) {
			w := newWorld(t)
			w.failAt(name, errRefused)
			_, err := start(t.Context(), w.deps, w.spec, w.host())
			if !errors.Is(err, errRefused) || !strings.Contains(err.Error(), name) {
				t.Errorf("start: %v", err)
			}
			w.checkClean()
			w.after = nil
			w.agent = newWorld(t).agent
			w.start() // nothing stands in the way of another
		})
	}
	t.Run("in the driver", func(t *testing.T) {
		w := newWorld(t)
		w.fake.Fail = func(string, string) error { return errRefused }
		if _, err := start(t.Context(), w.deps, w.spec, w.host()); !errors.Is(err, errRefused) {
			t.Errorf("start: %v", err)
		}
		w.checkClean()
	})
	for _, method := range []string{"Hello", "Configure"} {
		t.Run("in the guest's "+method, func(t *testing.T) {
			w := newWorld(t)
			w.agent.Fail(method, errdefs.ErrAborted)
			if _, err := start(t.Context(), w.deps, w.spec, w.host()); !errdefs.IsAborted(err) {
				t.Errorf("start: %v", err)
			}
			w.checkClean()
		})
		t.Run("guest is silent in "+method, func(t *testing.T) {
			w := newWorld(t)
			w.deps.Config.Guest.BootTimeout = 50 * time.Millisecond
			w.agent.Hang(method)
			_, err := start(t.Context(), w.deps, w.spec, w.host())
			if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "50ms") || !strings.Contains(err.Error(), "this guest is a fake") {
				t.Errorf("start: %v", err)
			}
			w.checkClean()
		})
		t.Run("VM dies in "+method, func(t *testing.T) {
			w := newWorld(t)
			w.agent.Hang(method)
			ended := make(chan error, 1)
			go func() {
				_, err := start(context.Background(), w.deps, w.spec, w.host())
				ended <- err
			}()
			for len(w.agent.Requests(method)) == 0 {
				time.Sleep(time.Millisecond)
			}
			w.fake.Kill("pod")
			err := <-ended
			if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "signal killed") {
				t.Errorf("start: %v", err)
			}
			w.checkClean()
		})
	}
	t.Run("caller gives up", func(t *testing.T) {
		w := newWorld(t)
		w.agent.Hang("Hello")
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, err := start(ctx, w.deps, w.spec, w.host()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("start: %v", err)
		}
		w.checkClean()
	})
}

// TestStartFailsAndUndoFails keeps the record of what is left, and Cleanup works by it.
func TestStartFailsAndUndoFails(t *testing.T) {
	w := newWorld(t)
	w.failAt("configure", errdefs.ErrAborted)
	h := w.host()
	h.attach = func(netns string) (*network, error) {
		return &network{close: func() error { return errRefused }}, w.set(w.taps, netns, true)
	}
	if _, err := start(t.Context(), w.deps, w.spec, h); !errdefs.IsAborted(err) || !errors.Is(err, errRefused) {
		t.Errorf("start: %v", err)
	}
	if recorded, err := Recorded(w.spec.Dir); err != nil || !recorded {
		t.Fatalf("Recorded = %v, %v while a tap is left", recorded, err)
	}
	if err := cleanup(t.Context(), w.deps.Config, w.spec.Dir, w.host()); err != nil {
		t.Fatal(err)
	}
	if recorded, err := Recorded(w.spec.Dir); err != nil || recorded {
		t.Errorf("Recorded = %v, %v after Cleanup", recorded, err)
	}
	w.checkClean()
}

func TestStartRefuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Spec)
		is     func(error) bool
	}{
		{"id", func(s *Spec) { s.ID = "../x" }, errdefs.IsInvalidArgument},
		{"no id", func(s *Spec) { s.ID = "" }, errdefs.IsInvalidArgument},
		{"host name", func(s *Spec) { s.Hostname = strings.Repeat("x", 65) }, errdefs.IsInvalidArgument},
		{"network namespace", func(s *Spec) { s.NetNS += "-not" }, errdefs.IsInvalidArgument},
		{"sysctl", func(s *Spec) { s.Sysctls = map[string]string{"x": "y"} }, errdefs.IsInvalidArgument},
		{"record of another", func(s *Spec) { os.WriteFile(filepath.Join(s.Dir, recordName), nil, 0o600) }, errdefs.IsAlreadyExists},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			tt.change(&w.spec)
			if _, err := start(t.Context(), w.deps, w.spec, w.host()); err == nil || !tt.is(err) {
				t.Errorf("start: %v", err)
			}
			if len(w.fake.Running()) != 0 {
				t.Error("a VM runs")
			}
		})
	}
}

// TestCrash ends the process after every step of Start and of CreateContainer, and cleans up in another.
func TestCrash(t *testing.T) {
	steps := newWorld(t)
	names := steps.steps(func() {
		s := steps.start()
		steps.create(s, "one", "sleep")
	})
	for i, name := range names {
		t.Run("after "+name, func(t *testing.T) {
			w := newWorld(t)
			w.deps.Driver = processDriver{w.fake}
			seen := 0
			w.after = func(string) error {
				seen++
				if seen == i+1 {
					return errCrash
				}
				return nil
			}
			s, err := start(t.Context(), w.deps, w.spec, w.host())
			if err == nil {
				_, err = s.CreateContainer(t.Context(), w.container("one", "sleep"))
			}
			if !errors.Is(err, errCrash) {
				t.Fatalf("crash: %v", err)
			}
			s.crash()
			vms := w.fake.Running()
			for range 2 {
				if err := cleanup(t.Context(), w.deps.Config, w.spec.Dir, w.host()); err != nil {
					t.Fatal(err)
				}
			}
			if len(vms) > 0 {
				s.vm.Wait(t.Context()) // the process is gone; the fake's VM is a moment later
			}
			w.checkClean()
		})
	}
}

func TestVMMCgroup(t *testing.T) {
	tests := []struct{ path, want string }{
		{"/kubepods/burstable/podx/abc", "/kubepods/burstable/podx/bulkhead-id"},
		{"/default/one", "/default/bulkhead-id"},
		{"one", "/bulkhead-id"},
		{"../../one", "/bulkhead-id"},
		{"kubepods-burstable-podx.slice:cri-containerd:abc", "kubepods-burstable-podx.slice:bulkhead:id"},
		{"/a:b/c", "/a:b/bulkhead-id"},
	}
	for _, tt := range tests {
		if got := vmmCgroup(tt.path, "id"); got != tt.want {
			t.Errorf("vmmCgroup(%q) = %q, want %q", tt.path, got, tt.want)
		}
	}
}

func TestVMID(t *testing.T) {
	long := strings.Repeat("x", 100)
	if got := vmID("short"); got != "short" {
		t.Error(got)
	}
	if a, b := vmID(long+"a"), vmID(long+"b"); len(a) != 64 || a == b {
		t.Errorf("%s, %s", a, b)
	}
}
