// Package kit is what the suite and the benchmark share: a private containerd, images made on the spot, and containers, pods
// and execs as values that are quick to make and sure to be removed.
//
// Nothing in it knows which runtime runs a container: a [Spec] names it, containerd's API defines it. Nothing in it fails a
// test either; it returns errors, so that the benchmark can use it too.
package kit

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// The runtimes that containers can be given.
const (
	Runc     = "io.containerd.runc.v2"
	Bulkhead = "io.containerd.bulkhead.v2"
)

// The containerd namespaces that are used.
const (
	Namespace    = "test"
	CRINamespace = "k8s.io"
)

// InNamespace returns a context for calls about one of containerd's namespaces.
func InNamespace(ctx context.Context, namespace string) context.Context {
	return namespaces.WithNamespace(ctx, namespace)
}

// Options say what a node is made from.
type Options struct {
	// Dir is an existing directory for everything the node keeps.
	Dir string
	// Binaries is the directory of containerd, the shims, runc and the CNI plugins; what isn't there is searched in PATH.
	Binaries string
	// Guest is the directory of the guest image.
	Guest string
	// Acceleration is the runtime's setting: "auto", "hardware" or "emulated".
	Acceleration string
}

// Node is a running private containerd.
type Node struct {
	Client *client.Client

	options Options
	daemon  *exec.Cmd
	ended   chan struct{} // closed when daemon has ended
}

// Start starts containerd and returns when it answers.
func Start(ctx context.Context, options Options) (*Node, error) {
	n := &Node{options: options}
	for _, dir := range []string{"bulkhead", "run", "fifo", "cni", "tmp"} {
		if err := os.MkdirAll(n.Path(dir), 0o755); err != nil {
			return nil, fmt.Errorf("make the node's directories: %w", err)
		}
	}
	// The guest image is shared by all runs; everything else below the state directory is the run's own.
	if err := os.Symlink(options.Guest, n.Path("bulkhead/guest")); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("link the guest image into the state directory: %w", err)
	}
	files := map[string]string{"containerd.toml": n.containerdConfig(), "bulkhead.toml": n.RuntimeConfig(nil), "cni/10-test.conflist": cniConfig}
	for name, content := range files {
		if err := os.WriteFile(n.Path(name), []byte(content), 0o644); err != nil {
			return nil, fmt.Errorf("write the node's configuration: %w", err)
		}
	}
	if err := n.StartDaemon(ctx); err != nil {
		return nil, err
	}
	return n, nil
}

// Path returns a path below the node's directory.
func (n *Node) Path(name string) string { return filepath.Join(n.options.Dir, name) }

// Socket is the path of containerd's socket, for CRI as well.
func (n *Node) Socket() string { return n.Path("containerd.sock") }

// Log is the path of what containerd and its shims logged.
func (n *Node) Log() string { return n.Path("containerd.log") }

// PID of containerd.
func (n *Node) PID() int { return n.daemon.Process.Pid }

// RuntimeConfig returns a configuration of the runtime for this node. The overrides are by "table.key", or "key" where the key
// is in no table, and their values are TOML's.
func (n *Node) RuntimeConfig(overrides map[string]string) string {
	values := map[string]string{
		"version": "1", "state_dir": strconv.Quote(n.Path("bulkhead")), "run_dir": strconv.Quote(n.Path("run")),
		"vmm.acceleration": strconv.Quote(n.options.Acceleration), "log.level": `"debug"`,
	}
	maps.Copy(values, overrides)
	var top, tables strings.Builder
	table := ""
	for _, name := range slices.Sorted(maps.Keys(values)) {
		in, key, ok := strings.Cut(name, ".")
		if !ok {
			fmt.Fprintf(&top, "%s = %s\n", name, values[name])
			continue
		}
		if in != table {
			fmt.Fprintf(&tables, "\n[%s]\n", in)
			table = in
		}
		fmt.Fprintf(&tables, "%s = %s\n", key, values[name])
	}
	return top.String() + tables.String()
}

// Configure replaces the runtime's configuration file, for shims that start from now on. It returns what puts the old one back.
func (n *Node) Configure(content string) (restore func() error, err error) {
	path := n.Path("bulkhead.toml")
	old, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		return nil, err
	}
	return func() error { return os.WriteFile(path, old, 0o644) }, nil
}

// StartDaemon starts containerd on the node's directory, the first time or after [Node.StopDaemon].
func (n *Node) StartDaemon(ctx context.Context) error {
	log, err := os.OpenFile(n.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	binary := filepath.Join(n.options.Binaries, "containerd")
	daemon := exec.Command(binary, "--config", n.Path("containerd.toml"))
	daemon.Env = append(os.Environ(),
		"PATH="+n.options.Binaries+":"+os.Getenv("PATH"),
		"BULKHEAD_CONFIG="+n.Path("bulkhead.toml"),
		"TMPDIR="+n.Path("tmp"),
	)
	daemon.Stdout, daemon.Stderr = log, log
	if err := daemon.Start(); err != nil {
		return fmt.Errorf("start %s: %w", binary, err)
	}
	n.daemon, n.ended = daemon, make(chan struct{})
	go func() {
		defer close(n.ended)
		_ = daemon.Wait()
	}()
	if err := n.connect(ctx); err != nil {
		return errors.Join(err, n.StopDaemon(syscall.SIGKILL))
	}
	return nil
}

// connect waits until containerd answers.
func (n *Node) connect(ctx context.Context) error {
	deadline := time.Now().Add(time.Minute)
	for {
		c, err := client.New(n.Socket(), client.WithDefaultNamespace(Namespace), client.WithTimeout(5*time.Second))
		if err == nil {
			var serving bool
			if serving, err = c.IsServing(ctx); err == nil && serving {
				n.Client = c
				return nil
			}
			err = errors.Join(err, c.Close())
		}
		select {
		case <-n.ended:
			return fmt.Errorf("containerd ended at once: %s", n.LogTail())
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("containerd doesn't answer: %w: %s", err, n.LogTail())
		}
	}
}

// StopDaemon ends containerd with a signal and waits for its end. Shims and containers live on.
func (n *Node) StopDaemon(signal syscall.Signal) error {
	var err error
	if n.Client != nil {
		err = n.Client.Close()
		n.Client = nil
	}
	err = errors.Join(err, n.daemon.Process.Signal(signal))
	select {
	case <-n.ended:
		return err
	case <-time.After(30 * time.Second):
		_ = n.daemon.Process.Kill()
		<-n.ended
		return errors.Join(err, fmt.Errorf("containerd did not end within 30 s of %v", signal))
	}
}

// LogTail returns the last lines of the log.
func (n *Node) LogTail() string {
	data, err := os.ReadFile(n.Log())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "\n")
}

// containerdConfig is the configuration of a node for tests: like a server's, in a directory of its own.
func (n *Node) containerdConfig() string {
	var handlers strings.Builder
	for _, h := range []struct{ name, runtime, sandboxer string }{
		{"runc", Runc, "podsandbox"},
		{"bulkhead", Bulkhead, "podsandbox"},
		{"bulkhead-shim", Bulkhead, "shim"},
	} {
		fmt.Fprintf(&handlers, `
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.%s]
runtime_type = %q
sandboxer = %q
pod_annotations = ["bulkhead.dev/*"]
`, h.name, h.runtime, h.sandboxer)
	}
	return fmt.Sprintf(`version = 3
root = %[1]q
state = %[2]q
disabled_plugins = ["io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
address = %[3]q

[debug]
level = "debug"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = %[4]q

# This machine may be without CAP_SYS_RESOURCE, and its hierarchies of control groups without hugetlb.
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
tolerate_missing_hugetlb_controller = true
netns_mounts_under_state_dir = true
disable_apparmor = true
enable_cdi = false

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = [%[5]q, %[8]q]
conf_dir = %[6]q
use_internal_loopback = true

[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = "runc"
%[7]s
`, n.Path("root"), n.Path("state"), n.Socket(), BaseImage, n.options.Binaries, n.Path("cni"), handlers.String(), filepath.Join(n.options.Binaries, "cni"))
}

// Bridge is the device that CNI makes for the first pod with a network and keeps.
const Bridge = "bulktest0"

// cniConfig is a bridge in the namespace of containerd, without a need for iptables.
const cniConfig = `{
  "cniVersion": "1.0.0",
  "name": "test",
  "plugins": [{
    "type": "bridge", "bridge": "` + Bridge + `", "isGateway": true, "ipMasq": false, "mtu": 1400,
    "ipam": {
      "type": "host-local", "dataDir": "/run/cni-ipam",
      "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]],
      "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    }
  }]
}
`
