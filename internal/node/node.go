package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/config"
)

const (
	// environment marks the processes of a node.
	environment = "BULKHEAD_NODE"
	// maxSocketPath is the kernel's limit, less the terminating zero.
	maxSocketPath = 107
	// startTimeout is for containerd to answer, on a slow machine.
	startTimeout = 2 * time.Minute
)

// Options say where a node is and what it is made from.
type Options struct {
	// Dir is the node's directory. It is made if it isn't there, and removed by Stop.
	Dir string
	// Bin is the directory of containerd, ctr, the shims, and of the CNI plugins in its subdirectory "cni".
	Bin string
	// Guest is the directory of the guest image; empty: the runtime's own default below Dir.
	Guest string
	// Acceleration is the runtime's vmm.acceleration; empty: its default.
	Acceleration string
	// Member makes it a node of a cluster; nil: a private containerd, which stands alone.
	Member *Member
}

// Node is a containerd and all that it runs.
type Node struct {
	dir, bin, sockets string
	options           Options
}

// At describes the node in a directory, whether it runs or not.
func At(o Options) (*Node, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("find node directory %s: %w", o.Dir, err)
	}
	bin, err := filepath.Abs(o.Bin)
	if err != nil {
		return nil, fmt.Errorf("find program directory %s: %w", o.Bin, err)
	}
	if dir == "/" {
		return nil, fmt.Errorf("a node can't have / for its directory: %w", errdefs.ErrInvalidArgument)
	}
	if o.Guest != "" {
		if o.Guest, err = filepath.Abs(o.Guest); err != nil {
			return nil, fmt.Errorf("find guest image: %w", err)
		}
	}
	hash := sha256.Sum256([]byte(dir))
	return &Node{dir: dir, bin: bin, sockets: "/run/bulkhead-node-" + hex.EncodeToString(hash[:4]), options: o}, nil
}

// Start starts the node in the caller's network namespace, or takes it as it is if it runs. When it fails, containerd doesn't run; files may be left, which
// Stop removes.
func Start(ctx context.Context, o Options) (*Node, error) {
	n, err := At(o)
	if err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("start a containerd: it needs root: %w", errdefs.ErrPermissionDenied)
	}
	if running, err := n.daemons(); err != nil {
		return nil, err
	} else if len(running) > 0 {
		return n, n.await(ctx, nil)
	}
	if err := n.checkPrograms(); err != nil {
		return nil, err
	}
	if err := n.prepare(); err != nil {
		return nil, err
	}
	if err := n.launch(ctx); err != nil {
		return nil, err
	}
	return n, nil
}

// Dir is the node's directory, absolute.
func (n *Node) Dir() string { return n.dir }

// Socket is the path of containerd's socket, for CRI too.
func (n *Node) Socket() string { return filepath.Join(n.sockets, "containerd.sock") }

// RunDir is where the runtime keeps its sockets and the records of running sandboxes.
func (n *Node) RunDir() string { return filepath.Join(n.sockets, "run") }

// Log is the path of what containerd and its shims said.
func (n *Node) Log() string { return n.path("containerd.log") }

func (n *Node) path(name string) string { return filepath.Join(n.dir, name) }

// Ctr runs containerd's client program against this node and returns what it wrote to stdout. An error has its stderr.
func (n *Node) Ctr(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(n.bin, "ctr"), append([]string{"--address", n.Socket()}, args...)...)
	cmd.WaitDelay = 5 * time.Second
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, complaint(stderr.String()))
	}
	return string(out), nil
}

// complaint is what ctr wrote to stderr, without the warnings that it passes on from containerd each time.
func complaint(stderr string) string {
	var kept []string
	for line := range strings.Lines(stderr) {
		if line = strings.TrimSpace(line); line != "" && !strings.Contains(line, "level=warning") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "\n")
}

func (n *Node) checkPrograms() error {
	built, installed := []string{"containerd", "ctr", "containerd-shim-runc-v2"}, []string{"runc"}
	if m := n.options.Member; m != nil {
		built = append(built, "cni/loopback", "cni/tuning", "cni/ptp", "cni/host-local", "cni/portmap")
		installed = append(installed, "nft")
		if m.VM {
			built = append(built, "containerd-shim-bulkhead-v2")
		}
	}
	for _, name := range built {
		if _, err := exec.LookPath(filepath.Join(n.bin, name)); err != nil {
			return fmt.Errorf("%w: build it with make bin: %w", err, errdefs.ErrFailedPrecondition)
		}
	}
	for _, name := range installed {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("%w: install it with make packages: %w", err, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// prepare makes the node's directories and writes its configuration.
func (n *Node) prepare() error {
	if longest := filepath.Join(n.sockets, "s", strings.Repeat("x", 64)); len(longest) > maxSocketPath {
		return fmt.Errorf("sockets below %s would have paths of more than %d bytes: %w", n.sockets, maxSocketPath, errdefs.ErrInvalidArgument)
	}
	if strings.ContainsAny(n.dir, `,:\`) {
		return fmt.Errorf("containerd can't mount containers below %s: commas, colons and backslashes have a meaning in mount options: %w",
			n.dir, errdefs.ErrInvalidArgument)
	}
	// The VMM runs as a user of its own and must be able to pass to the guest image.
	if err := os.MkdirAll(n.dir, 0o711); err != nil {
		return fmt.Errorf("make node directory: %w", err)
	}
	if err := checkOverlay(n.dir); err != nil {
		return err
	}
	if err := errors.Join(n.record(), makeShared(shared())); err != nil {
		return err
	}
	files, err := n.files()
	if err != nil {
		return err
	}
	if err := os.RemoveAll(n.path(mirrorDir)); err != nil { // a mirror that there is no more
		return fmt.Errorf("remove the node's mirrors: %w", err)
	}
	for _, dir := range []string{n.path("cni"), n.path("tmp"), n.path("bulkhead"), n.sockets, filepath.Join(n.sockets, "s"), n.RunDir()} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("make node directory: %w", err)
		}
	}
	for name, content := range files {
		if err := os.MkdirAll(filepath.Dir(n.path(name)), 0o711); err != nil {
			return fmt.Errorf("make node directory: %w", err)
		}
		if err := os.WriteFile(n.path(name), []byte(content), 0o644); err != nil {
			return fmt.Errorf("write the node's configuration: %w", err)
		}
	}
	return nil
}

// checkOverlay tries what containerd will do with every container: an overlay whose upper directory is here. Overlayfs
// itself, network file systems and the like can't hold one.
func checkOverlay(dir string) (err error) {
	base, err := os.MkdirTemp(dir, "overlay-check-")
	if err != nil {
		return fmt.Errorf("check for overlayfs: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(base)) }()
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(base, name), 0o700); err != nil {
			return fmt.Errorf("check for overlayfs: %w", err)
		}
	}
	merged := filepath.Join(base, "merged")
	data := fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", base)
	if err := syscall.Mount("overlay", merged, "overlay", 0, data); err != nil {
		return fmt.Errorf("the file system of %s can't hold an overlay's upper directory: %w: take a directory on ext4, xfs, btrfs or tmpfs: %w",
			dir, err, errdefs.ErrFailedPrecondition)
	}
	if err := syscall.Unmount(merged, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", merged, err)
	}
	return nil
}

// launch starts containerd in a session of its own, so that it lives on when this process ends.
func (n *Node) launch(ctx context.Context) error {
	log, err := os.OpenFile(n.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open containerd's log: %w", err)
	}
	defer log.Close()
	args := n.args()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, n.dir
	cmd.Env = append(os.Environ(), n.env()...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(ended)
	}()
	if err := n.await(ctx, ended); err != nil {
		_ = cmd.Process.Kill() // it may be gone already
		<-ended
		return err
	}
	return nil
}

// args is containerd's command line, env what its environment has besides.
func (n *Node) args() []string {
	return []string{filepath.Join(n.bin, "containerd"), "--config", n.path("containerd.toml")}
}

func (n *Node) env() []string {
	return []string{
		environment + "=" + n.dir,
		config.PathVariable + "=" + n.path("runtime.toml"),
		"PATH=" + n.bin + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin",
		"TMPDIR=" + n.path("tmp"),
	}
}

// await returns when containerd answers. Ended is closed when it ends; nil if it isn't this process's child.
func (n *Node) await(ctx context.Context, ended <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := n.Ctr(ctx, "--connect-timeout", "5s", "version")
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ended:
			return fmt.Errorf("containerd ended at once; its log ends with:\n%s", n.logTail())
		case <-ctx.Done():
			return fmt.Errorf("wait for containerd: %w: %w; its log ends with:\n%s", ctx.Err(), err, n.logTail())
		}
	}
}

// logTail returns the last lines of the log.
func (n *Node) logTail() string {
	const lines, size = 15, 16 << 10
	data, err := os.ReadFile(n.Log())
	if err != nil {
		return err.Error()
	}
	data = data[max(0, len(data)-size):]
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
