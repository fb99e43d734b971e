package enter

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the children call. All of it is nosplit: see fork.

// atCWD is AT_FDCWD as an argument of a system call.
const atCWD = ^uintptr(99)

//go:nosplit
//go:norace
func call(number, a, b, c uintptr) syscall.Errno {
	_, _, errno := syscall.RawSyscall6(number, a, b, c, 0, 0, 0)
	return errno
}

//go:nosplit
//go:norace
func call6(number, a, b, c, d, e uintptr) syscall.Errno {
	_, _, errno := syscall.RawSyscall6(number, a, b, c, d, e, 0)
	return errno
}

//go:nosplit
//go:norace
func exit(status uintptr) {
	for {
		_, _, _ = syscall.RawSyscall(unix.SYS_EXIT_GROUP, status, 0, 0)
	}
}

// report writes a message. The pipe takes it as a whole, and the other child's after or before it.
//
//go:nosplit
//go:norace
func report(pipe uintptr, kind, x, y uint32) {
	m := [3]uint32{kind, x, y}
	_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, pipe, uintptr(unsafe.Pointer(&m)), messageLen)
}

// closeAllBut closes all descriptors above the standard ones but two, the lower given first.
//
//go:nosplit
//go:norace
func closeAllBut(low, high uintptr) syscall.Errno {
	if low > 3 {
		if errno := call(unix.SYS_CLOSE_RANGE, 3, low-1, 0); errno != 0 {
			return errno
		}
	}
	if high > low+1 {
		if errno := call(unix.SYS_CLOSE_RANGE, low+1, high-1, 0); errno != 0 {
			return errno
		}
	}
	return call(unix.SYS_CLOSE_RANGE, high+1, ^uintptr(0)>>32, 0)
}

// dropBounding leaves these capabilities in the bounding set, of those that the kernel knows.
//
//go:nosplit
//go:norace
func dropBounding(keep uint64) syscall.Errno {
	for c := uintptr(0); c < 64; c++ {
		if keep&(1<<c) != 0 {
			continue
		}
		if errno := call(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); errno != 0 {
			if errno == syscall.EINVAL {
				return 0 // beyond the last
			}
			return errno
		}
	}
	return 0
}

//go:nosplit
//go:norace
func raiseAmbient(set uint64) syscall.Errno {
	if errno := call6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); errno != 0 {
		return errno
	}
	for c := uintptr(0); c < 64; c++ {
		if set&(1<<c) == 0 {
			continue
		}
		if errno := call6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0); errno != 0 {
			return errno
		}
	}
	return 0
}

//go:nosplit
//go:norace
func setGroups(groups []uint32) syscall.Errno {
	if len(groups) == 0 {
		return call(unix.SYS_SETGROUPS, 0, 0, 0)
	}
	return call(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0)
}
