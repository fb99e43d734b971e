package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// process is a running process of the node, held by a descriptor, so that its number can't come to mean another one.
type process struct {
	pid  int
	name string // of its program
	fd   int
}

func (p process) close() { unix.Close(p.fd) }

func (p process) signal(s unix.Signal) error {
	err := unix.PidfdSendSignal(p.fd, s, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// wait returns whether the process ended before the context did.
func (p process) wait(ctx context.Context) bool {
	for {
		fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, int((200 * time.Millisecond).Milliseconds())); err == nil && n == 1 {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
	}
}

// processes finds containerd of this node, the processes that it started, and the kubelet, by their environment. Those inside
// containers have another one; they end with their containers.
func (n *Node) processes() ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	mark := []byte(environment + "=" + n.dir)
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it ended
		}
		p := process{pid: pid, fd: fd}
		if p.name, err = program(pid, mark); err != nil || p.name == "" {
			p.close()
			if err != nil {
				return found, err
			}
			continue
		}
		found = append(found, p)
	}
	return found, nil
}

// program returns the name of a process's program if its environment has the mark, else "".
func program(pid int, mark []byte) (string, error) {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	env, err := os.ReadFile(filepath.Join(proc, "environ"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, fs.ErrPermission) {
		return "", nil // it ended, or isn't root's to look at, and so not ours
	}
	if err != nil {
		return "", fmt.Errorf("read the environment of process %d: %w", pid, err)
	}
	marked := false
	for _, variable := range bytes.Split(env, []byte{0}) {
		marked = marked || bytes.Equal(variable, mark)
	}
	if !marked {
		return "", nil
	}
	exe, err := os.Readlink(filepath.Join(proc, "exe"))
	if err != nil {
		return "", nil // it is ending
	}
	return filepath.Base(exe), nil
}

// daemons returns the node's running containerd: one, or none. The caller needs only their number and ids.
func (n *Node) daemons() ([]int, error) {
	all, err := n.processes()
	var pids []int
	for _, p := range all {
		if p.name == "containerd" {
			pids = append(pids, p.pid)
		}
		p.close()
	}
	return pids, err
}

// PID is the process id of the node's containerd, or 0 if it doesn't run.
func (n *Node) PID() (int, error) {
	pids, err := n.daemons()
	if err != nil || len(pids) == 0 {
		return 0, err
	}
	return pids[0], nil
}
