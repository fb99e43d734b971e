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
	wasStopped := c.spec.Phase == spec.Stopped
	err = c.up(ctx)
	if err == nil {
		err = c.setPhase(spec.Running)
	}
	if err != nil && wasStopped {
		// A cluster that is recorded as stopped must not run.
		m.o.Progress("stopping what was started of cluster %s", name)
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if left := c.down(undo); left != nil {
			err = errors.Join(err, fmt.Errorf("stop what was started: %w: bulkhead cluster stop %s tries again", left, name))
		}
	}
	return err
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
	// The record first: what is interrupted from here on is a stopped cluster of which something still runs. On a full disk there is no
	// room for it, and what ends may make some.
	recordErr := c.setPhase(spec.Stopped)
	if err := c.down(ctx); err != nil {
		return fmt.Errorf("stop cluster %s: %w", name, errors.Join(recordErr, err))
	}
	if recordErr != nil {
		if err := c.setPhase(spec.Stopped); err != nil {
			return fmt.Errorf("cluster %s is stopped, and its record can't say so: %w", name, err)
		}
	}
	m.o.Progress("cluster %s: stopped", name)
	return nil
}

// down ends all processes of the cluster and removes what they had of the host, apart from files.
func (c *cluster) down(ctx context.Context) error {
	group := errgroup.Group{}
	for _, n := range c.spec.Nodes {
		c.m.o.Progress("node %s: stopping", n.Name)
		group.Go(func() error { return c.stopNode(ctx, n.Name) })
	}
	nodes := group.Wait()
	c.m.o.Progress("control plane: stopping")
	if err := errors.Join(nodes, supervise.Stop(ctx, c.controlPlane())); err != nil {
		return err // what still runs uses the rest
	}
	return errors.Join(fabric.Down(c.net()), removeCgroups(c.cgroup()), os.RemoveAll(c.sockets()))
}
