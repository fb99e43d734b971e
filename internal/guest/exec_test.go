package guest

import (
	"encoding/json"
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/guest/enter"
)

func TestEnterable(t *testing.T) {
	p := &specs.Process{
		Args: []string{"a", "b"}, Env: []string{"A=b"}, Cwd: "/", NoNewPrivileges: true, OOMScoreAdj: ptr(100),
		User:         specs.User{UID: 1, GID: 2, AdditionalGids: []uint32{3}, Umask: ptr[uint32](0o27)},
		Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1, Hard: 2}},
		Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"}, Effective: []string{"CAP_CHOWN"}, Ambient: []string{"CAP_KILL"}},
	}
	raw, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	got, ok := enterable(raw)
	if !ok {
		t.Fatal("not enterable")
	}
	want := enter.Process{
		Args: []string{"a", "b"}, Env: []string{"A=b"}, Cwd: "/", NoNewPrivileges: true, OOMScoreAdj: 100,
		UID: 1, GID: 2, Groups: []uint32{3}, Umask: 0o27,
		Bounding: 1 | 1<<40, Effective: 1, Ambient: 1 << 5,
		Limits: []enter.Limit{{Resource: unix.RLIMIT_NOFILE, Soft: 1, Hard: 2}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// What package enter can't express must go to the runtime, never be left out.
func TestNotEnterable(t *testing.T) {
	for name, spoil := range map[string]func(*specs.Process){
		"terminal":   func(p *specs.Process) { p.Terminal = true },
		"AppArmor":   func(p *specs.Process) { p.ApparmorProfile = "x" },
		"SELinux":    func(p *specs.Process) { p.SelinuxLabel = "x" },
		"I/O":        func(p *specs.Process) { p.IOPriority = &specs.LinuxIOPriority{} },
		"scheduler":  func(p *specs.Process) { p.Scheduler = &specs.Scheduler{} },
		"affinity":   func(p *specs.Process) { p.ExecCPUAffinity = &specs.CPUAffinity{} },
		"user name":  func(p *specs.Process) { p.User.Username = "x" },
		"no cwd":     func(p *specs.Process) { p.Cwd = "" },
		"limit":      func(p *specs.Process) { p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NEW"}} },
		"capability": func(p *specs.Process) { p.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_NEW"}} },
	} {
		t.Run(name, func(t *testing.T) {
			p := &specs.Process{Args: []string{"a"}, Cwd: "/"}
			spoil(p)
			raw, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			if _, ok := enterable(raw); ok {
				t.Error("enterable")
			}
		})
	}
	if _, ok := enterable([]byte(`{"args":["a"],"cwd":"/","future":1}`)); ok {
		t.Error("a field that isn't known is left out")
	}
}

func TestEntryOf(t *testing.T) {
	for name, tc := range map[string]struct {
		linux specs.Linux
		want  entry
	}{
		"plain":       {specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}}}, entry{possible: true}},
		"seccomp":     {specs.Linux{Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}}, entry{possible: true, seccomp: true}},
		"flags":       {specs.Linux{Seccomp: &specs.LinuxSeccomp{Flags: []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_LOG"}}}, entry{}},
		"listener":    {specs.Linux{Seccomp: &specs.LinuxSeccomp{ListenerPath: "/x"}}, entry{}},
		"user":        {specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.UserNamespace}}}, entry{}},
		"time":        {specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.TimeNamespace}}}, entry{}},
		"personality": {specs.Linux{Personality: &specs.LinuxPersonality{Domain: specs.PerLinux32}}, entry{}},
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := json.Marshal(specs.Spec{Linux: &tc.linux})
			if err != nil {
				t.Fatal(err)
			}
			if got := entryOf(raw); got != tc.want {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
		})
	}
}

func TestHomeIn(t *testing.T) {
	const passwd = "root:x:0:0:root:/root:/bin/sh\nbad\n:::\nuser:x:1000:1000::/home/user:/bin/sh\nrelative:x:7:7::home:/bin/sh\nother:x:1000:1000::/other:\n"
	for uid, want := range map[uint32]string{0: "/root", 1000: "/home/user", 7: "", 8: ""} {
		if got := homeIn(strings.NewReader(passwd), uid); got != want {
			t.Errorf("user %d: %q", uid, got)
		}
	}
}

func FuzzHomeIn(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\n", uint32(0))
	f.Fuzz(func(t *testing.T, passwd string, uid uint32) {
		if home := homeIn(strings.NewReader(passwd), uid); home != "" && (home[0] != '/' || strings.ContainsRune(home, 0)) {
			t.Errorf("%q", home)
		}
	})
}

func TestExplainEntry(t *testing.T) {
	for name, tc := range map[string]struct {
		step    string
		errno   syscall.Errno
		program string
		is      func(error) bool
	}{
		"missing in PATH": {enter.StepExec, syscall.ENOENT, "x", errdefs.IsNotFound},
		"missing":         {enter.StepExec, syscall.ENOENT, "/x", errdefs.IsNotFound},
		"not executable":  {enter.StepExec, syscall.EACCES, "/x", errdefs.IsPermissionDenied},
		"format":          {enter.StepExec, syscall.ENOEXEC, "/x", errdefs.IsInvalidArgument},
		"directory":       {enter.StepCwd, syscall.ENOENT, "/x", errdefs.IsInvalidArgument},
		"user":            {enter.StepUser, syscall.EINVAL, "/x", errdefs.IsInvalidArgument},
		"ended":           {enter.StepJoin, syscall.ESRCH, "/x", errdefs.IsFailedPrecondition},
	} {
		if err := explainEntry(&enter.Error{Step: tc.step, Errno: tc.errno}, tc.program, "/d"); !tc.is(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := explainEntry(&enter.Error{Step: enter.StepCwd, Errno: syscall.ENOTDIR}, "x", "/etc/passwd/x"); !strings.Contains(err.Error(), "/etc/passwd/x") {
		t.Errorf("the directory isn't named: %v", err)
	}
	if err := explainEntry(syscall.ENOMEM, "x", "/"); !errors.Is(err, syscall.ENOMEM) {
		t.Errorf("%v", err)
	}
}

func ptr[T any](v T) *T { return &v }
