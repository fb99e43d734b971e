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
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"bulkhead.dev/bulkhead/internal/node"
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

// Node is a running private containerd and a client of it.
type Node struct {
	*node.Node
	// Client is nil while containerd is stopped.
	Client *client.Client

	options node.Options
}

// Start starts containerd and returns when it answers.
func Start(ctx context.Context, options node.Options) (*Node, error) {
	n := &Node{options: options}
	if err := n.StartDaemon(ctx); err != nil {
		return nil, err
	}
	if err := os.Mkdir(n.Path("fifo"), 0o711); err != nil {
		return nil, fmt.Errorf("make the node's directory of FIFOs: %w", err)
	}
	return n, nil
}

// StartDaemon starts containerd on the node's directory, the first time or after [Node.StopDaemon].
func (n *Node) StartDaemon(ctx context.Context) error {
	var err error
	if n.Node, err = node.Start(ctx, n.options); err != nil {
		return err
	}
	n.Client, err = client.New(n.Socket(), client.WithDefaultNamespace(Namespace), client.WithTimeout(time.Minute))
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	return nil
}

// StopDaemon ends containerd with a signal and waits for its end. Shims and containers live on.
func (n *Node) StopDaemon(signal syscall.Signal) error {
	pid, err := n.PID()
	if err != nil {
		return err
	}
	if pid == 0 {
		return errors.New("containerd doesn't run")
	}
	if n.Client != nil {
		err = n.Client.Close()
		n.Client = nil
	}
	err = errors.Join(err, syscall.Kill(pid, signal))
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		now, failure := n.PID()
		if failure != nil || now != pid {
			return errors.Join(err, failure)
		}
		if time.Now().After(deadline) {
			return errors.Join(err, fmt.Errorf("containerd did not end within a minute of %v", signal))
		}
	}
}

// Stop ends everything and removes the node.
func (n *Node) Stop(ctx context.Context) error {
	var err error
	if n.Client != nil {
		err = n.Client.Close()
	}
	return errors.Join(err, n.Node.Stop(ctx))
}

// Path returns a path below the node's directory.
func (n *Node) Path(name string) string { return filepath.Join(n.Dir(), name) }

// RuntimeConfig returns a configuration of the runtime for this node. The overrides are by "table.key", or "key" where the key
// is in no table, and their values are TOML's.
func (n *Node) RuntimeConfig(overrides map[string]string) string {
	values := map[string]string{
		"version": "1", "state_dir": strconv.Quote(n.Path("bulkhead")), "run_dir": strconv.Quote(n.RunDir()),
		"guest.kernel":    strconv.Quote(filepath.Join(n.options.Guest, "kernel")),
		"guest.initramfs": strconv.Quote(filepath.Join(n.options.Guest, "initramfs")),
	}
	if n.options.Acceleration != "" {
		values["vmm.acceleration"] = strconv.Quote(n.options.Acceleration)
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
	path := n.Path("runtime.toml")
	old, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("configure the runtime: %w", err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		return nil, fmt.Errorf("configure the runtime: %w", err)
	}
	return func() error { return os.WriteFile(path, old, 0o644) }, nil
}
