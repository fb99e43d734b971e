//go:build vm

package qemu

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/cgroup"
	"bulkhead.dev/bulkhead/internal/vmm"
	"bulkhead.dev/bulkhead/internal/vmm/vmmtest/testproto"
)

// TestJailedProcess looks at QEMU's own process while it runs a guest with a NIC, and asks the guest what it sees.
func TestJailedProcess(t *testing.T) {
	path := fmt.Sprintf("/bulkhead-qemu-%d/vm", os.Getpid())
	group, err := cgroup.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(group.Kill(), group.Remove()); err != nil {
			t.Error(err)
		}
	})
	spec := testSpec(t)
	spec.ID = "hardening"
	spec.Jail.Cgroup = path
	spec.NICs = []vmm.NIC{
		{Tap: openTap(t), MAC: net.HardwareAddr{0x02, 0, 0, 0, 0, 0x01}, MTU: 1450},
		{Tap: openTap(t), MAC: net.HardwareAddr{0x02, 0, 0, 0, 0, 0x02}, MTU: 9000},
	}
	started, err := New(Options{}).Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { started.Stop(t.Context()) })
	vm := started.(*machine)
	select {
	case <-vm.qmp.opened:
	case <-vm.ended:
		t.Fatal(vm.reason)
	case <-time.After(2 * time.Minute):
		t.Fatalf("the guest doesn't boot; console: %q", vm.ConsoleTail())
	}
	pid, _ := vm.PID()
	checkStatus(t, pid, spec)
	checkDescriptors(t, pid)
	in, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || strings.Count(string(in), ":"+path+"\n") != strings.Count(string(in), "\n") {
		t.Errorf("cgroups: %v\n%s", err, in)
	}

	conn, err := vm.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	response, err := testproto.NewClient(conn).Do(t.Context(), testproto.Request{Op: testproto.OpInfo})
	if err != nil {
		t.Fatal(err)
	}
	want := []testproto.NIC{{MAC: "02:00:00:00:00:01", MTU: 1450}, {MAC: "02:00:00:00:00:02", MTU: 9000}}
	if diff := cmp.Diff(want, response.Info.NICs); diff != "" {
		t.Errorf("NICs in the guest (-want +got):\n%s", diff)
	}
}

// checkStatus looks at every thread.
func checkStatus(t *testing.T, pid int, spec vmm.Spec) {
	t.Helper()
	const none = "0000000000000000"
	ids := fmt.Sprintf("%d %d %d %d", spec.Jail.UID, spec.Jail.UID, spec.Jail.UID, spec.Jail.UID)
	want := map[string]string{
		"Uid": ids, "Gid": ids, "Groups": "", "NoNewPrivs": "1",
		"CapEff": none, "CapPrm": none, "CapInh": none, "CapBnd": none, "CapAmb": none,
		"Seccomp": "2", // QEMU's own filter
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(threads) < 2 {
		t.Fatalf("threads: %v, %v", threads, err)
	}
	for _, thread := range threads {
		f, err := os.Open(thread)
		if err != nil {
			continue // an I/O thread that has ended
		}
		got := make(map[string]string)
		for s := bufio.NewScanner(f); s.Scan(); {
			name, value, _ := strings.Cut(s.Text(), ":")
			if _, ok := want[name]; ok {
				got[name] = strings.Join(strings.Fields(value), " ")
			}
		}
		f.Close()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", thread, diff)
		}
	}
}

// checkDescriptors finds anything that a VMM with no more than its channels and taps shouldn't have.
func checkDescriptors(t *testing.T, pid int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	kinds := make(map[string]int)
	for _, entry := range entries {
		target, err := os.Readlink(filepath.Join(dir, entry.Name()))
		if err != nil {
			continue
		}
		kind, _, _ := strings.Cut(target, ":[")
		kinds[kind]++
	}
	for kind := range kinds {
		switch {
		case kind == "socket", kind == "pipe", kind == "/dev/null", kind == "/dev/net/tun", kind == "anon_inode", strings.HasPrefix(kind, "anon_inode:"):
		default:
			t.Errorf("the VMM holds %d of %s", kinds[kind], kind)
		}
	}
	if kinds["socket"] != 3 || kinds["/dev/net/tun"] != 2 {
		t.Errorf("descriptors: %v", kinds)
	}
}

func openTap(t *testing.T) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatalf("no tap devices here: %v", err)
	}
	tap := os.NewFile(uintptr(fd), "/dev/net/tun")
	t.Cleanup(func() { tap.Close() })
	request, err := unix.NewIfreq("bhtest%d")
	if err != nil {
		t.Fatal(err)
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		t.Fatalf("make tap: %v", err)
	}
	return tap
}
