package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/cluster/spec"
	"bulkhead.dev/bulkhead/internal/cluster/supervise"
)

// drainTimeout is how long the pods of a node that is removed may take to end.
const drainTimeout = 90 * time.Second

// AddPool adds a pool to a running cluster and returns when its nodes are ready. If it fails, the pool is removed again.
func (m *Manager) AddPool(ctx context.Context, name string, p spec.Pool) error {
	c, err := m.openRunning(name)
	if err != nil {
		return err
	}
	defer c.unlock()
	if c.spec.Pool(p.Name) != nil {
		return &spec.ParameterError{
			Parameter: "--name", Value: p.Name, Reason: "cluster " + name + " has a pool of that name",
			Fix: "take another name, or bulkhead nodepool scale",
		}
	}
	if err := m.checkPool(ctx, p, c.spec.Config); err != nil {
		return err
	}
	wasWithout := !c.hasVMs()
	c.spec.Pools = append(c.spec.Pools, p)
	names, err := c.allocate(p.Name, p.Count)
	if err != nil {
		return err
	}
	if err := c.write(); err != nil {
		return err
	}
	err = c.bringUp(ctx, names)
	if err == nil && wasWithout && c.hasVMs() {
		err = c.applyManifests(ctx) // the RuntimeClasses select how the VMs are isolated
	}
	if err == nil {
		return nil
	}
	m.o.Progress("removing what was made of pool %s", p.Name)
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return errors.Join(err, c.dropPool(undo, p.Name, false))
}

// allocate gives names to new nodes of a pool.
func (c *cluster) allocate(pool string, count int) ([]string, error) {
	var names []string
	for range count {
		n, err := c.spec.AllocateNode(pool)
		if err != nil {
			return nil, err
		}
		names = append(names, n.Name)
	}
	return names, nil
}

// ScalePool makes a pool have that many nodes. The pods of nodes that go are evicted first, those with the highest numbers
// first.
func (m *Manager) ScalePool(ctx context.Context, name, pool string, count int) error {
	c, err := m.openRunning(name)
	if err != nil {
		return err
	}
	defer c.unlock()
	p, err := c.pool(pool)
	if err != nil {
		return err
	}
	if err := spec.ValidateNodeCount(count); err != nil {
		return err
	}
	have := c.spec.NodesOf(pool)
	if count >= len(have) {
		return c.growPool(ctx, p, have, count)
	}
	for _, n := range slices.Backward(have[count:]) {
		p.Count = len(c.spec.NodesOf(pool)) - 1 // which is written with the node's removal
		if err := c.dropNode(ctx, n, true); err != nil {
			return err
		}
	}
	return c.connect(ctx)
}

// growPool adds nodes to a pool, which may be none. Those that it has are brought up too: a command that was killed may have left
// some half-made. If it fails, the new ones are removed again.
func (c *cluster) growPool(ctx context.Context, p *spec.Pool, have []spec.Node, count int) error {
	added, err := c.allocate(p.Name, count-len(have))
	if err != nil {
		return err
	}
	before := p.Count
	p.Count = count
	if err := c.write(); err != nil {
		return err
	}
	var names []string
	for _, n := range c.spec.NodesOf(p.Name) {
		if !n.Stopped {
			names = append(names, n.Name)
		}
	}
	if err = c.bringUp(ctx, names); err == nil || len(added) == 0 {
		return err
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	for _, name := range slices.Backward(added) {
		if left := c.dropNode(undo, *c.spec.Node(name), false); left != nil {
			return errors.Join(err, left)
		}
	}
	p.Count = before
	return errors.Join(err, c.write(), c.connect(undo))
}

func (c *cluster) pool(name string) (*spec.Pool, error) {
	if p := c.spec.Pool(name); p != nil {
		return p, nil
	}
	var names []string
	for _, p := range c.spec.Pools {
		names = append(names, p.Name)
	}
	return nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("cluster %s has no pool %s; it has %s", c.name, name, strings.Join(names, ", ")))
}

// DeletePool evicts the pods of a pool and removes its nodes.
func (m *Manager) DeletePool(ctx context.Context, name, pool string) error {
	c, err := m.openRunning(name)
	if err != nil {
		return err
	}
	defer c.unlock()
	if _, err := c.pool(pool); err != nil {
		return err
	}
	return c.dropPool(ctx, pool, true)
}

func (c *cluster) dropPool(ctx context.Context, pool string, drain bool) error {
	for _, n := range slices.Backward(c.spec.NodesOf(pool)) {
		if err := c.dropNode(ctx, n, drain); err != nil {
			return err
		}
	}
	c.spec.Pools = slices.DeleteFunc(c.spec.Pools, func(p spec.Pool) bool { return p.Name == pool })
	if err := c.write(); err != nil {
		return err
	}
	return c.connect(ctx)
}

// dropNode removes a node from Kubernetes and from this machine.
func (c *cluster) dropNode(ctx context.Context, n spec.Node, drain bool) error {
	c.m.o.Progress("node %s: removing", n.Name)
	if drain && !n.Stopped {
		// A pod that can't be evicted, for a disruption budget or a hook that hangs, doesn't keep the node for ever.
		_, err := c.kubectl(ctx, nil, "drain", n.Name, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout="+drainTimeout.String())
		if ctx.Err() != nil {
			return errors.Join(err, c.uncordon(ctx, n.Name))
		}
		if err != nil {
			c.m.o.Progress("node %s: not all pods could be evicted, and end now: %v", n.Name, err)
		}
	}
	if err := supervise.Stop(ctx, c.supervisor(n.Name)); err != nil {
		return fmt.Errorf("remove node %s: %w", n.Name, err)
	}
	if _, err := c.kubectl(ctx, nil, "delete", "node", n.Name, "--ignore-not-found"); err != nil {
		return fmt.Errorf("remove node %s: %w", n.Name, err)
	}
	if err := c.removeNode(ctx, n.Name); err != nil {
		return err
	}
	c.spec.RemoveNode(n.Name)
	return c.write()
}

// uncordon lets pods be scheduled again to a node that stays after all. It is done although the context has ended.
func (c *cluster) uncordon(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	_, err := c.kubectl(ctx, nil, "uncordon", name)
	return err
}
