//go:build vm

package vm

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/test/kit"
)

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestOwnKernel is how people check that the runtime does anything: uname -r inside and outside.
func TestOwnKernel(t *testing.T) {
	onlyVM(t, "it has the host's kernel")
	ctx, c := shared(t)
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		t.Fatal(err)
	}
	guest := output(t, exec(t, ctx, c, "/bin/uname", "-r"))
	if outside := unix.ByteSliceToString(host.Release[:]); guest == outside || guest == "" {
		t.Errorf("the kernel inside is %q, outside %q", guest, outside)
	} else {
		t.Logf("inside %s, outside %s", guest, outside)
	}
}

// change turns a function on the spec into an option.
func change(f func(*specs.Spec)) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *container, s *oci.Spec) error { f(s); return nil }
}

// TestIsolation runs a container per setting and compares what it sees.
func TestIsolation(t *testing.T) {
	ctx, _ := shared(t)
	status := func(field string) string { return "grep " + field + ": /proc/self/status | cut -f2" }
	for name, test := range map[string]struct {
		options []oci.SpecOpts
		script  string
		want    string
	}{
		"default capabilities": {nil, status("CapEff") + "; " + status("CapBnd"), "00000000a80425fb\n00000000a80425fb"},
		"no capabilities":      {[]oci.SpecOpts{oci.WithCapabilities(nil)}, status("CapEff") + "; " + status("CapBnd") + "; " + status("CapPrm") + "; chown 1:1 /tmp 2>/dev/null || echo refused", "0000000000000000\n0000000000000000\n0000000000000000\nrefused"},
		"a capability more":    {[]oci.SpecOpts{oci.WithCapabilities([]string{"CAP_SYS_TIME"})}, status("CapEff"), "0000000002000000"},
		"no new privileges":    {[]oci.SpecOpts{oci.WithNoNewPrivileges}, status("NoNewPrivs"), "1"},
		"new privileges":       {[]oci.SpecOpts{oci.WithNewPrivileges}, status("NoNewPrivs"), "0"},
		"seccomp is on":        {nil, status("Seccomp"), "2"},
		"user":                 {[]oci.SpecOpts{oci.WithUser("app")}, "id -u; id -g; echo ~; touch /etc/x 2>/dev/null || echo refused", "1000\n1000\n/home/app\nrefused"},
		"numeric user":         {[]oci.SpecOpts{oci.WithUIDGID(12345, 54321), oci.WithAppendAdditionalGroups("2000")}, "id -u; id -g; id -G", "12345\n54321\n54321 2000"},
		"rlimit": {[]oci.SpecOpts{change(func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE"}}
		})}, "ulimit -Sn; ulimit -Hn; ulimit -c", "100\n200\n0"},
		"umask":                   {[]oci.SpecOpts{change(func(s *specs.Spec) { mask := uint32(0o27); s.Process.User.Umask = &mask })}, "umask", "0027"},
		"working directory":       {[]oci.SpecOpts{oci.WithProcessCwd("/home/app")}, "pwd", "/home/app"},
		"working directory made":  {[]oci.SpecOpts{oci.WithProcessCwd("/made/for/it")}, "pwd", "/made/for/it"},
		"environment":             {[]oci.SpecOpts{oci.WithEnv([]string{"ONE=1", "TWO= a  b "})}, `echo "$ONE[$TWO]"`, "1[ a  b ]"},
		"masked paths":            {nil, "cat /proc/kcore | wc -c; ls /proc/scsi /sys/firmware | grep -v :; cat /proc/timer_list 2>/dev/null | wc -c", "0\n0"},
		"own mask":                {[]oci.SpecOpts{oci.WithMaskedPaths([]string{"/etc/passwd", "/home"})}, "cat /etc/passwd; ls /home", ""},
		"read-only paths":         {nil, "echo 1 > /proc/sys/vm/drop_caches || echo refused; echo h > /proc/sysrq-trigger || echo refused", "refused\nrefused"},
		"own read-only path":      {[]oci.SpecOpts{oci.WithReadonlyPaths([]string{"/home"})}, "touch /home/x || echo refused", "refused"},
		"pid namespace":           {nil, "echo $$; test $(ls -d /proc/[0-9]* | wc -l) -lt 6 && echo few", "1\nfew"},
		"/dev/shm":                {nil, "stat -f -c %T /dev/shm; stat -c %a /dev/shm; echo x > /dev/shm/x; cat /dev/shm/x", "tmpfs\n1777\nx"},
		"default devices":         {nil, "cd /dev; ls -d null zero full random urandom tty ptmx pts shm mqueue fd stdin stdout stderr | wc -l; echo x > null; head -c 3 zero | wc -c; echo x > full || echo full", "14\n3\nfull"},
		"other devices":           {nil, "cd /dev; ls -d mem kmem kmsg port sd* vd* vport* fuse net hvc* 2>/dev/null; true", ""},
		"no device can be made":   {[]oci.SpecOpts{oci.WithSeccompUnconfined}, "mknod /tmp/disk b 8 0 && cat /tmp/disk | wc -c; mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem", "0"},
		"sysfs is read-only":      {nil, "touch /sys/x || echo refused", "refused"},
		"procfs is the container": {nil, "cat /proc/1/comm; true", "sh"},
	} {
		t.Run(name, func(t *testing.T) {
			got := inPod(t, ctx, kit.Spec{Args: sh(test.script), Options: test.options})
			if diff := cmp.Diff(test.want, strings.TrimSpace(got.Stdout)); diff != "" {
				t.Errorf("%s (-want +got):\n%s\nstderr: %s", test.script, diff, got.Stderr)
			}
		})
	}
}

// TestSeccompBlocks gives a process every capability, so that it can be nothing but the filter that stops it.
func TestSeccompBlocks(t *testing.T) {
	ctx, _ := shared(t)
	all := []string{"CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_MKNOD", "CAP_SYS_TIME", "CAP_SYS_BOOT"}
	try := func(options ...oci.SpecOpts) map[string]string {
		t.Helper()
		options = append([]oci.SpecOpts{oci.WithCapabilities(all)}, options...)
		answers := map[string]string{}
		for line := range strings.Lines(output(t, inPod(t, ctx, kit.Spec{Args: []string{"/bin/testprog", "syscalls"}, Options: options}))) {
			if name, answer, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
				answers[name] = answer
			}
		}
		return answers
	}
	// The profile was computed for the default capabilities, without those above.
	filtered := try()
	for _, call := range []string{"mount", "unshare", "keyctl", "swapoff", "settimeofday"} {
		if filtered[call] != "EPERM" {
			t.Errorf("%s under the default profile answers %q, want EPERM", call, filtered[call])
		}
	}
	open := try(oci.WithSeccompUnconfined)
	for call, want := range map[string]string{"mount": "ok", "unshare": "ok", "swapoff": "ENOENT"} {
		if open[call] != want {
			t.Errorf("%s without a profile answers %q, want %s", call, open[call], want)
		}
	}
	kills := try(change(func(s *specs.Spec) {
		errno := uint(unix.ENOTNAM)
		s.Linux.Seccomp = &specs.LinuxSeccomp{
			DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64},
			Syscalls: []specs.LinuxSyscall{{Names: []string{"chroot"}, Action: specs.ActErrno, ErrnoRet: &errno}},
		}
	}))
	if kills["chroot"] != "ENOTNAM" || kills["unshare"] != "ok" {
		t.Errorf("under a profile of its own chroot answers %q, unshare %q", kills["chroot"], kills["unshare"])
	}
}

func TestHostnameAndSysctl(t *testing.T) {
	ctx := checked(t)
	result, err := suite.node.Run(ctx, kit.Spec{
		Runtime: suite.runtime, Args: sh("hostname; cat /proc/sys/net/ipv4/ping_group_range /proc/sys/kernel/shm_rmid_forced; ip -o link | wc -l; ip -o addr show lo | grep -c 127.0.0.1"),
		Options: []oci.SpecOpts{oci.WithHostname("ship"), change(func(s *specs.Spec) {
			s.Linux.Sysctl = map[string]string{"net.ipv4.ping_group_range": "0 4242", "kernel.shm_rmid_forced": "1"}
		})},
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("ship\n0\t4242\n1", strings.Join(strings.Split(output(t, result), "\n")[:3], "\n")); diff != "" {
		t.Errorf("host name and sysctls (-want +got):\n%s", diff)
	}
}

func TestOOM(t *testing.T) {
	ctx, other := shared(t)
	listening, stop := context.WithCancel(ctx)
	defer stop()
	events, _ := suite.node.Client.EventService().Subscribe(listening, `topic=="/tasks/oom"`)
	c := launch(t, ctx, kit.Spec{Pod: suite.pod, Args: []string{"/bin/testprog", "alloc", "200"}, Options: []oci.SpecOpts{oci.WithMemoryLimit(48 << 20)}})
	result, err := c.Wait(ctx)
	if err != nil || result.Status != 137 {
		t.Errorf("200 MiB in a limit of 48 ended with %+v (%v), want status 137", result, err)
	}
	select {
	case <-events:
	case <-ctx.Done():
		t.Error("no oom event was published")
	}
	if got := output(t, exec(t, ctx, other, "/bin/echo", "alive")); got != "alive" {
		t.Errorf("the other container answers %q", got)
	}
}

// TestLimits checks that containers' limits hold inside of the VM, each for itself.
func TestLimits(t *testing.T) {
	ctx, _ := shared(t)
	t.Run("pids", func(t *testing.T) {
		result := inPod(t, ctx, kit.Spec{Args: []string{"/bin/testprog", "fork", "100"}, Options: []oci.SpecOpts{oci.WithPidsLimit(20)}})
		if result.Status == 0 || strings.Contains(result.Stdout, "forked") {
			t.Errorf("100 processes in a limit of 20: %+v", result)
		}
	})
}
