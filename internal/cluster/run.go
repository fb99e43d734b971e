package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"bulkhead.dev/bulkhead/internal/cluster/fabric"
	"bulkhead.dev/bulkhead/internal/cluster/spec"
	"bulkhead.dev/bulkhead/internal/cluster/supervise"
)

// openRunning is open for a cluster that is not stopped.
func (m *Manager) openRunning(name string) (*cluster, error) {
	c, err := m.openUsable(name)
	if err != nil {
		return nil, err
	}
	if c.spec.Phase == spec.Stopped {
		c.unlock()
		return nil, errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("cluster %s is stopped: bulkhead cluster start %s", name, name))
	}
	return c, nil
}

// Start brings a cluster back that was stopped, or ended with the machine, and returns when its nodes are ready. Of a running
// cluster it repairs what doesn't run. Pods that had been running are started again by their kubelets.
func (m *Manager) Start(ctx context.Context, name string) error {
	c, err := m.openUsable(name)
	if err != nil {
		return err
	}
	defer c.unlock()
	if err := c.up(ctx); err != nil {
		return err
	}
	return c.setPhase(spec.Running)
}

// Update brings a running cluster up to date with this program: certificates that are about to expire are renewed, components
// of another version or with other arguments restarted, the cluster's own objects applied, preview features taken note of.
func (m *Manager) Update(ctx context.Context, name string) error {
	c, err := m.openRunning(name)
	if err != nil {
		return err
	}
	defer c.unlock()
	for _, p := range c.spec.Pools {
		if err := m.checkPool(ctx, p, c.spec.Config); err != nil {
			return err
		}
	}
	if version := m.kubernetesVersion(ctx); version != "" {
		c.spec.KubernetesVersion = version
		if err := c.write(); err != nil {
			return err
		}
	}
	return c.up(ctx)
}

// Renew makes the certificates of a running cluster anew that are about to expire.
func (m *Manager) Renew(name string) error {
	c, err := m.openRunning(name)
	if err != nil {
		return err
	}
	defer c.unlock()
	return c.issue()
}

// Stop ends all processes of a cluster and keeps its data.
func (m *Manager) Stop(ctx context.Context, name string) error {
	c, err := m.openUsable(name)
	if err != nil {
		return err
	}
	defer c.unlock()
	// The record first: what is interrupted from here on is a stopped cluster of which something still runs.
	if err := c.setPhase(spec.Stopped); err != nil {
		return err
	}
	group := errgroup.Group{}
	for _, n := range c.spec.Nodes {
		m.o.Progress("node %s: stopping", n.Name)
		group.Go(func() error { return c.stopNode(ctx, n.Name) })
	}
	nodes := group.Wait()
	m.o.Progress("control plane: stopping")
	if err := errors.Join(nodes, supervise.Stop(ctx, c.controlPlane())); err != nil {
		return fmt.Errorf("stop cluster %s: %w", name, err)
	}
	if err := errors.Join(fabric.Down(c.net()), removeCgroups(c.cgroup()), os.RemoveAll(c.sockets())); err != nil {
		return fmt.Errorf("stop cluster %s: %w", name, err)
	}
	return nil
}
