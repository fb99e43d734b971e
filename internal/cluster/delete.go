package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"bulkhead.dev/bulkhead/internal/cluster/fabric"
	"bulkhead.dev/bulkhead/internal/cluster/spec"
	"bulkhead.dev/bulkhead/internal/cluster/supervise"
)

// Delete ends a cluster and removes everything of it from the host, its data included. It is fine with a cluster of which only
// parts are there, whatever their state. If something can't be removed the error says what, and a later Delete goes on.
func (m *Manager) Delete(ctx context.Context, name string) error {
	if err := m.exists(name); err != nil {
		return err
	}
	unlock, err := m.lock(name)
	if err != nil {
		return err
	}
	defer unlock()
	c := &cluster{place: m.place(name), m: m}
	// Without a readable record the names on the host and the directories of the nodes still say what there is.
	if c.spec, err = spec.Read(c.dir); err == nil {
		if err := c.markDeleting(); err != nil {
			return err
		}
	}
	if err := c.remove(ctx); err != nil {
		return err
	}
	m.o.Progress("cluster %s: deleted", name)
	return nil
}

// markDeleting has the record say that the cluster is being deleted. On a full disk, which may be why it is deleted, there is no
// room for that: without a record it is as clear that it is no whole cluster any more.
func (c *cluster) markDeleting() error {
	err := c.setPhase(spec.Deleting)
	if err == nil {
		return nil
	}
	if removeErr := os.Remove(filepath.Join(c.dir, spec.File)); removeErr != nil {
		return errors.Join(err, removeErr)
	}
	c.m.o.Progress("the record can't be written, and goes first: %v", err)
	return nil
}

// remove ends all processes of the cluster and removes everything. The cluster's directory goes last, so that until then
// another remove finds the rest.
func (c *cluster) remove(ctx context.Context) error {
	c.m.o.Progress("ending the processes of cluster %s", c.name)
	nodes := c.nodesThere()
	var errs []error
	// Kubelets first: they would start containers again. The control plane has nothing to say any more.
	group := errgroup.Group{}
	group.Go(func() error { return supervise.Kill(ctx, c.controlPlane()) })
	for _, name := range nodes {
		group.Go(func() error {
			if err := supervise.Kill(ctx, c.supervisor(name)); err != nil {
				return err
			}
			return c.removeNode(ctx, name)
		})
	}
	errs = append(errs, group.Wait())
	if err := errors.Join(errs...); err != nil {
		// What still runs uses the files and the network, and is found by them.
		return fmt.Errorf("delete cluster %s: %w", c.name, err)
	}
	errs = append(errs, fabric.Down(c.net()), removeCgroups(c.cgroup()), os.RemoveAll(c.sockets()))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("delete cluster %s: %w", c.name, err)
	}
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("delete cluster %s: %w", c.name, err)
	}
	return nil
}

// nodesThere are the nodes of the record, and those of which there is a directory.
func (c *cluster) nodesThere() []string {
	var names []string
	for _, n := range c.spec.Nodes {
		names = append(names, n.Name)
	}
	entries, _ := os.ReadDir(filepath.Join(c.dir, "nodes")) // not there: there are none
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
