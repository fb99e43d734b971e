// Package cell runs a program that starts containers in namespaces of its own, so that it can leave nothing behind and can
// tell what is its own from what was there.
//
// [Main] starts the program twice again. The first child is process 1 of new PID, mount, network, IPC and UTS namespaces: it
// gives them a /proc, an empty /run and a loopback device, then starts the second child, in which the caller's function runs,
// and from there on only reaps. Whatever shims and VMs are started inside are orphaned to it and not to the machine's init. So
// inside, "every process but ours", "every mount", "every link" and "every unix socket" are short lists that nobody else on
// the machine adds to; package leak compares them. When the program ends, however it ends, the kernel kills the rest.
//
// Control groups are the one thing without a boundary of that kind: their hierarchies are the machine's. Names of containers
// and parents of control groups therefore hold [Token], or a word that was given to [Claim], and what is left with one of these
// is removed at the end.
package cell

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	roleVariable  = "BULKHEAD_TEST_CELL"
	tokenVariable = "BULKHEAD_TEST_TOKEN"
	dirVariable   = "BULKHEAD_TEST_DIR"
	keepVariable  = "BULKHEAD_TEST_KEEP"
)

// Token is a word that is in the names of everything this run makes in places it shares with the rest of the machine.
func Token() string { return os.Getenv(tokenVariable) }

// Dir is a directory for the files of this run. It is removed at the end, also when the run was ended by force, unless
// BULKHEAD_TEST_KEEP is set. Its path is short, because sockets are in it, and users other than root, such as the VMM's, can
// pass through it.
func Dir() string { return os.Getenv(dirVariable) }

// Main runs the function in the cell and exits with what it returns. It has to be called before the program has done
// anything else: it needs root, and says so when it hasn't got it.
func Main(run func() int) {
	switch os.Getenv(roleVariable) {
	case "":
		if os.Geteuid() != 0 {
			fmt.Fprintln(os.Stderr, "cell: making namespaces needs root")
			os.Exit(1)
		}
		os.Exit(enter())
	case "init":
		code, err := initialise()
		if err != nil {
			fmt.Fprintln(os.Stderr, "cell:", err)
			code = 1
		}
		os.Exit(code)
	default:
		os.Exit(run())
	}
}

// enter starts process 1 of the cell and waits for it.
func enter() int {
	// The death signal is tied to the thread that made the child.
	runtime.LockOSThread()
	token := "bt" + strconv.Itoa(os.Getpid()) + "x"
	dir := filepath.Join("/tmp", "bulkhead-"+token)
	if err := os.Mkdir(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, "cell: make the directory of the run:", err)
		return 1
	}
	child := exec.Command("/proc/self/exe", os.Args[1:]...)
	child.Args[0] = os.Args[0]
	child.Env = append(os.Environ(), roleVariable+"=init", tokenVariable+"="+token, dirVariable+"="+dir)
	child.Stdin, child.Stdout, child.Stderr = os.Stdin, os.Stdout, os.Stderr
	child.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := child.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "cell: start in new namespaces:", errors.Join(err, os.Remove(dir)))
		return 1
	}
	forward(child.Process.Pid)
	err := child.Wait()
	for _, word := range append(claimed(dir), token) {
		if err := removeCgroups(word); err != nil {
			fmt.Fprintln(os.Stderr, "cell:", err)
		}
	}
	if os.Getenv(keepVariable) != "" {
		fmt.Fprintln(os.Stderr, "cell: kept", dir)
	} else if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, "cell:", err)
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode()
	default:
		fmt.Fprintln(os.Stderr, "cell:", err)
		return 1
	}
}

// forward passes on the signals that ask a program to end or to show its stacks.
func forward(pid int) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGHUP)
	go func() {
		for s := range signals {
			_ = syscall.Kill(pid, s.(syscall.Signal))
		}
	}()
}

// initialise is process 1: it makes the namespaces habitable, starts the program and reaps.
func initialise() (int, error) {
	if err := furnish(); err != nil {
		return 0, err
	}
	program := exec.Command("/proc/self/exe", os.Args[1:]...)
	program.Args[0] = os.Args[0]
	program.Env = append(os.Environ(), roleVariable+"=inside")
	program.Stdin, program.Stdout, program.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := program.Start(); err != nil {
		return 0, fmt.Errorf("start the program in the cell: %w", err)
	}
	forward(program.Process.Pid)
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for the program in the cell: %w", err)
		case pid == program.Process.Pid && status.Signaled():
			return 0, fmt.Errorf("the program in the cell was ended by %v", status.Signal())
		case pid == program.Process.Pid && status.Exited():
			return status.ExitStatus(), nil
		}
	}
}

// furnish mounts what programs expect and brings loopback up.
func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, m := range []struct{ kind, target, data string }{
		{"proc", "/proc", ""},
		{"tmpfs", "/run", "mode=755"},
		{"tmpfs", "/dev/shm", "mode=1777"},
	} {
		if err := unix.Mount(m.kind, m.target, m.kind, unix.MS_NOSUID|unix.MS_NODEV, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
		}
	}
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback device: %w", err)
	}
	if err := netlink.LinkSetUp(loopback); err != nil {
		return fmt.Errorf("bring the loopback device up: %w", err)
	}
	return nil
}

// removeCgroups removes the control groups that have token in their names, leaves first. Their processes are gone with the
// PID namespace, or are about to be.
func removeCgroups(token string) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		left, err := Cgroups(token)
		if err != nil {
			return err
		}
		if len(left) == 0 {
			return nil
		}
		for i := len(left) - 1; i >= 0; i-- {
			err = errors.Join(err, os.Remove(left[i]))
		}
		if err != nil && time.Now().After(deadline) {
			return fmt.Errorf("remove control groups of this run: %w", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Claim says that control groups with the word in their path are this run's too, for programs that choose the names of theirs
// themselves.
func Claim(word string) error {
	file, err := os.OpenFile(claims(Dir()), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("claim control groups: %w", err)
	}
	_, err = fmt.Fprintln(file, word)
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("claim control groups: %w", err)
	}
	return nil
}

// Words are those by which the control groups of this run are known.
func Words() []string { return append(claimed(Dir()), Token()) }

// claims is a file with a word a line, because who claims is not the process that removes.
func claims(dir string) string { return filepath.Join(dir, "claimed-cgroups") }

func claimed(dir string) []string {
	data, err := os.ReadFile(claims(dir))
	if err != nil {
		return nil // nobody has claimed any
	}
	return strings.Fields(string(data))
}

// Cgroups lists the control groups of all hierarchies whose path has token in it, parents before children.
func Cgroups(token string) ([]string, error) {
	var found []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil // removed while we looked
			}
			return err
		}
		if entry.IsDir() && strings.Contains(path, token) {
			found = append(found, path)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list control groups: %w", err)
	}
	return found, nil
}
