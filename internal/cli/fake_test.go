package cli

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/cluster"
	"bulkhead.dev/bulkhead/internal/cluster/spec"
	"bulkhead.dev/bulkhead/internal/cluster/supervise"
)

// fakeManager is a manager whose clusters are only in memory.
type fakeManager struct {
	options  cluster.Options
	clusters map[string]*cluster.Detail
	configs  map[string]spec.Config
	images   map[string][]cluster.Image
	// during, if it is set, happens in the middle of each change.
	during func(ctx context.Context) error
}

func newFakeManager() *fakeManager {
	return &fakeManager{clusters: map[string]*cluster.Detail{}, configs: map[string]spec.Config{}, images: map[string][]cluster.Image{}}
}

func (m *fakeManager) open(o cluster.Options) (manager, error) {
	m.options = o
	return m, nil
}

// run runs a command line, whose words are separated by spaces.
func (m *fakeManager) run(t *testing.T, line string) result {
	t.Helper()
	return m.runContext(t.Context(), line)
}

func (m *fakeManager) runContext(ctx context.Context, line string) result {
	var stdout, stderr bytes.Buffer
	status := run(ctx, m.open, strings.Fields(line), strings.NewReader(""), &stdout, &stderr)
	return result{status, stdout.String(), stderr.String()}
}

// must runs a command line that has to succeed.
func (m *fakeManager) must(t *testing.T, line string) result {
	t.Helper()
	got := m.run(t, line)
	if got.status != exitDone {
		t.Fatalf("%s: status %d: %s", line, got.status, got.stderr)
	}
	return got
}

func (m *fakeManager) find(name string) (*cluster.Detail, error) {
	c := m.clusters[name]
	if c == nil {
		return nil, fmt.Errorf("cluster %s: %w", name, errdefs.ErrNotFound)
	}
	return c, nil
}

// change is what all changes have in common.
func (m *fakeManager) change(ctx context.Context, name string, f func(*cluster.Detail) error) error {
	c, err := m.find(name)
	if err != nil {
		return err
	}
	m.options.Progress("changing cluster %s", name)
	if m.during != nil {
		if err := m.during(ctx); err != nil {
			return fmt.Errorf("change cluster %s: %w", name, err)
		}
	}
	return f(c)
}

func (m *fakeManager) List() ([]cluster.Summary, error) {
	var list []cluster.Summary
	for _, name := range slices.Sorted(maps.Keys(m.clusters)) {
		list = append(list, m.clusters[name].Summary)
	}
	return list, nil
}

func (m *fakeManager) Show(name string) (cluster.Detail, error) {
	c, err := m.find(name)
	if err != nil {
		return cluster.Detail{}, err
	}
	shown := *c
	shown.Pools, shown.Nodes = slices.Clone(c.Pools), slices.Clone(c.Nodes)
	return shown, nil
}

func (m *fakeManager) Credentials(name string) ([]byte, error) {
	c, err := m.find(name)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: %[1]s, cluster: {server: %[2]q}}]
users: [{name: %[1]s, user: {token: secret}}]
contexts: [{name: %[1]s, context: {cluster: %[1]s, user: %[1]s}}]
current-context: %[1]s
`, name, c.Server), nil
}

func (m *fakeManager) Create(ctx context.Context, name string, o cluster.CreateOptions) error {
	if m.clusters[name] != nil {
		return &spec.ParameterError{Parameter: "NAME", Value: name, Reason: "is taken", Fix: "take another"}
	}
	m.clusters[name] = &cluster.Detail{Summary: cluster.Summary{
		Name: name, Phase: spec.Creating, Server: "https://10.88.7.2:6443", KubernetesVersion: "v1.36.3",
		Created: time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC),
	}, Dir: "/var/lib/bulkhead/clusters/" + name, Subnets: []string{"10.88.7.0/24"}}
	err := m.change(ctx, name, func(c *cluster.Detail) error {
		c.Phase = spec.Running
		c.Components = []supervise.ProcessStatus{{Name: "etcd", PID: 12, Ready: true, Since: c.Created}, {Name: "scheduler", Restarts: 3}}
		m.configs[name] = o.Config
		for _, p := range o.Pools {
			addPool(c, p)
		}
		return nil
	})
	if err != nil {
		delete(m.clusters, name)
	}
	return err
}

func addPool(c *cluster.Detail, p spec.Pool) {
	c.Pools = append(c.Pools, p)
	for i := range p.Count {
		c.Nodes = append(c.Nodes, cluster.NodeDetail{
			Name: fmt.Sprintf("%s-%s-%d", c.Name, p.Name, i), Pool: p.Name, State: "running", Addresses: []string{"10.88.7.10", "fd88::10"},
		})
	}
	c.NodeCount = len(c.Nodes)
}

func (m *fakeManager) phase(ctx context.Context, name string, phase spec.Phase) error {
	return m.change(ctx, name, func(c *cluster.Detail) error {
		c.Phase = phase
		return nil
	})
}

func (m *fakeManager) Start(ctx context.Context, name string) error {
	return m.phase(ctx, name, spec.Running)
}

func (m *fakeManager) Stop(ctx context.Context, name string) error {
	return m.phase(ctx, name, spec.Stopped)
}

func (m *fakeManager) Renew(name string) error {
	_, err := m.Show(name)
	return err
}

func (m *fakeManager) Update(ctx context.Context, name string) error {
	return m.change(ctx, name, func(c *cluster.Detail) error {
		c.KubernetesVersion = "v1.36.4"
		return nil
	})
}

func (m *fakeManager) Delete(ctx context.Context, name string) error {
	return m.change(ctx, name, func(*cluster.Detail) error {
		delete(m.clusters, name)
		return nil
	})
}

func (m *fakeManager) AddPool(ctx context.Context, name string, p spec.Pool) error {
	return m.change(ctx, name, func(c *cluster.Detail) error {
		addPool(c, p)
		return nil
	})
}

func (m *fakeManager) DeletePool(ctx context.Context, name, pool string) error {
	return m.change(ctx, name, func(c *cluster.Detail) error {
		c.Pools = slices.DeleteFunc(c.Pools, func(p spec.Pool) bool { return p.Name == pool })
		c.Nodes = slices.DeleteFunc(c.Nodes, func(n cluster.NodeDetail) bool { return n.Pool == pool })
		c.NodeCount = len(c.Nodes)
		return nil
	})
}

func (m *fakeManager) ScalePool(ctx context.Context, name, pool string, count int) error {
	c, err := m.find(name)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(c.Pools, func(p spec.Pool) bool { return p.Name == pool })
	if i < 0 {
		return fmt.Errorf("pool %s: %w", pool, errdefs.ErrNotFound)
	}
	p := c.Pools[i]
	p.Count = count
	if err := m.DeletePool(ctx, name, pool); err != nil {
		return err
	}
	return m.AddPool(ctx, name, p)
}

func (m *fakeManager) nodeState(ctx context.Context, name, node, state string) error {
	return m.change(ctx, name, func(c *cluster.Detail) error {
		i := slices.IndexFunc(c.Nodes, func(n cluster.NodeDetail) bool { return n.Name == node })
		if i < 0 {
			return fmt.Errorf("node %s: %w", node, errdefs.ErrNotFound)
		}
		c.Nodes[i].State = state
		return nil
	})
}

func (m *fakeManager) NodeStart(ctx context.Context, name, node string) error {
	return m.nodeState(ctx, name, node, "running")
}

func (m *fakeManager) NodeStop(ctx context.Context, name, node string) error {
	return m.nodeState(ctx, name, node, "stopped")
}

func (m *fakeManager) NodePartition(ctx context.Context, name, node string, on bool) error {
	if on {
		return m.nodeState(ctx, name, node, "partitioned")
	}
	return m.nodeState(ctx, name, node, "running")
}

func (m *fakeManager) LoadImages(ctx context.Context, name string, files []string) error {
	return m.change(ctx, name, func(c *cluster.Detail) error {
		for _, file := range files {
			m.images[name] = append(m.images[name], cluster.Image{Name: file, Size: 1 << 20, Nodes: []string{c.Nodes[0].Name}})
		}
		return nil
	})
}

func (m *fakeManager) Images(_ context.Context, name string) ([]cluster.Image, error) {
	if _, err := m.find(name); err != nil {
		return nil, err
	}
	return m.images[name], nil
}
