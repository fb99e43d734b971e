package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/cluster/component"
	"bulkhead.dev/bulkhead/internal/cluster/fabric"
	"bulkhead.dev/bulkhead/internal/cluster/spec"
	"bulkhead.dev/bulkhead/internal/feature"
)

// Options say where clusters are, and what they are made from.
type Options struct {
	// StateDir holds all clusters.
	StateDir string
	// GuestDir has the guest image of the pods' VMs.
	GuestDir string
	// BinDir has bulkhead, bulkhead-kube, containerd, ctr, the shims, and the CNI plugins in its subdirectory "cni".
	BinDir string
	// Progress is told what is being done, a line each; nil: nobody.
	Progress func(format string, args ...any)
}

// Manager makes, changes and removes clusters. Its methods can be called by several processes at once.
type Manager struct {
	o        Options
	features *feature.Store
}

// Open returns the manager of a state directory, which need not exist.
func Open(o Options) (*Manager, error) {
	for _, dir := range []*string{&o.StateDir, &o.BinDir, &o.GuestDir} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return nil, fmt.Errorf("find directory %q: %w", *dir, err)
		}
		// Names of sockets and networks are made from the path, so it has to be the same however it is written.
		if real, err := filepath.EvalSymlinks(abs); err == nil {
			abs = real
		}
		*dir = abs
	}
	if o.Progress == nil {
		o.Progress = func(string, ...any) {}
	}
	return &Manager{o: o, features: feature.Open(o.StateDir)}, nil
}

func (m *Manager) clustersDir() string { return filepath.Join(m.o.StateDir, "clusters") }

// place is where a cluster is: all that can be known of it without reading its record.
type place struct {
	name, dir, id string
}

func (m *Manager) place(name string) place {
	dir := filepath.Join(m.clustersDir(), name)
	hash := sha256.Sum256([]byte(dir))
	return place{name: name, dir: dir, id: hex.EncodeToString(hash[:4])}
}

// sockets is the directory of the cluster's unix sockets, whose paths must be short.
func (p place) sockets() string { return "/run/bulkhead-" + p.id }

// controlPlane is the directory of the control plane's supervisor.
func (p place) controlPlane() string { return filepath.Join(p.dir, "controlplane") }

// node is the directory of a node.
func (p place) node(name string) string { return filepath.Join(p.dir, "nodes", name) }

// supervisor is the directory of a node's supervisor.
func (p place) supervisor(node string) string { return filepath.Join(p.node(node), "supervisor") }

// cgroup is the control group that all groups of the cluster are in.
func (p place) cgroup() string { return "/bulkhead-" + p.id }

// adminConfig is the path of the administrator's kubeconfig.
func (p place) adminConfig() string { return filepath.Join(p.dir, "kubeconfig", "admin.conf") }

// network is the cluster's network; before its record can be read, only the names in it mean something.
func (p place) network(c spec.Cluster) fabric.Network {
	return fabric.Network{ID: p.id, Subnet: c.Subnet, IPv6: c.IPv6}
}

// cluster is a cluster that the caller has the lock of.
type cluster struct {
	place
	m      *Manager
	spec   spec.Cluster
	unlock func()
	// isolation is what runs the VMs of pods here, found by findIsolation; empty if no pool has VMs.
	isolation string
}

func (c *cluster) net() fabric.Network { return c.network(c.spec) }

// setPhase writes the cluster's record with another phase.
func (c *cluster) setPhase(phase spec.Phase) error {
	c.spec.Phase = phase
	return c.write()
}

func (c *cluster) write() error {
	if err := c.spec.Write(c.dir); err != nil {
		return fmt.Errorf("write the record of cluster %s: %w", c.name, err)
	}
	return nil
}

// lock takes the cluster's lock, which is released by unlock. It doesn't wait: a command that waited for another one to
// delete the cluster would not know what it waited for.
func (m *Manager) lock(name string) (unlock func(), err error) {
	if os.Geteuid() != 0 {
		return nil, errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("change cluster %s: it needs root", name))
	}
	path := filepath.Join(m.clustersDir(), "."+name+".lock")
	for {
		if err := os.MkdirAll(m.clustersDir(), 0o711); err != nil {
			return nil, fmt.Errorf("make the directory of clusters: %w", err)
		}
		f, err := flock(path, os.O_RDWR|os.O_CREATE, unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the directory went with the last cluster in it
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("cluster %s is being changed by another command: try again when it has ended", name))
		}
		if err != nil {
			return nil, fmt.Errorf("lock cluster %s: %w", name, err)
		}
		// The one who had it may have removed the file.
		mine, err := f.Stat()
		if err == nil {
			if now, err := os.Stat(path); err == nil && os.SameFile(mine, now) {
				return func() { m.unlock(name, path, f) }, nil
			}
		}
		f.Close()
	}
}

func flock(path string, flags, how int) (*os.File, error) {
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, err
		}
	}
}

// lockSubnets waits until no other cluster of this host, of whatever state directory, chooses or takes its subnet. What is locked
// is what the subnets are in: the network namespace itself.
func lockSubnets() (unlock func(), err error) {
	f, err := flock("/proc/self/ns/net", os.O_RDONLY, unix.LOCK_EX)
	if err != nil {
		return nil, fmt.Errorf("lock the choice of a subnet: %w", err)
	}
	return func() { f.Close() }, nil
}

// unlock releases a lock, and removes its file with the cluster.
func (m *Manager) unlock(name, path string, f *os.File) {
	if _, err := os.Lstat(m.place(name).dir); errors.Is(err, fs.ErrNotExist) {
		_ = os.Remove(path)
		_ = os.Remove(m.clustersDir()) // not empty: there are others, or one is being created
	}
	f.Close()
}

// open locks a cluster and reads its record.
func (m *Manager) open(name string) (*cluster, error) {
	if err := m.exists(name); err != nil {
		return nil, err
	}
	unlock, err := m.lock(name)
	if err != nil {
		return nil, err
	}
	c := &cluster{place: m.place(name), m: m, unlock: unlock}
	if c.spec, err = spec.Read(c.dir); err != nil {
		unlock()
		return nil, fmt.Errorf("read the record of cluster %s: %w", name, err)
	}
	return c, nil
}

// openUsable is open for a cluster that was made to the end.
func (m *Manager) openUsable(name string) (*cluster, error) {
	c, err := m.open(name)
	if err != nil {
		return nil, err
	}
	switch c.spec.Phase {
	case spec.Running, spec.Stopped:
		return c, nil
	default:
		c.unlock()
		return nil, errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("cluster %s is half-made: its record says %q, left by a command that was interrupted: "+
			"bulkhead cluster delete %s, or create it again", name, c.spec.Phase, name))
	}
}

// exists says whether there is a cluster of that name, in words for people.
func (m *Manager) exists(name string) error {
	if err := spec.ValidateClusterName(name); err != nil {
		return err
	}
	if _, err := os.Stat(m.place(name).dir); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for cluster %s: %w", name, err)
	}
	names, err := m.names()
	if err != nil {
		return err
	}
	others := "there is none; bulkhead cluster create makes one"
	if len(names) > 0 {
		others = "there is " + strings.Join(names, ", ")
	}
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("there is no cluster %s in %s: %s", name, m.o.StateDir, others))
}

// names lists the clusters, sorted.
func (m *Manager) names() ([]string, error) {
	entries, err := os.ReadDir(m.clustersDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list clusters: %w", err)
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

// Kubectl is kubectl as the cluster's administrator.
func (m *Manager) Kubectl(ctx context.Context, name string, args ...string) *exec.Cmd {
	p := m.place(name)
	cmd := exec.CommandContext(ctx, filepath.Join(m.o.BinDir, "bulkhead-kube"),
		append([]string{"kubectl", "--kubeconfig", p.adminConfig(), "--cache-dir", filepath.Join(p.dir, "cache")}, args...)...)
	return cmd
}

// kubectl runs it and returns what it wrote to stdout. An error has its stderr.
func (c *cluster) kubectl(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	cmd := c.m.Kubectl(ctx, c.name, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if stdin != nil {
		cmd.Stdin = strings.NewReader(string(stdin))
	}
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

// Credentials returns the administrator's kubeconfig of a cluster, whose names are all the cluster's.
func (m *Manager) Credentials(name string) ([]byte, error) {
	if err := m.exists(name); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(m.place(name).adminConfig())
	if err != nil {
		return nil, fmt.Errorf("read the administrator's kubeconfig of cluster %s: %w", name, err)
	}
	return data, nil
}

// hostResolvers are the host's name servers that can be asked from another network namespace.
func hostResolvers() []netip.Addr {
	data, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil // a machine without one resolves nothing either
	}
	return component.Resolvers(string(data))
}
