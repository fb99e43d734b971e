//go:build root

package jail

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/cgroup"
)

const testUID, testGID = 2000123, 2000124

// sleeper is a program that stays until it is killed.
func sleeper() Config {
	return Config{
		Path: "/usr/bin/sleep", Args: []string{"sleep", "1000"}, Env: []string{"LC_ALL=C"},
		UID: testUID, GID: testGID,
		Root: []string{"/usr", "/lib", "/lib64", "/bin", "/nowhere"},
	}
}

func start(t *testing.T, config Config, files ...*os.File) *Process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	p, err := Start(ctx, config, null, files)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Kill(); <-p.Done() })
	return p
}

func proc(p *Process, name string) string { return fmt.Sprintf("/proc/%d/%s", p.pid, name) }

func statusOf(t *testing.T, p *Process) map[string]string {
	t.Helper()
	f, err := os.Open(proc(p, "status"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fields := make(map[string]string)
	for s := bufio.NewScanner(f); s.Scan(); {
		name, value, _ := strings.Cut(s.Text(), ":")
		fields[name] = strings.Join(strings.Fields(value), " ")
	}
	return fields
}

func TestPrivileges(t *testing.T) {
	got := statusOf(t, start(t, sleeper()))
	const none = "0000000000000000"
	want := map[string]string{
		"Name": "sleep",
		"Uid":  strings.TrimSpace(strings.Repeat(strconv.Itoa(testUID)+" ", 4)),
		"Gid":  strings.TrimSpace(strings.Repeat(strconv.Itoa(testGID)+" ", 4)),
		// No groups at all, and the others empty.
		"Groups": "", "CapEff": none, "CapPrm": none, "CapInh": none, "CapBnd": none, "CapAmb": none,
		"NoNewPrivs": "1", "Umask": "0077", "Threads": "1",
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			delete(got, name)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
}

func TestNamespaces(t *testing.T) {
	p := start(t, sleeper())
	for _, ns := range []string{"mnt", "ipc", "uts", "net", "cgroup"} {
		own, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		if theirs, err := os.Readlink(proc(p, "ns/"+ns)); err != nil || theirs == own {
			t.Errorf("%s namespace %s, %v; the caller's is %s", ns, theirs, err, own)
		}
	}
	routes, err := os.ReadFile(proc(p, "net/dev"))
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(routes), "\n"); lines != 3 { // two of heading, and lo
		t.Errorf("devices in the new network namespace:\n%s", routes)
	}

	// Another jail can join it.
	config := sleeper()
	config.NetNS = proc(p, "ns/net")
	q := start(t, config)
	first, _ := os.Readlink(proc(p, "ns/net"))
	if second, err := os.Readlink(proc(q, "ns/net")); err != nil || second != first {
		t.Errorf("network namespace %s, %v; want %s", second, err, first)
	}
	if sid, err := unix.Getsid(p.pid); err != nil || sid != p.pid {
		t.Errorf("session %d, %v; want %d", sid, err, p.pid)
	}
}

func TestRootDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(file, []byte("kernel"), 0o444); err != nil {
		t.Fatal(err)
	}
	config := sleeper()
	config.Root = append(config.Root, file)
	config.KVM = true
	p := start(t, config)
	entries, err := os.ReadDir(proc(p, "root"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if diff := cmp.Diff([]string{"bin", "dev", "lib", "lib64", "tmp", "usr"}, names); diff != "" {
		t.Errorf("root directory (-want +got):\n%s", diff)
	}
	if data, err := os.ReadFile(proc(p, "root") + file); err != nil || string(data) != "kernel" {
		t.Errorf("file in the jail: %q, %v", data, err)
	}
	for _, dir := range []string{"/", "/usr", "/dev"} {
		if err := os.WriteFile(proc(p, "root")+dir+"/x", nil, 0o644); !errors.Is(err, unix.EROFS) {
			t.Errorf("write to %s of the jail: %v, want EROFS", dir, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(proc(p, "root")+"/dev/kvm", &st); err != nil || st.Uid != testUID || st.Mode&0o777 != 0o600 {
		t.Errorf("/dev/kvm: %v, uid %d, mode %o", err, st.Uid, st.Mode)
	}
	mounts, err := os.ReadFile(proc(p, "mountinfo"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), "cgroup") {
		t.Errorf("mounts of the host are left:\n%s", mounts)
	}
}

func TestHostRoot(t *testing.T) {
	config := sleeper()
	config.Root = nil
	p := start(t, config)
	devices, err := os.ReadDir(proc(p, "root/dev"))
	if err != nil || len(devices) != 5 {
		t.Errorf("/dev in the jail: %v, %v", devices, err)
	}
}

func TestDescriptorsAndLimits(t *testing.T) {
	// What the parent holds without close-on-exec must not get in either.
	leak, err := unix.Dup(0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(leak)
	if leak < FirstFD+1 {
		high, err := unix.FcntlInt(uintptr(leak), unix.F_DUPFD, FirstFD+20)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(high)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := start(t, sleeper(), w)
	w.Close()
	entries, err := os.ReadDir(proc(p, "fd"))
	if err != nil {
		t.Fatal(err)
	}
	var fds []string
	for _, e := range entries {
		fds = append(fds, e.Name())
	}
	slices.Sort(fds)
	if diff := cmp.Diff([]string{"0", "1", "2", strconv.Itoa(FirstFD)}, fds); diff != "" {
		t.Errorf("descriptors (-want +got):\n%s", diff)
	}
	limits, err := os.ReadFile(proc(p, "limits"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(limits)) {
		fields := strings.Fields(line)
		if strings.HasPrefix(line, "Max core file size") && !slices.Equal(fields[4:6], []string{"0", "0"}) {
			t.Errorf("limit: %s", line)
		}
		if strings.HasPrefix(line, "Max open files") {
			if n, err := strconv.Atoi(fields[4]); err != nil || n > maxFiles {
				t.Errorf("limit: %s", line)
			}
		}
	}
	p.Kill()
	<-p.Done()
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the pipe after the process's end: %v, want EOF", err)
	}
	if s := p.State(); s == nil || s.String() != "signal: killed" {
		t.Errorf("State() = %v", s)
	}
}

func TestCgroup(t *testing.T) {
	path := fmt.Sprintf("/bulkhead-jail-%d/vm", os.Getpid())
	group, err := cgroup.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(group.Kill(), group.Remove()); err != nil {
			t.Error(err)
		}
	})
	config := sleeper()
	config.Cgroup = path
	p := start(t, config)
	in, err := os.ReadFile(proc(p, "cgroup"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(in)) {
		if !strings.HasSuffix(strings.TrimSpace(line), ":"+path) {
			t.Errorf("hierarchy not entered: %s", line)
		}
	}
}

func TestFailures(t *testing.T) {
	tests := map[string]struct {
		change func(*Config)
		is     func(error) bool
		text   string
	}{
		"no such program": {func(c *Config) { c.Path = "/usr/bin/nothing-of-the-kind" }, errdefs.IsNotFound, "execute /usr/bin/nothing-of-the-kind"},
		"no such netns":   {func(c *Config) { c.NetNS = "/run/netns/missing" }, errdefs.IsNotFound, "enter network namespace /run/netns/missing"},
		"not a netns":     {func(c *Config) { c.NetNS = "/etc/passwd" }, errdefs.IsInvalidArgument, "enter network namespace /etc/passwd"},
		"no such cgroup":  {func(c *Config) { c.Cgroup = "/missing/vm" }, errdefs.IsNotFound, "enter cgroup /missing/vm"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			config := sleeper()
			tc.change(&config)
			_, err := Start(t.Context(), config, nil, nil)
			if !tc.is(err) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("Start: %v", err)
			}
		})
	}
	if children := childrenOf(t, os.Getpid()); len(children) != 0 {
		t.Errorf("processes are left: %v", children)
	}
}

// TestDiesWithParent kills a process that has started a jail and sees the jailed program die.
func TestDiesWithParent(t *testing.T) {
	if os.Getenv("BULKHEAD_JAIL_PARENT") != "" {
		config := sleeper()
		p, err := Start(context.Background(), config, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("pid %d\n", p.pid)
		select {}
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestDiesWithParent$")
	cmd.Env = append(os.Environ(), "BULKHEAD_JAIL_PARENT=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	var pid int
	if _, err := fmt.Fscanf(out, "pid %d\n", &pid); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := waitGone(ctx, pid, fd); err != nil {
		t.Error(err)
	}
}

func childrenOf(t *testing.T, pid int) []string {
	t.Helper()
	var all []string
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		data, err := os.ReadFile(task)
		if err != nil {
			continue
		}
		all = append(all, strings.Fields(string(data))...)
	}
	return all
}
