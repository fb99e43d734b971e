package jail

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/cgroup"
)

// Limits of the program. A VMM holds a few descriptors a disk, and a thread a vCPU besides its pool of I/O threads.
const (
	maxFiles     = 4096
	maxProcesses = 1024
)

// Main returns at once unless this process is one that Start has started. Then it never returns.
func Main() {
	if len(os.Args) == 0 || os.Args[0] != roleName {
		return
	}
	// Namespaces, ids and capabilities are a thread's own. Everything happens on this one, and exec ends the others.
	runtime.LockOSThread()
	err := run()
	var errno unix.Errno
	errors.As(err, &errno)
	pipe := os.NewFile(statusFD, "status")
	_ = json.NewEncoder(pipe).Encode(status{Error: err.Error(), Errno: int(errno)})
	os.Exit(125)
}

// run builds the jail and executes the program; it returns only with an error.
func run() error {
	parent := os.Getppid()
	var sent message
	f := os.NewFile(configFD, "config")
	if err := json.NewDecoder(f).Decode(&sent); err != nil {
		return fmt.Errorf("read config: %w", err)
	}
	f.Close()
	config := sent.Config
	steps := []struct {
		name string
		do   func() error
	}{
		{"enter cgroup " + config.Cgroup, func() error { return enterCgroup(config.Cgroup) }},
		{"leave the parent's protection from the OOM killer", raiseOOMScore},
		{"enter network namespace " + config.NetNS, func() error { return enterNetNS(config.NetNS) }},
		{"make namespaces", func() error {
			return unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP)
		}},
		{"build the root directory", func() error { return buildRoot(config) }},
		{"start a session", func() error { _, err := unix.Setsid(); return err }},
		{"set resource limits", setLimits},
		{"set memory options", func() error { return setMemory(config) }},
		{"drop privileges", func() error { return dropPrivileges(int(config.UID), int(config.GID)) }},
		{"bind life to the parent's", func() error { return dieWith(parent) }},
		{"close other descriptors", func() error { return closeOthers(sent.Files) }},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	err := syscall.Exec(config.Path, config.Args, config.Env)
	return fmt.Errorf("execute %s: %w", config.Path, err)
}

func enterCgroup(path string) error {
	if path == "" {
		return nil
	}
	c, err := cgroup.Load(path)
	if err != nil {
		// The class doesn't travel over the pipe, its number does.
		return fmt.Errorf("%w: %w", err, unix.ENOENT)
	}
	return c.Enter(os.Getpid())
}

// raiseOOMScore gives up the protection that a shim may have and its VM must not: a negative score. Raising it needs no right.
func raiseOOMScore() error {
	const file = "/proc/self/oom_score_adj"
	data, err := os.ReadFile(file)
	if err != nil || len(data) == 0 || data[0] != '-' {
		return err
	}
	return os.WriteFile(file, []byte("0"), 0)
}

func enterNetNS(path string) error {
	if path == "" {
		return unix.Unshare(unix.CLONE_NEWNET)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Setns(fd, unix.CLONE_NEWNET)
}

// setLimits lowers what it can. Raising a hard limit needs CAP_SYS_RESOURCE, which not every host's root has, so a lower one
// that is in force stays.
func setLimits() error {
	limits := []struct {
		resource int
		max      uint64
	}{
		{unix.RLIMIT_CORE, 0}, // a core file of a VMM is the guest's memory
		{unix.RLIMIT_NOFILE, maxFiles},
		{unix.RLIMIT_NPROC, maxProcesses},
		{unix.RLIMIT_MSGQUEUE, 0},
	}
	for _, limit := range limits {
		var now unix.Rlimit
		if err := unix.Getrlimit(limit.resource, &now); err != nil {
			return err
		}
		set := min(limit.max, now.Max)
		if err := unix.Setrlimit(limit.resource, &unix.Rlimit{Cur: set, Max: set}); err != nil {
			return err
		}
	}
	return nil
}

func setMemory(config Config) error {
	unix.Umask(0o077)
	if !config.NoHugePages {
		return nil
	}
	return unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0)
}

// dropPrivileges gives up everything that root has. The system calls are the raw ones: they act on this thread alone, as
// the rest of the jail does.
func dropPrivileges(uid, gid int) error {
	for capability := range uintptr(64) {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // the kernel knows no more capabilities
		}
		if err != nil {
			return fmt.Errorf("drop capability %d from the bounding set: %w", capability, err)
		}
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return fmt.Errorf("drop supplementary groups: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)); errno != 0 {
		return fmt.Errorf("become group %d: %w", gid, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
		return fmt.Errorf("become user %d: %w", uid, errno)
	}
	// The change of ids cleared the effective, permitted and ambient sets, unless a securebit forbade it.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}

// dieWith comes after the change of ids, which would clear it. The parent may have died just before.
func dieWith(parent int) error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	if os.Getppid() != parent {
		return fmt.Errorf("the parent has died: %w", unix.ESRCH)
	}
	return nil
}

// closeOthers makes exec close all but the descriptors that Start handed over, which lie from FirstFD on: not only what this
// process opened, also what the parent had open without close-on-exec.
func closeOthers(files int) error {
	unix.CloseOnExec(statusFD)
	return unix.CloseRange(uint(FirstFD+files), ^uint(0)>>32, unix.CLOSE_RANGE_CLOEXEC)
}
