package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/shim/task"
	"bulkhead.dev/bulkhead/internal/vmm/jail"
)

// listenerFD is where the shim finds its listener.
const listenerFD = 3

// start finds or starts the shim of a container's pod, and answers containerd with its address.
func start(_ context.Context, a arguments, stdin io.Reader, stdout io.Writer) error {
	b, err := readBootstrap(stdin, &a)
	if err != nil {
		return err
	}
	group, err := groupOf(a)
	if err != nil {
		return err
	}
	own := socketAddress(b.socketDir, a.address, a.namespace, group)
	if group != a.id {
		// A container of a pod. Its sandbox came first, or can't be.
		for _, address := range []string{readAddress(filepath.Join(filepath.Dir(a.bundle), group)), own} {
			if address != "" && answers(address) {
				return b.answer(stdout, address)
			}
		}
		return fmt.Errorf("container %s: the shim of its sandbox %s does not answer: %w", a.id, group, errdefs.ErrNotFound)
	}
	if path, err := task.ConfigPath(b.options, a.bundle); err != nil {
		return err
	} else if path != "" {
		a.config = path
	}
	l, err := listen(own)
	if err != nil {
		return err
	}
	if l != nil {
		defer l.Close()
		if err := startShim(a, own, l); err != nil {
			return errors.Join(err, removeSocket(own))
		}
	}
	return b.answer(stdout, own)
}

// groupOf names the shim that a container belongs to: by its sandbox's ID in a pod, by its own without.
func groupOf(a arguments) (string, error) {
	spec, err := task.ReadSpec(a.bundle)
	if errors.Is(err, fs.ErrNotExist) {
		return a.id, nil // a sandbox of the sandbox service has no spec
	}
	if err != nil {
		return "", err
	}
	if group := spec.Annotations[task.AnnotationSandboxID]; group != "" {
		// It becomes part of a path.
		if group != filepath.Base(group) || strings.HasPrefix(group, ".") {
			return "", fmt.Errorf("annotation %s: %.128q is not an ID: %w", task.AnnotationSandboxID, group, errdefs.ErrInvalidArgument)
		}
		return group, nil
	}
	return a.id, nil
}

// startShim starts the process that stays, with the listener, and keeps in the bundle what "delete" needs to find it.
func startShim(a arguments, address string, l *net.UnixListener) error {
	if err := writeFile(a.bundle, addressFile, []byte(address)); err != nil {
		return err
	}
	cmd, err := command(a, l)
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	if err := record(a.bundle, cmd.Process.Pid); err != nil {
		return errors.Join(err, cmd.Process.Kill())
	}
	adjustOOMScore(cmd.Process.Pid)
	return cmd.Process.Release()
}

func command(a arguments, l *net.UnixListener) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the shim's program: %w", err)
	}
	listener, err := l.File()
	if err != nil {
		return nil, fmt.Errorf("hand on the shim's socket: %w", err)
	}
	args := []string{"-namespace", a.namespace, "-id", a.id, "-address", a.address, "-publish-binary", a.publishBinary}
	if a.config != "" {
		args = append(args, "-config", a.config)
	}
	if a.debug {
		args = append(args, "-debug")
	}
	cmd := exec.Command(self, args...)
	cmd.Dir = a.bundle
	// containerd limits the short-lived process by GOMAXPROCS; the shim's own limits are set by tune.
	cmd.Env = append(os.Environ(), "TTRPC_ADDRESS="+a.ttrpcAddress, "GOMAXPROCS=2")
	cmd.ExtraFiles = []*os.File{listener}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd, nil
}

func record(bundle string, pid int) error {
	started, err := jail.StartTime(pid)
	if err != nil {
		return err
	}
	if err := writeRecord(bundle, shimFile, shimRecord{Version: 1, PID: pid, StartTime: started}); err != nil {
		return err
	}
	return writeFile(bundle, pidFile, []byte(strconv.Itoa(pid)))
}

// adjustOOMScore makes the shim a little likelier to be killed than containerd, which has lost nothing when it is: the
// kernel then takes pods before the daemon. Not everybody may change a score, and it isn't worth a pod.
func adjustOOMScore(pid int) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", os.Getppid()))
	if err != nil {
		return
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return
	}
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(min(score+1, 1000))), 0)
}
