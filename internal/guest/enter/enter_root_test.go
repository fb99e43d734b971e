//go:build root

package enter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// namespaces starts a process that is the first in namespaces of its own, as a container's init is.
func namespaces(t *testing.T) (pidfd int, cgroup string) {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	// The new pid namespace wants a /proc of its own; the shell stays the init.
	pid, err := syscall.ForkExec("/bin/sh", []string{"sh", "-c", "mount -t proc proc /proc && hostname entered; while :; do sleep 1000; done"}, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{null.Fd(), null.Fd(), null.Fd()},
		Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC, Unshareflags: unix.CLONE_NEWNS},
	})
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err = unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(pid, syscall.SIGKILL)
		var ws syscall.WaitStatus
		syscall.Wait4(pid, &ws, 0, nil)
		unix.Close(pidfd)
	})
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/pids"} {
		cgroup = filepath.Join(root, fmt.Sprintf("bulkhead-enter-test-%d", pid))
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			continue
		}
		if err := os.Mkdir(cgroup, 0o755); err == nil {
			t.Cleanup(func() { unix.Rmdir(cgroup) })
			return pidfd, cgroup
		}
	}
	t.Fatal("there is no cgroup hierarchy to make a cgroup in")
	return 0, ""
}

type result struct {
	output string
	status int
}

// start runs a process to its end.
func start(t *testing.T, p Process) (result, error) {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p.Files = [3]*os.File{null, w, w}
	pid, err := Start(p)
	w.Close()
	if err != nil {
		if pid != 0 {
			var ws syscall.WaitStatus
			syscall.Wait4(pid, &ws, 0, nil)
		}
		return result{}, err
	}
	b, _ := io.ReadAll(r)
	var ws syscall.WaitStatus
	if got, err := syscall.Wait4(pid, &ws, 0, nil); err != nil || got != pid {
		t.Fatalf("process %d is not this one's child: %v", pid, err)
	}
	return result{string(b), ws.ExitStatus()}, nil
}

func base(t *testing.T, script string) Process {
	pidfd, cgroup := namespaces(t)
	return Process{
		Init: pidfd, Cgroup: cgroup, Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin", "A=b"}, Cwd: "/tmp", Umask: -1,
		Bounding: 1 << unix.CAP_KILL, Effective: 1 << unix.CAP_KILL, Permitted: 1 << unix.CAP_KILL,
	}
}

func TestStart(t *testing.T) {
	p := base(t, `echo $A; pwd; umask; ulimit -n; id -u; id -g; id -G; ls /proc/self/fd | wc -l; cat /proc/self/cgroup | grep -c enter-test; cat /proc/self/oom_score_adj; exit 7`)
	p.Umask, p.OOMScoreAdj = 0o027, 500
	p.UID, p.GID, p.Groups = 1000, 1001, []uint32{1001, 5}
	p.Limits = []Limit{{unix.RLIMIT_NOFILE, 77, 88}}
	got, err := start(t, p)
	if err != nil {
		t.Fatal(err)
	}
	// ls has the directory open beside its three.
	if want := "b\n/tmp\n0027\n77\n1000\n1001\n1001 5\n4\n1\n500\n"; got.output != want || got.status != 7 {
		t.Errorf("%q, %d; want %q", got.output, got.status, want)
	}
}

func TestStartJoinsNamespaces(t *testing.T) {
	p := base(t, "readlink /proc/self/ns/pid /proc/self/ns/mnt /proc/self/ns/uts; readlink /proc/1/ns/pid /proc/1/ns/mnt /proc/1/ns/uts")
	p.Bounding = 1<<41 - 1 // to look into another process
	var got result
	for { // until the init has mounted its /proc
		var err error
		if got, err = start(t, p); err != nil {
			t.Fatal(err)
		}
		if strings.Count(got.output, "\n") == 6 {
			break
		}
	}
	lines := strings.Split(got.output, "\n")
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if lines[i] != lines[i+3] || lines[i] == own {
			t.Errorf("process has %s, init %s, this one %s", lines[i], lines[i+3], own)
		}
	}
}

func TestStartCapabilities(t *testing.T) {
	const script = "grep -E 'Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs' /proc/self/status | cut -f2"
	p := base(t, script)
	p.NoNewPrivileges = true
	got, err := start(t, p)
	if err != nil {
		t.Fatal(err)
	}
	kill := fmt.Sprintf("%016x", 1<<unix.CAP_KILL)
	none := fmt.Sprintf("%016x", 0)
	if want := strings.Join([]string{none, kill, kill, kill, none, "1", ""}, "\n"); got.output != want {
		t.Errorf("root: %q, want %q", got.output, want)
	}
	p.UID = 1000
	if got, err = start(t, p); err != nil {
		t.Fatal(err)
	}
	if want := strings.Join([]string{none, none, none, kill, none, "1", ""}, "\n"); got.output != want {
		t.Errorf("user: %q, want %q", got.output, want)
	}
	p.Inheritable, p.Ambient = 1<<unix.CAP_KILL, 1<<unix.CAP_KILL
	if got, err = start(t, p); err != nil {
		t.Fatal(err)
	}
	if want := strings.Join([]string{kill, kill, kill, kill, kill, "1", ""}, "\n"); got.output != want {
		t.Errorf("user with ambient capabilities: %q, want %q", got.output, want)
	}
	p.Ambient = 1 << unix.CAP_SYS_ADMIN // more than permitted
	var failed *Error
	if _, err = start(t, p); !errors.As(err, &failed) || failed.Step != steps[stepCapabilities] {
		t.Errorf("ambient capability that is not permitted: %v", err)
	}
}

// filter compiles: system call number → ERRNO(77), all others allowed.
func filter(number uint32) []byte {
	var b []byte
	add := func(code uint16, jt, jf byte, k uint32) {
		b = binary.NativeEndian.AppendUint16(b, code)
		b = append(b, jt, jf)
		b = binary.NativeEndian.AppendUint32(b, k)
	}
	add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, 0)
	add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, 1, number)
	add(unix.BPF_RET|unix.BPF_K, 0, 0, unix.SECCOMP_RET_ERRNO|77)
	add(unix.BPF_RET|unix.BPF_K, 0, 0, unix.SECCOMP_RET_ALLOW)
	return b
}

func TestStartSeccomp(t *testing.T) {
	for _, nnp := range []bool{false, true} {
		p := base(t, "grep Seccomp: /proc/self/status | cut -f2; kill -0 $$")
		p.NoNewPrivileges, p.Seccomp = nnp, filter(unix.SYS_KILL)
		p.UID = 1000
		got, err := start(t, p)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(got.output, "2\n") || !strings.Contains(got.output, "77") && !strings.Contains(got.output, "File descriptor in bad state") || got.status == 0 {
			t.Errorf("no_new_privs %v: %q, %d", nnp, got.output, got.status)
		}
	}
	// A filter that forbids the exec itself.
	p := base(t, "true")
	p.NoNewPrivileges, p.Seccomp = true, filter(unix.SYS_EXECVE)
	if _, err := start(t, p); !errors.Is(err, syscall.Errno(77)) {
		t.Errorf("forbidden exec: %v", err)
	}
}

func TestStartFails(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte("#!/nonexistent\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		spoil func(*Process)
		step  string
		errno syscall.Errno
	}{
		"missing program":     {func(p *Process) { p.Args = []string{"nonesuch"} }, StepExec, syscall.ENOENT},
		"missing path":        {func(p *Process) { p.Args = []string{"/nonesuch"} }, StepExec, syscall.ENOENT},
		"missing interpreter": {func(p *Process) { p.Args = []string{script} }, StepExec, syscall.ENOENT},
		"not executable":      {func(p *Process) { p.Args = []string{text} }, StepExec, syscall.EACCES},
		"not executable in path": {func(p *Process) {
			p.Args, p.Env = []string{"text"}, []string{"PATH=" + dir + ":/bin"}
		}, StepExec, syscall.EACCES},
		"missing directory": {func(p *Process) { p.Cwd = "/nonesuch" }, StepCwd, syscall.ENOENT},
		"user":              {func(p *Process) { p.UID = 1<<32 - 1 }, StepUser, syscall.EINVAL},
		"group":             {func(p *Process) { p.GID = 1<<32 - 1 }, StepUser, syscall.EINVAL},
		"limit":             {func(p *Process) { p.Limits = []Limit{{unix.RLIMIT_NOFILE, 2, 1}} }, "setting resource limits", syscall.EINVAL},
		"init that ended":   {func(p *Process) { p.Init = deadPidfd(t) }, StepJoin, syscall.ESRCH},
	} {
		t.Run(name, func(t *testing.T) {
			p := base(t, "true")
			tc.spoil(&p)
			_, err := start(t, p)
			var failed *Error
			if !errors.As(err, &failed) || failed.Step != tc.step || failed.Errno != tc.errno {
				t.Errorf("%v", err)
			}
		})
	}
	p := base(t, "true")
	p.Cgroup = "/nonexistent"
	if _, err := start(t, p); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("missing cgroup: %v", err)
	}
}

// deadPidfd is a descriptor of a process that has ended.
func deadPidfd(t *testing.T) int {
	pid, err := syscall.ForkExec("/bin/true", []string{"true"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &ws, 0, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// TestStartAtOnce starts many at once, under a garbage collector at work: the children must not depend on the other threads.
func TestStartAtOnce(t *testing.T) {
	p := base(t, "exit 3")
	done := make(chan error, 32)
	for range cap(done) {
		go func() {
			null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
			if err != nil {
				done <- err
				return
			}
			defer null.Close()
			q := p
			q.Files = [3]*os.File{null, null, null}
			pid, err := Start(q)
			if err != nil {
				done <- err
				return
			}
			var ws syscall.WaitStatus
			for {
				if _, err = syscall.Wait4(pid, &ws, 0, nil); !errors.Is(err, syscall.EINTR) {
					break
				}
			}
			if err == nil && ws.ExitStatus() != 3 {
				err = fmt.Errorf("status %d", ws.ExitStatus())
			}
			done <- err
		}()
		_ = make([]byte, 1<<20)
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
