package guest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/guest/enter"
	"bulkhead.dev/bulkhead/internal/guest/reaper"
)

// entry says whether further processes can be started in a container by package enter, and what of the container's spec
// they take.
type entry struct {
	possible bool
	seccomp  bool
}

// entryOf reads a container's spec as the runtime gets it. What package enter can't do is left to the runtime: user and
// time namespaces, personalities, seccomp filters with flags or with somebody who is asked.
func entryOf(config []byte) entry {
	var spec struct {
		Linux struct {
			Namespaces  []specs.LinuxNamespace
			Seccomp     *specs.LinuxSeccomp
			Personality *specs.LinuxPersonality
		}
	}
	if err := json.Unmarshal(config, &spec); err != nil || spec.Linux.Personality != nil {
		return entry{}
	}
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.UserNamespace || ns.Type == specs.TimeNamespace {
			return entry{}
		}
	}
	s := spec.Linux.Seccomp
	if s != nil && (len(s.Flags) > 0 || s.ListenerPath != "" || s.ListenerMetadata != "") {
		return entry{}
	}
	return entry{possible: true, seccomp: s != nil}
}

// enterable translates an OCI process for package enter. It is false when there is something in it that only the runtime
// can do, such as a terminal or a label.
func enterable(config []byte) (enter.Process, bool) {
	var p specs.Process
	decoder := json.NewDecoder(bytes.NewReader(config))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&p); err != nil {
		return enter.Process{}, false
	}
	if p.Terminal || p.ApparmorProfile != "" || p.SelinuxLabel != "" || p.IOPriority != nil || p.Scheduler != nil || p.ExecCPUAffinity != nil ||
		p.CommandLine != "" || p.User.Username != "" || !filepath.IsAbs(p.Cwd) {
		return enter.Process{}, false
	}
	e := enter.Process{
		Args: p.Args, Env: p.Env, Cwd: p.Cwd, UID: p.User.UID, GID: p.User.GID, Groups: p.User.AdditionalGids, Umask: -1,
		NoNewPrivileges: p.NoNewPrivileges,
	}
	if p.User.Umask != nil {
		e.Umask = int(*p.User.Umask & 0o777)
	}
	if p.OOMScoreAdj != nil {
		e.OOMScoreAdj = *p.OOMScoreAdj
	}
	for _, l := range p.Rlimits {
		resource, ok := resources[l.Type]
		if !ok {
			return enter.Process{}, false
		}
		e.Limits = append(e.Limits, enter.Limit{Resource: resource, Soft: l.Soft, Hard: l.Hard})
	}
	if c := p.Capabilities; c != nil {
		for _, set := range []struct {
			names []string
			bits  *uint64
		}{{c.Bounding, &e.Bounding}, {c.Effective, &e.Effective}, {c.Inheritable, &e.Inheritable}, {c.Permitted, &e.Permitted}, {c.Ambient, &e.Ambient}} {
			for _, name := range set.names {
				bit, ok := capabilities[name]
				if !ok {
					return enter.Process{}, false
				}
				*set.bits |= 1 << bit
			}
		}
	}
	return e, true
}

var resources = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

var capabilities = map[string]uint{
	"CAP_CHOWN": unix.CAP_CHOWN, "CAP_DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "CAP_DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH,
	"CAP_FOWNER": unix.CAP_FOWNER, "CAP_FSETID": unix.CAP_FSETID, "CAP_KILL": unix.CAP_KILL, "CAP_SETGID": unix.CAP_SETGID,
	"CAP_SETUID": unix.CAP_SETUID, "CAP_SETPCAP": unix.CAP_SETPCAP, "CAP_LINUX_IMMUTABLE": unix.CAP_LINUX_IMMUTABLE,
	"CAP_NET_BIND_SERVICE": unix.CAP_NET_BIND_SERVICE, "CAP_NET_BROADCAST": unix.CAP_NET_BROADCAST, "CAP_NET_ADMIN": unix.CAP_NET_ADMIN,
	"CAP_NET_RAW": unix.CAP_NET_RAW, "CAP_IPC_LOCK": unix.CAP_IPC_LOCK, "CAP_IPC_OWNER": unix.CAP_IPC_OWNER,
	"CAP_SYS_MODULE": unix.CAP_SYS_MODULE, "CAP_SYS_RAWIO": unix.CAP_SYS_RAWIO, "CAP_SYS_CHROOT": unix.CAP_SYS_CHROOT,
	"CAP_SYS_PTRACE": unix.CAP_SYS_PTRACE, "CAP_SYS_PACCT": unix.CAP_SYS_PACCT, "CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN,
	"CAP_SYS_BOOT": unix.CAP_SYS_BOOT, "CAP_SYS_NICE": unix.CAP_SYS_NICE, "CAP_SYS_RESOURCE": unix.CAP_SYS_RESOURCE,
	"CAP_SYS_TIME": unix.CAP_SYS_TIME, "CAP_SYS_TTY_CONFIG": unix.CAP_SYS_TTY_CONFIG, "CAP_MKNOD": unix.CAP_MKNOD, "CAP_LEASE": unix.CAP_LEASE,
	"CAP_AUDIT_WRITE": unix.CAP_AUDIT_WRITE, "CAP_AUDIT_CONTROL": unix.CAP_AUDIT_CONTROL, "CAP_SETFCAP": unix.CAP_SETFCAP,
	"CAP_MAC_OVERRIDE": unix.CAP_MAC_OVERRIDE, "CAP_MAC_ADMIN": unix.CAP_MAC_ADMIN, "CAP_SYSLOG": unix.CAP_SYSLOG,
	"CAP_WAKE_ALARM": unix.CAP_WAKE_ALARM, "CAP_BLOCK_SUSPEND": unix.CAP_BLOCK_SUSPEND, "CAP_AUDIT_READ": unix.CAP_AUDIT_READ,
	"CAP_PERFMON": unix.CAP_PERFMON, "CAP_BPF": unix.CAP_BPF, "CAP_CHECKPOINT_RESTORE": unix.CAP_CHECKPOINT_RESTORE,
}

// execute starts an exec: by package enter where that is possible, and else by the runtime.
func (a *Agent) execute(ctx context.Context, c *container, p *process) (*reaper.Child, error) {
	if c.entry.possible {
		if e, ok := enterable(p.config); ok {
			return a.enter(c, p, e)
		}
	}
	file := filepath.Join(a.dirs.runs, "process-"+c.id+"-"+p.exec)
	config, err := p.io.sized(p.config)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, config, 0o600); err != nil {
		return nil, err
	}
	defer os.Remove(file)
	child, err := a.oci.exec(ctx, c.id, p.exec, file, p.io)
	if err != nil {
		return nil, err
	}
	// The runtime sets the score of a container's init only.
	if err := setOOMScore(child.PID(), p.oomScoreAdj); err != nil {
		a.log.Warn("exec keeps the agent's OOM score", "container", c.id, "exec", p.exec, "error", err)
	}
	return child, nil
}

func (a *Agent) enter(c *container, p *process, e enter.Process) (*reaper.Child, error) {
	init := c.init.pid()
	pidfd, err := unix.PidfdOpen(init, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the init of container %q: %w", c.id, err)
	}
	defer unix.Close(pidfd)
	// Until it is reaped, its pid is not another's: so the descriptor is the init's.
	if err := c.init.expect("entering", stateRunning); err != nil {
		return nil, err
	}
	if c.entry.seccomp {
		if e.Seccomp, err = a.oci.seccomp(c.id); err != nil {
			return nil, err
		}
	}
	if !hasVariable(e.Env, "HOME") {
		e.Env = append(e.Env[:len(e.Env):len(e.Env)], "HOME="+homeOf(init, e.UID))
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	for i, f := range p.io.child {
		e.Files[i] = null
		if f != nil {
			e.Files[i] = f
			// Opening /dev/stdout again is a matter of the pipe's owner.
			if err := f.Chown(int(e.UID), int(e.GID)); err != nil {
				return nil, fmt.Errorf("giving a pipe to user %d: %w", e.UID, err)
			}
		}
	}
	e.Init, e.Cgroup = pidfd, string(c.cgroup)

	hold := a.oci.reaper.Hold()
	defer hold.Release()
	pid, err := enter.Start(e)
	if err != nil {
		return nil, explainEntry(err, e.Args[0], e.Cwd)
	}
	return hold.Child(pid)
}

// explainEntry gives a failed entry the class and the words that the runtime would have for it.
func explainEntry(err error, program, cwd string) error {
	var failed *enter.Error
	if !errors.As(err, &failed) {
		return err
	}
	switch failed.Step {
	case enter.StepExec:
		switch failed.Errno {
		case syscall.ENOENT:
			if !strings.Contains(program, "/") {
				return fmt.Errorf("executable %q not found in $PATH: %w", program, errdefs.ErrNotFound)
			}
			return fmt.Errorf("executable %q: %w: %w", program, failed.Errno, errdefs.ErrNotFound)
		case syscall.EACCES, syscall.EPERM:
			return fmt.Errorf("executable %q: %w: %w", program, failed.Errno, errdefs.ErrPermissionDenied)
		}
		return fmt.Errorf("executable %q: %w: %w", program, failed.Errno, errdefs.ErrInvalidArgument)
	case enter.StepCwd:
		return fmt.Errorf("working directory %q: %w: %w", cwd, failed.Errno, errdefs.ErrInvalidArgument)
	case enter.StepUser:
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	case enter.StepJoin:
		if failed.Errno == syscall.ESRCH {
			return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
		}
	}
	return err
}

func hasVariable(env []string, name string) bool {
	for _, e := range env {
		if strings.HasPrefix(e, name+"=") {
			return true
		}
	}
	return false
}

// maxPasswd is how much of a container's /etc/passwd is read.
const maxPasswd = 1 << 20

// homeOf finds the home directory of a user in a container's /etc/passwd, which is whatever the container wants: opened
// beneath its root, and only if it is a file.
func homeOf(init int, uid uint32) string {
	const none = "/"
	root, err := unix.Open("/proc/"+strconv.Itoa(init)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return none
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, "etc/passwd", &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return none
	}
	f := os.NewFile(uintptr(fd), "passwd")
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return none
	}
	if home := homeIn(io.LimitReader(f, maxPasswd), uid); home != "" {
		return home
	}
	return none
}

// homeIn reads lines such as "name:x:1000:1000:comment:/home/name:/bin/sh".
func homeIn(passwd io.Reader, uid uint32) string {
	want := strconv.FormatUint(uint64(uid), 10)
	for lines := bufio.NewScanner(passwd); lines.Scan(); {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) >= 6 && fields[2] == want && filepath.IsAbs(fields[5]) && !strings.ContainsRune(fields[5], 0) {
			return fields[5]
		}
	}
	return ""
}
