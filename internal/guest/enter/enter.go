// Package enter starts a further process inside a running container: what an OCI runtime's "exec" does, without starting a
// runtime. In an emulated guest that is most of the time that an exec takes.
//
// A process that is to live in another pid namespace can't be started by fork and exec alone. It takes two forks:
//
//	agent ── fork ──► first child: into the container's cgroup; standard files in place, all others closed;
//	  │                 joins the namespaces of the container's init
//	  │                 └─ fork with CLONE_PARENT ──► second child, the agent's own child in the container's pid namespace:
//	  │                                                 limits, user, capabilities, seccomp, then exec
//	  └◄── pipe: the second child's pid; which step failed and why; the end of file when exec has succeeded
//
// Between the fork and the exec only raw system calls are made, on memory that was prepared before: the children are
// copies of a process with many threads, of which one is left. Everything that a [Process] asks for is done, or Start
// fails; what it can't express (a terminal, a label of a security module) is the OCI runtime's to do.
//
// The children are not dumpable, have none of the agent's files open, and join nothing before that is so: a container must
// not reach the agent through them.
package enter

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Process is what to start, and where.
type Process struct {
	// Init is a descriptor of the container's init (pidfd_open(2)).
	Init int
	// Cgroup is the path of the container's cgroup.
	Cgroup string

	Args, Env []string
	Cwd       string
	Files     [3]*os.File // standard input, output and error; none nil

	UID, GID uint32
	Groups   []uint32
	Umask    int // below 0: unchanged

	Bounding, Effective, Inheritable, Permitted, Ambient uint64 // capabilities, by bit
	NoNewPrivileges                                      bool
	// Seccomp is a compiled filter (an array of struct sock_filter); empty: none.
	Seccomp []byte

	Limits      []Limit
	OOMScoreAdj int
}

// Limit is a resource limit.
type Limit struct {
	Resource int // unix.RLIMIT_…
	Soft     uint64
	Hard     uint64
}

// Error says which step of a start has failed. It unwraps to a syscall.Errno.
type Error struct {
	Step  string // "joining the namespaces"; see the constants
	Errno syscall.Errno
}

func (e *Error) Error() string { return e.Step + ": " + e.Errno.Error() }
func (e *Error) Unwrap() error { return e.Errno }

// Steps that callers tell apart.
const (
	StepJoin = "joining the container's namespaces"
	StepCwd  = "changing to the working directory"
	StepUser = "changing the user"
	StepExec = "executing the program"
)

// The steps by number, as the children report them.
const (
	stepPrepare = iota
	stepCgroup
	stepOOM
	stepFiles
	stepJoin
	stepFork
	stepLimits
	stepCapabilities
	stepSeccomp
	stepUser
	stepCwd
	stepExec
)

var steps = [...]string{
	stepPrepare: "preparing", stepCgroup: "entering the container's cgroup", stepOOM: "setting the OOM score",
	stepFiles: "putting files in place", stepJoin: StepJoin, stepFork: "forking in the container", stepLimits: "setting resource limits",
	stepCapabilities: "setting capabilities", stepSeccomp: "installing the seccomp filter", stepUser: StepUser, stepCwd: StepCwd, stepExec: StepExec,
}

// Messages on the pipe: three numbers of the machine's byte order.
const (
	messageLen    = 12
	messagePID    = 1 // pid
	messageFailed = 2 // step, errno
)

// arguments is a Process in the form that raw system calls take. Nothing in it is allocated, grown or freed in a child.
type arguments struct {
	files           [3]uintptr
	pipe, pidfd     uintptr
	low, high       uintptr // pipe and pidfd, in order
	cgroup          uintptr
	oomFile         *byte
	oomScore        *byte
	oomLen          uintptr
	programs        []*byte
	argv, env       []*byte
	cwd             *byte
	uid, gid        uintptr
	groups          []uint32
	umask           int
	bounding        uint64
	ambient         uint64
	capHeader       unix.CapUserHeader
	capData         [2]unix.CapUserData
	noNewPrivileges bool
	seccomp         *unix.SockFprog
	limits          []Limit
	rlimits         []unix.Rlimit
	zero            byte
	buf             [4096]byte
}

// Start starts a process and returns its pid. The caller is its parent. It must hold statuses of unknown processes, since
// the process may end before its pid is known; the first child's status is nobody's.
func Start(p Process) (pid int, err error) {
	a, err := prepare(p)
	if err != nil {
		return 0, err
	}
	cgroup, err := os.OpenFile(p.Cgroup+"/cgroup.procs", os.O_WRONLY, 0)
	if err != nil {
		return 0, fmt.Errorf("opening the container's cgroup: %w", err)
	}
	defer cgroup.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("making a pipe: %w", err)
	}
	defer r.Close()
	a.cgroup, a.pipe, a.pidfd = cgroup.Fd(), w.Fd(), uintptr(p.Init)
	a.low, a.high = min(a.pipe, a.pidfd), max(a.pipe, a.pidfd)

	syscall.ForkLock.Lock()
	errno := fork(a)
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(a)
	runtime.KeepAlive(p.Files)
	w.Close()
	if errno != 0 {
		return 0, fmt.Errorf("forking: %w", errno)
	}
	return outcome(r)
}

// outcome reads what the children report until both have closed the pipe.
func outcome(r io.Reader) (pid int, err error) {
	for {
		var m [messageLen]byte
		if _, readErr := io.ReadFull(r, m[:]); readErr != nil {
			if readErr != io.EOF {
				return 0, fmt.Errorf("reading the start's outcome: %w", readErr)
			}
			if err == nil && pid == 0 {
				err = fmt.Errorf("starting a process: its parent died: %w", syscall.ECHILD)
			}
			return pid, err
		}
		x, y := binary.NativeEndian.Uint32(m[4:]), binary.NativeEndian.Uint32(m[8:])
		switch binary.NativeEndian.Uint32(m[:]) {
		case messagePID:
			pid = int(x)
		case messageFailed:
			step := "starting"
			if int(x) < len(steps) {
				step = steps[x]
			}
			err = &Error{Step: step, Errno: syscall.Errno(y)}
		}
	}
}

// prepare translates a Process.
func prepare(p Process) (*arguments, error) {
	if len(p.Args) == 0 || p.Args[0] == "" {
		return nil, fmt.Errorf("starting a process: no program: %w", syscall.EINVAL)
	}
	if len(p.Seccomp)%8 != 0 || len(p.Seccomp)/8 > 0xffff {
		return nil, fmt.Errorf("starting a process: seccomp filter of %d bytes: %w", len(p.Seccomp), syscall.EINVAL)
	}
	// To the kernel, that number means to leave the id as it is: root's.
	if p.UID == ^uint32(0) || p.GID == ^uint32(0) {
		return nil, &Error{Step: StepUser, Errno: syscall.EINVAL}
	}
	a := &arguments{
		uid: uintptr(p.UID), gid: uintptr(p.GID), groups: p.Groups, umask: p.Umask, bounding: p.Bounding, ambient: p.Ambient,
		noNewPrivileges: p.NoNewPrivileges, limits: p.Limits,
	}
	for i, f := range p.Files {
		a.files[i] = f.Fd()
	}
	var err error
	if a.argv, err = syscall.SlicePtrFromStrings(p.Args); err != nil {
		return nil, fmt.Errorf("starting a process: arguments: %w", err)
	}
	if a.env, err = syscall.SlicePtrFromStrings(p.Env); err != nil {
		return nil, fmt.Errorf("starting a process: environment: %w", err)
	}
	if a.programs, err = syscall.SlicePtrFromStrings(candidates(p.Args[0], p.Env)); err != nil {
		return nil, fmt.Errorf("starting a process: program: %w", err)
	}
	a.programs = a.programs[:len(a.programs)-1] // without the nil at the end
	cwd := p.Cwd
	if cwd == "" {
		cwd = "/"
	}
	if a.cwd, err = syscall.BytePtrFromString(cwd); err != nil {
		return nil, fmt.Errorf("starting a process: working directory: %w", err)
	}
	a.oomFile, _ = syscall.BytePtrFromString("/proc/self/oom_score_adj")
	score := []byte(strconv.Itoa(p.OOMScoreAdj))
	a.oomScore, a.oomLen = &score[0], uintptr(len(score))
	a.zero = '0'
	a.capHeader.Version = unix.LINUX_CAPABILITY_VERSION_3
	for i := range a.capData {
		shift := 32 * i
		a.capData[i] = unix.CapUserData{
			Effective: uint32(p.Effective >> shift), Permitted: uint32(p.Permitted >> shift), Inheritable: uint32(p.Inheritable >> shift),
		}
	}
	if len(p.Seccomp) > 0 {
		filter := make([]unix.SockFilter, len(p.Seccomp)/8)
		for i := range filter {
			b := p.Seccomp[8*i:]
			filter[i] = unix.SockFilter{Code: binary.NativeEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.NativeEndian.Uint32(b[4:])}
		}
		a.seccomp = &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	}
	for _, l := range p.Limits {
		a.rlimits = append(a.rlimits, unix.Rlimit{Cur: l.Soft, Max: l.Hard})
	}
	return a, nil
}

// candidates are the paths at which a program may be, as execvp(3) has it: a name with a slash is a path itself.
func candidates(name string, env []string) []string {
	if strings.Contains(name, "/") {
		return []string{name}
	}
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	var all []string
	for dir := range strings.SplitSeq(path, ":") {
		if dir == "" {
			dir = "."
		}
		all = append(all, dir+"/"+name)
	}
	return all
}

//go:linkname beforeFork syscall.runtime_BeforeFork
func beforeFork()

//go:linkname afterFork syscall.runtime_AfterFork
func afterFork()

//go:linkname afterForkInChild syscall.runtime_AfterForkInChild
func afterForkInChild()

// joined are the namespaces of the init that the process joins. User and time namespaces are not among them.
const joined = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

// fork makes the first child, which makes the second. In both, nothing may be called that could grow the stack: raw system
// calls and functions marked nosplit only.
//
//go:noinline
//go:norace
func fork(a *arguments) syscall.Errno {
	var (
		r     uintptr
		errno syscall.Errno
		step  uint32
		i     int
	)
	beforeFork()
	r, _, errno = syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || r != 0 {
		afterFork()
		return errno
	}
	// The first child.
	afterForkInChild()
	step = stepPrepare
	if errno = call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0); errno != 0 {
		goto fail
	}
	step = stepCgroup
	if errno = call(unix.SYS_WRITE, a.cgroup, uintptr(unsafe.Pointer(&a.zero)), 1); errno != 0 {
		goto fail
	}
	step = stepOOM
	r, _, errno = syscall.RawSyscall6(unix.SYS_OPENAT, atCWD, uintptr(unsafe.Pointer(a.oomFile)), unix.O_WRONLY|unix.O_CLOEXEC, 0, 0, 0)
	if errno != 0 {
		goto fail
	}
	if errno = call(unix.SYS_WRITE, r, uintptr(unsafe.Pointer(a.oomScore)), a.oomLen); errno != 0 {
		goto fail
	}
	step = stepFiles
	for i = range a.files {
		if errno = call(unix.SYS_DUP3, a.files[i], uintptr(i), 0); errno != 0 {
			goto fail
		}
	}
	if errno = closeAllBut(a.low, a.high); errno != 0 {
		goto fail
	}
	step = stepJoin
	if errno = call(unix.SYS_SETNS, a.pidfd, joined, 0); errno != 0 {
		goto fail
	}
	step = stepFork
	r, _, errno = syscall.RawSyscall6(syscall.SYS_CLONE, uintptr(syscall.SIGCHLD)|unix.CLONE_PARENT, 0, 0, 0, 0, 0)
	if errno != 0 {
		goto fail
	}
	if r != 0 {
		report(a.pipe, messagePID, uint32(r), 0)
		exit(0)
	}
	step, errno = inside(a) // the second child
fail:
	report(a.pipe, messageFailed, step, uint32(errno))
	exit(1)
	return 0
}

// inside is the second child, in the container: it becomes the process, or returns which step has failed and why.
//
//go:nosplit
//go:norace
func inside(a *arguments) (step uint32, errno syscall.Errno) {
	var (
		first syscall.Errno
		i     int
	)
	step = stepLimits
	if errno = call(unix.SYS_SETSID, 0, 0, 0); errno != 0 {
		return step, errno
	}
	for i = range a.rlimits {
		if _, _, errno = syscall.RawSyscall6(unix.SYS_PRLIMIT64, 0, uintptr(a.limits[i].Resource), uintptr(unsafe.Pointer(&a.rlimits[i])), 0, 0, 0); errno != 0 {
			return step, errno
		}
	}
	if a.umask >= 0 {
		_ = call(unix.SYS_UMASK, uintptr(a.umask), 0, 0)
	}
	step = stepCapabilities
	if errno = dropBounding(a.bounding); errno != 0 {
		return step, errno
	}
	// The directory may be open to root only, or (on a network file system) to the user only.
	first = call(unix.SYS_CHDIR, uintptr(unsafe.Pointer(a.cwd)), 0, 0)
	step = stepSeccomp
	// Without no_new_privs a filter takes CAP_SYS_ADMIN, so it comes before the user and the capabilities change.
	if a.seccomp != nil && !a.noNewPrivileges {
		if errno = call(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(a.seccomp))); errno != 0 {
			return step, errno
		}
	}
	step = stepUser
	if errno = call(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0); errno != 0 {
		return step, errno
	}
	if errno = setGroups(a.groups); errno != 0 {
		return step, errno
	}
	if errno = call(unix.SYS_SETRESGID, a.gid, a.gid, a.gid); errno != 0 {
		return step, errno
	}
	if errno = call(unix.SYS_SETRESUID, a.uid, a.uid, a.uid); errno != 0 {
		return step, errno
	}
	step = stepCapabilities
	if errno = call(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&a.capHeader)), uintptr(unsafe.Pointer(&a.capData)), 0); errno != 0 {
		return step, errno
	}
	if errno = raiseAmbient(a.ambient); errno != 0 {
		return step, errno
	}
	step = stepCwd
	if first != 0 {
		if errno = call(unix.SYS_CHDIR, uintptr(unsafe.Pointer(a.cwd)), 0, 0); errno != 0 {
			return step, errno
		}
	}
	// A path through a magic link could have led out of the container (CVE-2024-21626); its name is not absolute then.
	if errno = call(unix.SYS_GETCWD, uintptr(unsafe.Pointer(&a.buf)), uintptr(len(a.buf)), 0); errno != 0 {
		return step, errno
	}
	if a.buf[0] != '/' {
		return step, syscall.ENOENT
	}
	step = stepSeccomp
	if a.noNewPrivileges {
		if errno = call6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); errno != 0 {
			return step, errno
		}
		if a.seccomp != nil {
			if errno = call(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(a.seccomp))); errno != 0 {
				return step, errno
			}
		}
	}
	step = stepExec
	first = syscall.ENOENT
	for i = range a.programs {
		errno = call(unix.SYS_EXECVE, uintptr(unsafe.Pointer(a.programs[i])), uintptr(unsafe.Pointer(&a.argv[0])), uintptr(unsafe.Pointer(&a.env[0])))
		switch errno {
		case syscall.ENOENT, syscall.ENOTDIR:
		case syscall.EACCES: // another directory of the path may have one that can be executed
			first = errno
		default:
			return step, errno
		}
	}
	return step, first
}
