package vmmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"bulkhead.dev/bulkhead/internal/vmm"
	"bulkhead.dev/bulkhead/internal/vmm/vmmtest/testproto"
)

// Harness is what the suite needs to know of a driver.
type Harness struct {
	// Driver is the driver under test.
	Driver vmm.Driver
	// Spec is one it can start, with the guest of BuildGuest or ServeGuest and without NICs. The suite changes the ID and what
	// a case is about.
	Spec vmm.Spec
	// Kill ends the VMM of a VM from outside, as an operator's kill -9 does. Nil: the VM's process is killed.
	Kill func(t *testing.T, id string, vm vmm.VM)
	// Patience bounds what a guest needs to boot, or to see a disk. 0: two minutes, which is enough for an emulated one on a
	// slow machine.
	Patience time.Duration
}

// Run checks that a driver keeps the contract of package vmm. It starts VMs one after the other.
func Run(t *testing.T, h Harness) {
	if h.Patience == 0 {
		h.Patience = 2 * time.Minute
	}
	if h.Kill == nil {
		h.Kill = killProcess
	}
	s := suite{h}
	cases := []struct {
		name string
		run  func(*testing.T)
	}{
		{"BadSpecs", s.badSpecs},
		{"Lifecycle", s.lifecycle},
		{"Disks", s.disks},
		{"ManyDisks", s.manyDisks},
		{"StopEarly", s.stopEarly},
		{"Killed", s.killed},
		{"GuestPanic", s.guestPanic},
	}
	for _, c := range cases {
		before := resources(t)
		if t.Run(c.name, c.run) { // with its clean-up
			checkLeaks(t, c.name, before)
		}
	}
}

type suite struct{ Harness }

func (s suite) spec(t *testing.T) vmm.Spec {
	spec := s.Spec
	spec.ID = "test-" + strings.ReplaceAll(filepath.Base(t.Name()), "#", "-")
	return spec
}

func (s suite) context(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), s.Patience)
	t.Cleanup(cancel)
	return ctx
}

// start starts a VM that ends with the test, and returns a client once its guest has answered.
func (s suite) start(t *testing.T, spec vmm.Spec) (vmm.VM, *testproto.Client) {
	t.Helper()
	vm, client := s.launch(t, spec)
	if _, err := client.Do(s.context(t), testproto.Request{Op: testproto.OpEcho}); err != nil {
		t.Fatalf("the guest doesn't answer: %v\nconsole: %q", err, console(vm))
	}
	return vm, client
}

// launch doesn't wait for the guest.
func (s suite) launch(t *testing.T, spec vmm.Spec) (vmm.VM, *testproto.Client) {
	t.Helper()
	ctx, cancel := context.WithCancel(s.context(t))
	vm, err := s.Driver.Start(ctx, spec)
	cancel() // must not end the VM
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	conn, err := vm.Dial(s.context(t))
	if err != nil {
		t.Fatalf("Dial: %v", err)
	}
	closing(t, vm, conn)
	return vm, testproto.NewClient(conn)
}

// closing ends the VM at the end of the test at the latest; tests with a leak check do so themselves.
func closing(t *testing.T, vm vmm.VM, conn net.Conn) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := errors.Join(vm.Stop(ctx), conn.Close()); err != nil {
			t.Errorf("stop at the end: %v", err)
		}
	})
}

func (s suite) badSpecs(t *testing.T) {
	tests := map[string]func(*vmm.Spec){
		"no id":                 func(spec *vmm.Spec) { spec.ID = "" },
		"id with a comma":       func(spec *vmm.Spec) { spec.ID = "a,b" },
		"id with a newline":     func(spec *vmm.Spec) { spec.ID = "a\n" },
		"long id":               func(spec *vmm.Spec) { spec.ID = strings.Repeat("a", 65) },
		"no vCPU":               func(spec *vmm.Spec) { spec.VCPUs = 0 },
		"no memory":             func(spec *vmm.Spec) { spec.MemoryBytes = 0 },
		"negative memory":       func(spec *vmm.Spec) { spec.MemoryBytes = -1 << 30 },
		"odd memory":            func(spec *vmm.Spec) { spec.MemoryBytes = 256<<20 + 4096 },
		"no kernel":             func(spec *vmm.Spec) { spec.Kernel = "" },
		"no initramfs":          func(spec *vmm.Spec) { spec.Initramfs = "" },
		"no acceleration":       func(spec *vmm.Spec) { spec.Acceleration = "" },
		"unknown acceleration":  func(spec *vmm.Spec) { spec.Acceleration = "auto" },
		"kernel arg of 2 lines": func(spec *vmm.Spec) { spec.KernelArgs = []string{"a\nb"} },
		"NIC without tap":       func(spec *vmm.Spec) { spec.NICs = []vmm.NIC{{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1500}} },
		"NIC without MAC":       func(spec *vmm.Spec) { spec.NICs = []vmm.NIC{{Tap: os.Stdin, MTU: 1500}} },
		"NIC with odd MTU": func(spec *vmm.Spec) {
			spec.NICs = []vmm.NIC{{Tap: os.Stdin, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 10}}
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			spec := s.spec(t)
			spec.ID = "bad"
			change(&spec)
			vm, err := s.Driver.Start(s.context(t), spec)
			if err == nil {
				_ = vm.Stop(s.context(t))
			}
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("Start: %v, want ErrInvalidArgument", err)
			}
		})
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Driver.Start(cancelled, s.spec(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("Start with a context that is over: %v, want Canceled", err)
	}
}

func (s suite) lifecycle(t *testing.T) {
	spec := s.spec(t)
	spec.VCPUs = 2
	spec.KernelArgs = append(slices.Clone(spec.KernelArgs), "bulkhead.test=1")
	ctx := s.context(t)
	vm, client := s.start(t, spec)

	if _, err := vm.Dial(ctx); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second Dial: %v, want ErrFailedPrecondition", err)
	}
	for _, size := range []int{1, 4096, 1 << 20} {
		data := bytes.Repeat([]byte("bulkhead"), size/8+1)[:size]
		response, err := client.Do(ctx, testproto.Request{Op: testproto.OpEcho, Data: data})
		if err != nil || !bytes.Equal(response.Data, data) {
			t.Fatalf("echo of %d bytes: %d bytes, %v", size, len(response.Data), err)
		}
	}
	response, err := client.Do(ctx, testproto.Request{Op: testproto.OpInfo})
	if err != nil {
		t.Fatal(err)
	}
	info := response.Info
	t.Logf("guest: %d CPUs, %d MiB, up for %v; %s; %s", info.CPUs, info.MemoryBytes>>20, info.Uptime, info.Notes, info.CommandLine)
	if info.CPUs != spec.VCPUs || info.MemoryBytes > spec.MemoryBytes || info.MemoryBytes < spec.MemoryBytes/2 {
		t.Errorf("the guest sees %d CPUs and %d bytes of memory; want %d, %d", info.CPUs, info.MemoryBytes, spec.VCPUs, spec.MemoryBytes)
	}
	if !strings.HasSuffix(info.CommandLine, "bulkhead.test=1") {
		t.Errorf("kernel command line %q", info.CommandLine)
	}
	s.checkStats(t, vm)
	if c, ok := vm.(vmm.Console); ok {
		if _, err := client.Do(ctx, testproto.Request{Op: testproto.OpPrint, Data: []byte("a mark on the console\n")}); err != nil {
			t.Fatal(err)
		}
		eventually(t, s.Patience, func() error {
			if text := c.ConsoleTail(); !strings.Contains(text, "a mark on the console") {
				return fmt.Errorf("console: %q", text)
			}
			return nil
		})
	}

	waits := waiters(ctx, vm, 3)
	for range 2 {
		if err := vm.Stop(ctx); err != nil {
			t.Fatalf("Stop: %v", err)
		}
	}
	for range 3 {
		if err := <-waits; err != nil {
			t.Errorf("Wait after Stop: %v, want nil", err)
		}
	}
	s.checkEnded(t, vm)
}

func (s suite) checkStats(t *testing.T, vm vmm.VM) {
	t.Helper()
	stats, err := vm.Stats(s.context(t))
	if err != nil || stats.PrivateBytes <= 0 {
		t.Errorf("Stats() = %+v, %v", stats, err)
	}
	t.Logf("private memory of the VMM: %d MiB", stats.PrivateBytes>>20)
	if p, ok := vm.(vmm.Process); ok {
		if pid, start := p.PID(); pid != stats.PID || pid <= 1 || start == 0 {
			t.Errorf("PID() = %d, %d; Stats says %d", pid, start, stats.PID)
		}
	}
}

// checkEnded checks what the methods of a VM say that has ended.
func (s suite) checkEnded(t *testing.T, vm vmm.VM) {
	t.Helper()
	ctx := s.context(t)
	if _, err := vm.Dial(ctx); !errdefs.IsUnavailable(err) {
		t.Errorf("Dial after the end: %v, want ErrUnavailable", err)
	}
	if _, err := vm.AddDisk(ctx, vmm.Disk{File: image(t, 1<<20)}); !errdefs.IsUnavailable(err) {
		t.Errorf("AddDisk after the end: %v, want ErrUnavailable", err)
	}
	if err := vm.RemoveDisk(ctx, "scsi:1"); !errdefs.IsUnavailable(err) {
		t.Errorf("RemoveDisk after the end: %v, want ErrUnavailable", err)
	}
	if _, err := vm.Stats(ctx); !errdefs.IsUnavailable(err) {
		t.Errorf("Stats after the end: %v, want ErrUnavailable", err)
	}
	if err := vm.Stop(ctx); err != nil {
		t.Errorf("Stop after the end: %v", err)
	}
	if p, ok := vm.(vmm.Process); ok {
		pid, _ := p.PID()
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d is still there: %v", pid, err)
		}
	}
}

func (s suite) disks(t *testing.T) {
	ctx := s.context(t)
	vm, client := s.launch(t, s.spec(t))

	// Before the guest's kernel has even started: it finds it there.
	first, second := image(t, 1<<20), image(t, 2<<20)
	copy1, err := vm.AddDisk(ctx, vmm.Disk{File: first})
	if err != nil {
		t.Fatal(err)
	}
	want := []testproto.Disk{{LUN: lun(t, copy1), Bytes: 1 << 20}}
	s.waitDisks(t, vm, client, want)

	copy2, err := vm.AddDisk(ctx, vmm.Disk{File: second, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	want = append(want, testproto.Disk{LUN: lun(t, copy2), Bytes: 2 << 20, ReadOnly: true})
	s.waitDisks(t, vm, client, want)
	s.checkContents(t, client, copy1, first, copy2, second)
	s.checkRefused(t, vm)

	if err := vm.RemoveDisk(ctx, copy1); err != nil {
		t.Fatal(err)
	}
	s.waitDisks(t, vm, client, want[1:])
	if err := vm.RemoveDisk(ctx, copy1); !errdefs.IsNotFound(err) {
		t.Errorf("second RemoveDisk: %v, want ErrNotFound", err)
	}
	again, err := vm.AddDisk(ctx, vmm.Disk{File: first, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if again == copy1 {
		t.Errorf("the address %s was given away again at once", again)
	}
	s.waitDisks(t, vm, client, append(want[1:2:2], testproto.Disk{LUN: lun(t, again), Bytes: 1 << 20, ReadOnly: true}))
	s.stop(t, vm)
}

// checkContents reads and writes a writable and a read-only disk.
func (s suite) checkContents(t *testing.T, client *testproto.Client, writable vmm.Address, file *os.File, readOnly vmm.Address, roFile *os.File) {
	t.Helper()
	ctx := s.context(t)
	mark := bytes.Repeat([]byte("mark"), 128)
	if _, err := roFile.WriteAt(mark, 4096); err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(ctx, testproto.Request{Op: testproto.OpRead, LUN: lun(t, readOnly), Offset: 4096, Length: len(mark)})
	if err != nil || !bytes.Equal(response.Data, mark) {
		t.Errorf("read: %q, %v", response.Data, err)
	}
	if _, err := client.Do(ctx, testproto.Request{Op: testproto.OpWrite, LUN: lun(t, readOnly), Data: mark}); err == nil {
		t.Errorf("the guest could write to a read-only disk")
	}
	if _, err := client.Do(ctx, testproto.Request{Op: testproto.OpWrite, LUN: lun(t, writable), Offset: 8192, Data: mark}); err != nil {
		t.Error(err)
	}
	got := make([]byte, len(mark))
	if _, err := file.ReadAt(got, 8192); err != nil || !bytes.Equal(got, mark) {
		t.Errorf("what the guest wrote: %q, %v", got, err)
	}
}

func (s suite) checkRefused(t *testing.T, vm vmm.VM) {
	t.Helper()
	ctx := s.context(t)
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	readOnly, err := os.Open(image(t, 1<<20).Name())
	if err != nil {
		t.Fatal(err)
	}
	defer readOnly.Close()
	for name, disk := range map[string]vmm.Disk{
		"no file":                    {},
		"a directory":                {File: dir, ReadOnly: true},
		"writable on read-only file": {File: readOnly},
	} {
		if at, err := vm.AddDisk(ctx, disk); !errdefs.IsInvalidArgument(err) {
			t.Errorf("AddDisk of %s: %q, %v; want ErrInvalidArgument", name, at, err)
		}
	}
	for _, at := range []vmm.Address{"", "scsi:", "scsi:254", "scsi:-1", "scsi:01", "disk:1"} {
		if err := vm.RemoveDisk(ctx, at); !errdefs.IsNotFound(err) {
			t.Errorf("RemoveDisk of %q: %v, want ErrNotFound", at, err)
		}
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if at, err := vm.AddDisk(cancelled, vmm.Disk{File: image(t, 1<<20)}); err == nil {
		t.Errorf("AddDisk with a context that is over: %s", at)
	}
}

func (s suite) manyDisks(t *testing.T) {
	const count = 40
	ctx := s.context(t)
	vm, client := s.start(t, s.spec(t))
	addresses := make([]vmm.Address, count)
	var group sync.WaitGroup
	for i := range count {
		group.Go(func() {
			var err error
			addresses[i], err = vm.AddDisk(ctx, vmm.Disk{File: image(t, int64(i+1)<<16), ReadOnly: i%2 == 0})
			if err != nil {
				t.Errorf("disk %d: %v", i, err)
			}
		})
	}
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
	var want []testproto.Disk
	for i, at := range addresses {
		want = append(want, testproto.Disk{LUN: lun(t, at), Bytes: int64(i+1) << 16, ReadOnly: i%2 == 0})
	}
	s.waitDisks(t, vm, client, want)
	for _, at := range addresses {
		group.Go(func() {
			if err := vm.RemoveDisk(ctx, at); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	s.waitDisks(t, vm, client, nil)
	s.stop(t, vm)
}

// stopEarly stops a VM whose guest hasn't booted and whose channel nobody has taken.
func (s suite) stopEarly(t *testing.T) {
	ctx := s.context(t)
	vm, err := s.Driver.Start(ctx, s.spec(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vm.AddDisk(ctx, vmm.Disk{File: image(t, 1<<20)}); err != nil {
		t.Error(err)
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if err := vm.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait for a VM that runs: %v, want DeadlineExceeded", err)
	}
	s.stop(t, vm)
	s.checkEnded(t, vm)
}

func (s suite) killed(t *testing.T) {
	ctx := s.context(t)
	spec := s.spec(t)
	vm, client := s.launch(t, spec)
	waits := waiters(ctx, vm, 3)
	s.Kill(t, spec.ID, vm)
	first := <-waits
	if !errdefs.IsUnavailable(first) || !strings.Contains(first.Error(), "signal killed") {
		t.Errorf("Wait after kill: %v, want ErrUnavailable that names the signal", first)
	}
	for range 2 {
		if err := <-waits; !same(err, first) {
			t.Errorf("Wait says %v to one and %v to another", first, err)
		}
	}
	if _, err := client.Do(ctx, testproto.Request{Op: testproto.OpEcho}); err == nil {
		t.Error("the guest of a dead VMM answers")
	}
	s.checkEnded(t, vm)
	if err := vm.Wait(ctx); !same(err, first) {
		t.Errorf("Wait after Stop of a dead VM: %v, want what it was before", err)
	}
}

func (s suite) guestPanic(t *testing.T) {
	ctx := s.context(t)
	vm, client := s.start(t, s.spec(t))
	if _, err := client.Do(ctx, testproto.Request{Op: testproto.OpPanic}); err == nil {
		t.Error("the guest answered after its panic")
	}
	err := vm.Wait(ctx)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "guest kernel panicked or rebooted") {
		t.Errorf("Wait after a panic: %v", err)
	}
	t.Logf("reason: %v", err)
	s.checkEnded(t, vm)
}

func (s suite) stop(t *testing.T, vm vmm.VM) {
	t.Helper()
	if err := vm.Stop(s.context(t)); err != nil {
		t.Errorf("Stop: %v", err)
	}
	if err := vm.Wait(s.context(t)); err != nil {
		t.Errorf("Wait after Stop: %v, want nil", err)
	}
}

// waitDisks waits until the guest sees just these disks.
func (s suite) waitDisks(t *testing.T, vm vmm.VM, client *testproto.Client, want []testproto.Disk) {
	t.Helper()
	want = slices.Clone(want)
	slices.SortFunc(want, func(a, b testproto.Disk) int { return a.LUN - b.LUN })
	ctx := s.context(t)
	eventually(t, s.Patience, func() error {
		response, err := client.Do(ctx, testproto.Request{Op: testproto.OpDisks})
		if err != nil {
			t.Fatalf("%v\nconsole: %q", err, console(vm))
		}
		if diff := cmp.Diff(want, response.Disks); diff != "" {
			return fmt.Errorf("disks in the guest (-want +got):\n%s", diff)
		}
		return nil
	})
}

// same says whether two errors say the same.
func same(a, b error) bool { return a != nil && b != nil && a.Error() == b.Error() }

// waiters calls Wait n times at once.
func waiters(ctx context.Context, vm vmm.VM, n int) <-chan error {
	results := make(chan error, n)
	for range n {
		go func() { results <- vm.Wait(ctx) }()
	}
	return results
}

func killProcess(t *testing.T, _ string, vm vmm.VM) {
	t.Helper()
	p, ok := vm.(vmm.Process)
	if !ok {
		t.Fatal("the VM has no process and the harness no Kill")
	}
	pid, _ := p.PID()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

func console(vm vmm.VM) string {
	if c, ok := vm.(vmm.Console); ok {
		return c.ConsoleTail()
	}
	return ""
}

// image makes a sparse file. It is closed by the end of the test.
func image(t *testing.T, size int64) *os.File {
	f, err := os.CreateTemp(t.TempDir(), "disk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func lun(t *testing.T, at vmm.Address) int {
	t.Helper()
	n, err := parseAddress(at)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// eventually tries until there is no error.
func eventually(t *testing.T, patience time.Duration, try func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v still: %v", patience, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// used is what this process has that may not grow from case to case.
type used struct {
	Files      map[string]int // open descriptors by what they are
	Children   []string
	Goroutines int
}

// resources looks at this process.
func resources(t *testing.T) used {
	t.Helper()
	u := used{Files: make(map[string]int), Goroutines: runtime.NumGoroutine()}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		target, err := os.Readlink("/proc/self/fd/" + entry.Name())
		if err != nil || strings.HasPrefix(target, "/proc/") {
			continue // the directory that is being read
		}
		kind, _, _ := strings.Cut(target, ":[")
		u.Files[kind]++
	}
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if data, err := os.ReadFile(task); err == nil {
			u.Children = append(u.Children, strings.Fields(string(data))...)
		}
	}
	slices.Sort(u.Children)
	return u
}

// checkLeaks compares. Descriptors and goroutines may take a moment to go.
func checkLeaks(t *testing.T, name string, before used) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		now := resources(t)
		now.Goroutines = max(now.Goroutines, before.Goroutines) // fewer are fine
		if diff := cmp.Diff(before, now); diff != "" {
			return fmt.Errorf("%s left something behind (-before +after):\n%s", name, diff)
		}
		return nil
	})
}
