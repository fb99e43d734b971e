package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	guestapi "bulkhead.dev/bulkhead/api/guest"
	"bulkhead.dev/bulkhead/internal/vmm/vmmtest"
)

func (w *world) disks() map[string]vmmtest.FakeDisk {
	w.t.Helper()
	disks, err := w.fake.Disks(w.spec.ID)
	if err != nil {
		w.t.Fatal(err)
	}
	named := map[string]vmmtest.FakeDisk{}
	for at, d := range disks {
		named[string(at)] = d
	}
	return named
}

func mustStart(t *testing.T, p *Process) uint32 {
	t.Helper()
	pid, err := p.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func mustWait(t *testing.T, p *Process) Exit {
	t.Helper()
	exit, err := p.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return exit
}

func TestContainer(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	p := w.create(s, "one", "cat")
	made := w.agent.Requests("CreateContainer")[0].(*guestapi.CreateContainerRequest)
	disks := w.disks()
	if len(disks) != 3 || len(made.Rootfs.Layers) != 2 || made.Rootfs.Scratch == nil {
		t.Fatalf("disks %v, root %v", disks, made.Rootfs)
	}
	for i, name := range []string{"one", "base"} { // uppermost first
		layer := made.Rootfs.Layers[i]
		if disk := disks[layer.Address]; !layer.Readonly || !disk.ReadOnly || filepath.Base(disk.File.Name()) != name {
			t.Errorf("layer %d is %v on %+v", i, layer, disk)
		}
	}
	if disk := disks[made.Rootfs.Scratch.Address]; disk.ReadOnly || disk.File.Name() != filepath.Join(w.upper("one"), scratchName) {
		t.Errorf("scratch %+v", disk)
	}
	if info, err := os.Stat(filepath.Join(w.upper("one"), scratchName)); err != nil || info.Size() != s.spec.Size.ScratchBytes {
		t.Errorf("scratch file: %v, %v", info, err)
	}
	if rec, err := readRecord(w.spec.Dir); err != nil || len(rec.Scratch) != 1 {
		t.Errorf("record %+v, %v", rec, err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(made.Spec, &spec); err != nil || spec.Linux.CgroupsPath != "/bulkhead/one" {
		t.Errorf("spec %+v, %v", spec, err)
	}

	if pid := mustStart(t, p); pid == 0 {
		t.Error("pid 0")
	}
	if _, err := p.Start(t.Context()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "running, not created") {
		t.Errorf("second Start: %v", err)
	}
	if err := p.Delete(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Delete while running: %v", err)
	}
	text := bytes.Repeat([]byte("bulkhead "), 100_000)
	go func() {
		p.Stdin().Write(text)
		p.Stdin().Close()
	}()
	got, err := io.ReadAll(p.Stdout())
	if err != nil || !bytes.Equal(got, text) {
		t.Errorf("cat gave %d of %d bytes, %v", len(got), len(text), err)
	}
	if exit := mustWait(t, p); exit.Status != 0 || time.Since(exit.At) > time.Minute {
		t.Errorf("exit %+v", exit)
	}
	if err := p.Signal(t.Context(), 15, false); !errdefs.IsNotFound(err) {
		t.Errorf("Signal after the end: %v", err)
	}
	for range 2 {
		if err := p.Delete(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if left := w.disks(); len(left) != 0 {
		t.Errorf("disks left: %v", left)
	}
	if _, err := os.Stat(filepath.Join(w.upper("one"), scratchName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("scratch file after Delete: %v", err)
	}
	if ids := w.agent.Containers(); len(ids) != 0 {
		t.Errorf("containers in the guest: %v", ids)
	}
	w.create(s, "one", "exit", "0") // the id is free again
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.checkClean()
}

func TestExitCodes(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	for _, code := range []uint32{0, 1, 127, 255} {
		p := w.create(s, fmt.Sprint("c", code), "exit", fmt.Sprint(code))
		mustStart(t, p)
		if exit := mustWait(t, p); exit.Status != code {
			t.Errorf("exit %d gave %d", code, exit.Status)
		}
	}
	p := w.create(s, "killed", "sleep")
	mustStart(t, p)
	if err := p.Signal(t.Context(), 15, false); err != nil {
		t.Fatal(err)
	}
	if exit := mustWait(t, p); exit.Status != 143 {
		t.Errorf("SIGTERM gave %d", exit.Status)
	}
	early := w.create(s, "early", "sleep")
	if err := early.Signal(t.Context(), 9, true); err != nil {
		t.Fatal(err)
	}
	if exit := mustWait(t, early); exit.Status != 137 {
		t.Errorf("SIGKILL before the start gave %d", exit.Status)
	}
}

func TestMissingProgram(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	p := w.create(s, "one", "missing")
	if _, err := p.Start(t.Context()); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "missing") {
		t.Errorf("Start: %v", err)
	}
	if err := p.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(t.Context()); !errdefs.IsNotFound(err) {
		t.Errorf("Wait: %v", err)
	}
	if left := w.disks(); len(left) != 0 {
		t.Errorf("disks left: %v", left)
	}
}

func TestExec(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	p := w.create(s, "one", "sleep")
	exec := func(id string, args ...string) (*Process, error) {
		return s.CreateExec(t.Context(), ExecSpec{
			Container: "one", ID: id, Process: &specs.Process{Args: args, Cwd: "/"}, Stdin: true, Stdout: true, Stderr: true,
		})
	}
	if _, err := exec("early", "echo"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec before the start: %v", err)
	}
	mustStart(t, p)
	e, err := exec("e", "echo", "hello", "there")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := exec("e", "echo"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second exec of one id: %v", err)
	}
	mustStart(t, e)
	if got, _ := io.ReadAll(e.Stdout()); string(got) != "hello there\n" {
		t.Errorf("stdout %q", got)
	}
	if exit := mustWait(t, e); exit.Status != 0 {
		t.Errorf("exit %+v", exit)
	}
	bad, err := exec("bad", "err", "trouble")
	if err != nil {
		t.Fatal(err)
	}
	mustStart(t, bad)
	if got, _ := io.ReadAll(bad.Stderr()); string(got) != "trouble\n" {
		t.Errorf("stderr %q", got)
	}
	long, err := exec("long", "sleep")
	if err != nil {
		t.Fatal(err)
	}
	mustStart(t, long)
	pids, err := s.Pids(t.Context(), "one")
	if err != nil || len(pids) != 2 {
		t.Errorf("Pids = %v, %v", pids, err)
	}
	if err := e.Delete(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(t.Context(), 9, true); err != nil {
		t.Fatal(err)
	}
	mustWait(t, p)
	mustWait(t, long)
	if err := p.Delete(t.Context()); err != nil { // takes its execs with it
		t.Fatal(err)
	}
	if err := long.Delete(t.Context()); err != nil {
		t.Errorf("Delete of an exec whose container is gone: %v", err)
	}
	if _, err := exec("late", "echo"); !errdefs.IsNotFound(err) {
		t.Errorf("exec in a deleted container: %v", err)
	}
}

func TestTerminal(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	spec := w.container("one", "cat")
	spec.Terminal = true
	if _, err := s.CreateContainer(t.Context(), spec); !errdefs.IsInvalidArgument(err) {
		t.Errorf("terminal with stderr: %v", err)
	}
	spec.Stderr = false
	spec.Spec.Process.ConsoleSize = &specs.Box{Width: 80, Height: 1 << 20}
	p, err := s.CreateContainer(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if p.Stderr() != nil || p.Stdin() == nil || p.Stdout() == nil {
		t.Error("streams of a terminal")
	}
	stdio := w.agent.Requests("CreateContainer")[0].(*guestapi.CreateContainerRequest).Stdio
	if !stdio.Terminal || stdio.Width != 80 || stdio.Height != 65535 || stdio.Stderr != 0 {
		t.Errorf("stdio %v", stdio)
	}
	mustStart(t, p)
	if err := p.Resize(t.Context(), 120, 40); err != nil {
		t.Error(err)
	}
	if err := p.Resize(t.Context(), 1<<20, 40); !errdefs.IsInvalidArgument(err) {
		t.Errorf("huge terminal: %v", err)
	}
}

// TestSharedLayers: an image that two containers use is one disk, until the second of them goes.
func TestSharedLayers(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	var wait sync.WaitGroup
	processes := make([]*Process, 4)
	for i := range processes {
		spec := w.container(fmt.Sprint("c", i), "exit", "0")
		wait.Go(func() {
			var err error
			if processes[i], err = s.CreateContainer(context.Background(), spec); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if t.Failed() {
		return
	}
	for i, p := range processes {
		bases := 0
		for _, d := range w.disks() {
			if filepath.Base(d.File.Name()) == "base" {
				bases++
			}
		}
		if want := 2*(len(processes)-i) + 1; bases != 1 || len(w.disks()) != want {
			t.Errorf("%d deleted: %d disks of base, %d disks; want 1 and %d", i, bases, len(w.disks()), want)
		}
		if err := p.Delete(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if left := w.disks(); len(left) != 0 {
		t.Errorf("disks left: %v", left)
	}
}

func TestReadOnlyRoot(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	spec := w.container("one", "exit", "0")
	spec.Spec.Root.Readonly = true
	if _, err := s.CreateContainer(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	made := w.agent.Requests("CreateContainer")[0].(*guestapi.CreateContainerRequest)
	if made.Rootfs.Scratch != nil || len(w.disks()) != 2 {
		t.Errorf("root %v, disks %v", made.Rootfs, w.disks())
	}
}

// TestVolumes: containers share the export of a directory, unless one of them may only read it.
func TestVolumes(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	create := func(id string, mounts ...specs.Mount) (*Process, []*guestapi.Mount, error) {
		spec := w.container(id, "exit", "0")
		spec.Spec.Mounts = mounts
		p, err := s.CreateContainer(t.Context(), spec)
		if err != nil {
			return nil, nil, err
		}
		made := w.agent.Requests("CreateContainer")
		return p, made[len(made)-1].(*guestapi.CreateContainerRequest).Mounts, nil
	}
	writable := specs.Mount{Destination: "/w", Type: "bind", Source: dir, Options: []string{"rbind"}}
	readOnly := specs.Mount{Destination: "/r", Type: "bind", Source: dir, Options: []string{"rbind", "ro"}}
	oneFile := specs.Mount{Destination: "/etc/file", Type: "bind", Source: file, Options: []string{"bind", "ro"}}
	one, ones, err := create("one", writable, readOnly, oneFile)
	if err != nil {
		t.Fatal(err)
	}
	two, twos, err := create("two", writable)
	if err != nil {
		t.Fatal(err)
	}
	if ones[0].Source != twos[0].Source || ones[0].Source == ones[1].Source || ones[1].Source == ones[2].Source || ones[0].Name == twos[0].Name {
		t.Errorf("mounts %v and %v", ones, twos)
	}
	listener, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for _, source := range []string{"/dev/null", filepath.Join(dir, "s"), filepath.Join(dir, "missing")} {
		_, _, err := create("three", writable, specs.Mount{Destination: "/x", Type: "bind", Source: source, Options: []string{"bind"}})
		if err == nil || !strings.Contains(err.Error(), source) {
			t.Errorf("bind mount of %s: %v", source, err)
		}
	}
	for _, p := range []*Process{one, two} {
		if err := p.Delete(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.exports.byKey) != 0 {
		t.Errorf("exports left: %v", s.exports.byKey)
	}
}

func TestStaleScratch(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	spec := w.container("one", "exit", "0")
	if err := os.WriteFile(filepath.Join(w.upper("one"), scratchName), []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateContainer(t.Context(), spec); err != nil {
		t.Error(err)
	}
}

func TestCreateFails(t *testing.T) {
	steps := newWorld(t)
	s := steps.start()
	names := steps.steps(func() { steps.create(s, "one", "sleep") })
	fails := map[string]func(w *world){
		"in the guest": func(w *world) { w.agent.Fail("CreateContainer", errRefused) },
		"in adding a disk": func(w *world) {
			n := 0
			w.failDisk(func() error {
				if n++; n == 2 {
					return errRefused
				}
				return nil
			})
		},
	}
	for _, name := range names {
		fails["after "+name] = func(w *world) { w.failAt(name, errRefused) }
	}
	for name, fail := range fails {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.fake.Fail = w.askDisk
			s := w.start()
			fail(w)
			if _, err := s.CreateContainer(t.Context(), w.container("one", "sleep")); !errdefs.IsAborted(err) {
				t.Errorf("CreateContainer: %v", err)
			}
			if left := w.disks(); len(left) != 0 {
				t.Errorf("disks left: %v", left)
			}
			if ids := w.agent.Containers(); len(ids) != 0 {
				t.Errorf("containers in the guest: %v", ids)
			}
			if rec, err := readRecord(w.spec.Dir); err != nil || len(rec.Scratch) != 0 {
				t.Errorf("record %+v, %v", rec, err)
			}
			if left, _ := os.ReadDir(w.upper("one")); len(left) != 0 {
				t.Errorf("left in the snapshot: %v", left)
			}
			w.after = nil
			w.failDisk(nil)
			w.agent.Fail("CreateContainer", nil)
			w.create(s, "one", "sleep") // nothing stands in the way of another
		})
	}
}

// failDisk sets what adding a disk is asked.
func (w *world) failDisk(f func() error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.addDisk = f
}

func (w *world) askDisk(operation, _ string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if operation != "add-disk" || w.addDisk == nil {
		return nil
	}
	return w.addDisk()
}

func TestCreateRefuses(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	w.create(s, "one", "sleep")
	tests := []struct {
		name   string
		change func(*ContainerSpec)
		is     func(error) bool
	}{
		{"id in use", func(c *ContainerSpec) { c.ID = "one" }, errdefs.IsAlreadyExists},
		{"id", func(c *ContainerSpec) { c.ID = ".." }, errdefs.IsInvalidArgument},
		{"no spec", func(c *ContainerSpec) { c.Spec = nil }, errdefs.IsInvalidArgument},
		{"host network", func(c *ContainerSpec) { drop(specs.NetworkNamespace)(c.Spec) }, errdefs.IsInvalidArgument},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			spec := w.container("two", "sleep")
			tt.change(&spec)
			if _, err := s.CreateContainer(t.Context(), spec); err == nil || !tt.is(err) {
				t.Errorf("CreateContainer: %v", err)
			}
		})
	}
}

// A spec names the pid namespace to join by the pid of a task, which is the same for all of the pod. What is meant follows from
// what the pod's containers have.
func TestJoinedPIDs(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	// joined creates a container that joins, and returns the path that the guest is told; "shared" for the pod's own.
	joined := func(id string) (string, error) {
		t.Helper()
		spec := w.container(id, "sleep")
		for i, ns := range spec.Spec.Linux.Namespaces {
			if ns.Type == specs.PIDNamespace {
				spec.Spec.Linux.Namespaces[i].Path = "/proc/4711/ns/pid"
			}
		}
		if _, err := s.CreateContainer(t.Context(), spec); err != nil {
			return "", err
		}
		made := w.agent.Requests("CreateContainer")
		var told specs.Spec
		if err := json.Unmarshal(made[len(made)-1].(*guestapi.CreateContainerRequest).Spec, &told); err != nil {
			t.Fatal(err)
		}
		for _, ns := range told.Linux.Namespaces {
			if ns.Type == specs.PIDNamespace {
				return ns.Path, nil
			}
		}
		return "shared", nil
	}
	if path, err := joined("alone"); err != nil || path != "shared" {
		t.Errorf("in a pod without another container: %q, %v", path, err)
	}
	app := w.create(s, "app", "sleep")
	if path, err := joined("early"); err != nil || path != "shared" {
		t.Errorf("beside a container that doesn't run yet: %q, %v", path, err)
	}
	pid, err := app.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("/proc/%d/ns/pid", pid)
	for _, id := range []string{"debug", "again"} {
		if path, err := joined(id); err != nil || path != want {
			t.Errorf("%s: told to join %q, want %q, %v", id, path, want, err)
		}
	}
	if _, err := w.create(s, "sidecar", "sleep").Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if path, err := joined("which"); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "2 running containers") {
		t.Errorf("with two to choose from: %q, %v", path, err)
	}
}

// TestDeleteFails: as long as the guest doesn't let go, nothing is taken from it, and Delete can be called again.
func TestDeleteFails(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	p := w.create(s, "one", "exit", "0")
	mustStart(t, p)
	mustWait(t, p)
	w.agent.Fail("Delete", errRefused)
	if err := p.Delete(t.Context()); !errdefs.IsAborted(err) {
		t.Errorf("Delete: %v", err)
	}
	if len(w.disks()) != 3 {
		t.Errorf("disks %v", w.disks())
	}
	w.agent.Fail("Delete", nil)
	if err := p.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	if len(w.disks()) != 0 {
		t.Errorf("disks %v", w.disks())
	}
}

func TestControls(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	p := w.create(s, "one", "sleep")
	mustStart(t, p)
	limit := int64(64 << 20)
	if err := s.Update(t.Context(), "one", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		t.Error(err)
	}
	if stats, err := s.Stats(t.Context(), "one"); err != nil || stats.MemoryLimit != 64<<20 || stats.CpuUsageUsec == 0 {
		t.Errorf("Stats = %v, %v", stats, err)
	}
	for _, f := range []func(context.Context, string) error{s.Pause, s.Resume} {
		if err := f(t.Context(), "one"); err != nil {
			t.Error(err)
		}
		if err := f(t.Context(), "two"); !errdefs.IsNotFound(err) {
			t.Errorf("unknown container: %v", err)
		}
	}
	if err := w.agent.OOM("one"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Event{OOM: &OOM{Container: "one"}}, <-s.Events()); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
	if exit := mustWait(t, p); exit.Status != 137 {
		t.Errorf("exit %+v", exit)
	}
}

// TestDeath kills the VM while each kind of call waits: all of them end, with the reason.
func TestDeath(t *testing.T) {
	ctx := context.Background()
	calls := map[string]func(w *world, s *Sandbox, p *Process) error{
		"Pids":   func(_ *world, s *Sandbox, _ *Process) error { _, err := s.Pids(ctx, "one"); return err },
		"Stats":  func(_ *world, s *Sandbox, _ *Process) error { _, err := s.Stats(ctx, "one"); return err },
		"Pause":  func(_ *world, s *Sandbox, _ *Process) error { return s.Pause(ctx, "one") },
		"Resume": func(_ *world, s *Sandbox, _ *Process) error { return s.Resume(ctx, "one") },
		"Update": func(_ *world, s *Sandbox, _ *Process) error { return s.Update(ctx, "one", nil) },
		"Signal": func(_ *world, _ *Sandbox, p *Process) error { return p.Signal(ctx, 15, false) },
		"Wait":   func(_ *world, _ *Sandbox, p *Process) error { _, err := p.Wait(ctx); return err },
		"CreateExec": func(_ *world, s *Sandbox, _ *Process) error {
			_, err := s.CreateExec(ctx, ExecSpec{Container: "one", ID: "e", Process: &specs.Process{Args: []string{"x"}, Cwd: "/"}})
			return err
		},
		"CreateContainer": func(w *world, s *Sandbox, _ *Process) error {
			_, err := s.CreateContainer(ctx, w.container("two", "sleep"))
			return err
		},
	}
	for method, call := range calls {
		t.Run(method, func(t *testing.T) {
			w := newWorld(t)
			s := w.start()
			p := w.create(s, "one", "sleep")
			mustStart(t, p)
			before := len(w.agent.Requests(method))
			w.agent.Hang(method)
			ended := make(chan error, 1)
			go func() { ended <- call(w, s, p) }()
			for method != "Wait" && len(w.agent.Requests(method)) == before {
				time.Sleep(time.Millisecond)
			}
			w.fake.Kill("pod")
			if err := <-ended; !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "signal killed") {
				t.Errorf("%s: %v", method, err)
			}
			checkDead(t, w, s, p)
		})
	}
}

// checkDead checks what still works with a sandbox whose VM has been killed.
func checkDead(t *testing.T, w *world, s *Sandbox, p *Process) {
	t.Helper()
	<-s.Done()
	if err := s.Err(); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "signal killed") {
		t.Errorf("Err: %v", err)
	}
	if _, err := p.Wait(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("Wait: %v", err)
	}
	if _, err := io.ReadAll(p.Stdout()); err != nil && !strings.Contains(err.Error(), "session shutdown") {
		t.Errorf("stdout: %v", err)
	}
	if _, err := s.CreateContainer(t.Context(), w.container("late", "exit", "0")); !errdefs.IsUnavailable(err) {
		t.Errorf("CreateContainer: %v", err)
	}
	if err := p.Delete(t.Context()); err != nil {
		t.Errorf("Delete: %v", err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Errorf("Stop: %v", err)
	}
	if err := s.Err(); err == nil {
		t.Error("Stop has erased the reason")
	}
	w.checkClean()
}

// TestDeathOfCreated: a container that was never started ends with the VM too.
func TestDeathOfCreated(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	p := w.create(s, "one", "sleep")
	w.fake.Kill("pod")
	if _, err := p.Wait(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("Wait: %v", err)
	}
	if _, err := p.Start(t.Context()); err == nil {
		t.Error("Start worked")
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	w.checkClean()
}

// TestStopWithContainers stops a pod that runs, that waits, and that is just being made.
func TestStopWithContainers(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	p := w.create(s, "one", "sleep")
	mustStart(t, p)
	w.create(s, "two", "sleep")
	spec := w.container("three", "sleep")
	w.agent.Hang("CreateContainer")
	made := make(chan error, 1)
	go func() {
		_, err := s.CreateContainer(context.Background(), spec)
		made <- err
	}()
	for len(w.agent.Requests("CreateContainer")) < 3 {
		time.Sleep(time.Millisecond)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-made; err == nil {
		t.Error("a container was made in a stopped sandbox")
	}
	w.checkClean()
	if exit, err := p.Wait(t.Context()); err == nil && exit.Status != 137 {
		t.Errorf("exit %+v", exit)
	}
}

// TestSilentGuestStops: a guest that doesn't answer Shutdown is ended when the caller's patience ends.
func TestSilentGuestStops(t *testing.T) {
	w := newWorld(t)
	s := w.start()
	w.create(s, "one", "sleep")
	w.agent.Hang("Shutdown")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := s.Stop(ctx); err != nil {
		t.Error(err)
	}
	w.checkClean()
}
