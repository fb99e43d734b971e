package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/cgroup"
	"bulkhead.dev/bulkhead/internal/cluster/component"
	"bulkhead.dev/bulkhead/internal/cluster/fabric"
	"bulkhead.dev/bulkhead/internal/cluster/pki"
	"bulkhead.dev/bulkhead/internal/cluster/spec"
	"bulkhead.dev/bulkhead/internal/cluster/supervise"
	"bulkhead.dev/bulkhead/internal/node"
)

// nodeCgroup is the control group of a node: its processes and all its pods.
func (c *cluster) nodeCgroup(index int) string { return fmt.Sprintf("%s/n%d", c.cgroup(), index) }

// containerd is the containerd of a node. Without a record of the node it is enough to remove it.
func (c *cluster) containerd(name string) (*node.Node, error) {
	o := node.Options{Dir: c.node(name), Bin: c.m.o.BinDir, Member: &node.Member{}}
	if n := c.spec.Node(name); n != nil {
		o.Member.Cgroup = c.nodeCgroup(n.Index)
		o.Member.PodCIDRs = c.net().PodCIDRs(n.Index)
		o.Member.Mirrors = c.spec.Config.Registry.Mirrors
		o.Member.Registry = component.RegistryURL(c.net())
		if pool := c.spec.Pool(n.Pool); pool != nil && pool.Runtime == spec.VMIsolation {
			o.Member.VM, o.Member.Profile, o.Guest = true, c.spec.Config.VM.Profile, c.m.o.GuestDir
			// The probe has been made: a node's own would cost its first pod seconds.
			o.Acceleration = c.isolation
		}
	}
	return node.At(o)
}

// startNode starts what isn't running of a node, and returns when its containerd has the image that every pod needs. Whether
// it is ready is asked of the API server.
func (c *cluster) startNode(ctx context.Context, name string) error {
	c.m.o.Progress("node %s: starting", name)
	if err := c.launchNode(ctx, name); err != nil {
		return fmt.Errorf("start node %s: %w", name, err)
	}
	return nil
}

func (c *cluster) launchNode(ctx context.Context, name string) error {
	own := c.spec.Node(name)
	containerd, err := c.containerd(name)
	if err != nil {
		return err
	}
	if err := containerd.Prepare(); err != nil {
		return err
	}
	processes, files, err := component.NodeProcesses(component.NodeOptions{
		Dir: c.dir, Bin: c.m.o.BinDir, Network: c.net(), Config: c.spec.Config, Node: *own, Pool: *c.spec.Pool(own.Pool),
		Containerd: containerd, Isolation: c.isolation, Resolvers: hostResolvers(),
	})
	if err != nil {
		return err
	}
	if err := writeFiles(files); err != nil {
		return fmt.Errorf("write its configuration: %w", err)
	}
	if err := supervise.Start(ctx, c.self(), c.supervisor(name), supervise.Spec{
		Name: name, NetNS: c.net().NodeNetNS(own.Index), Cgroup: c.nodeCgroup(own.Index) + "/system", Processes: processes,
	}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := supervise.WaitReady(ctx, c.supervisor(name), node.Containerd); err != nil {
		return err
	}
	return containerd.ImportPause(ctx)
}

// connect makes the networks of nodes, and the routes between all nodes.
func (c *cluster) connect(ctx context.Context, names ...string) error {
	var all []int
	for _, n := range c.spec.Nodes {
		if !n.Stopped {
			all = append(all, n.Index)
		}
	}
	for _, name := range names {
		index := c.spec.Node(name).Index
		peers := slices.DeleteFunc(slices.Clone(all), func(i int) bool { return i == index })
		if err := fabric.NodeUp(ctx, c.net(), index, peers); err != nil {
			return err
		}
	}
	return fabric.Routes(c.net(), all)
}

// stopNode ends a node's processes, containers and VMs, and its network. Its data stay.
func (c *cluster) stopNode(ctx context.Context, name string) error {
	if err := supervise.Stop(ctx, c.supervisor(name)); err != nil {
		return fmt.Errorf("stop node %s: %w", name, err)
	}
	n, err := c.containerd(name)
	if err != nil {
		return err
	}
	if err := n.Halt(ctx); err != nil {
		return fmt.Errorf("stop node %s: %w", name, err)
	}
	return fabric.NodeDown(c.net(), c.spec.Node(name).Index)
}

// removeNode removes everything of a node whose supervisor has ended, its data included.
func (c *cluster) removeNode(ctx context.Context, name string) error {
	n, err := c.containerd(name)
	if err != nil {
		return err
	}
	if err := n.Stop(ctx); err != nil {
		return fmt.Errorf("remove node %s: %w", name, err)
	}
	if own := c.spec.Node(name); own != nil {
		if err := errors.Join(fabric.NodeDown(c.net(), own.Index), cgroup.RemoveTree(c.nodeCgroup(own.Index))); err != nil {
			return fmt.Errorf("remove node %s: %w", name, err)
		}
	}
	// Its volumes may be in it; node.Stop has removed the rest.
	if err := os.RemoveAll(c.node(name)); err != nil {
		return fmt.Errorf("remove node %s: %w", name, err)
	}
	return pki.RemoveNode(c.dir, name)
}

// nodeChange opens a running cluster to change one of its nodes.
func (m *Manager) nodeChange(name, nodeName string) (*cluster, *spec.Node, error) {
	c, err := m.openRunning(name)
	if err != nil {
		return nil, nil, err
	}
	n := c.spec.Node(nodeName)
	if n == nil {
		c.unlock()
		return nil, nil, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("cluster %s has no node %s: see bulkhead node list --cluster-name %s", name, nodeName, name))
	}
	return c, n, nil
}

// NodeStop stops a node as if its machine were switched off: its pods end with it. It stays off until NodeStart, also when the
// cluster is stopped and started.
func (m *Manager) NodeStop(ctx context.Context, name, nodeName string) error {
	c, n, err := m.nodeChange(name, nodeName)
	if err != nil {
		return err
	}
	defer c.unlock()
	n.Stopped = true
	if err := c.write(); err != nil {
		return err
	}
	m.o.Progress("node %s: stopping", nodeName)
	if err := c.stopNode(ctx, nodeName); err != nil {
		return err
	}
	return c.connect(ctx) // the others' routes
}

// NodeStart starts a node that was stopped, or repairs one that runs, and returns when it is ready.
func (m *Manager) NodeStart(ctx context.Context, name, nodeName string) error {
	c, n, err := m.nodeChange(name, nodeName)
	if err != nil {
		return err
	}
	defer c.unlock()
	n.Stopped = false
	if err := c.write(); err != nil {
		return err
	}
	return c.bringUp(ctx, []string{nodeName})
}

// bringUp starts nodes and waits for them.
func (c *cluster) bringUp(ctx context.Context, names []string) error {
	if err := c.findIsolation(ctx); err != nil {
		return err
	}
	if err := c.issue(); err != nil {
		return err
	}
	if err := c.connect(ctx, names...); err != nil {
		return err
	}
	for _, name := range names {
		if err := c.startNode(ctx, name); err != nil {
			return err
		}
		if err := c.copyImages(ctx, name); err != nil {
			return fmt.Errorf("start node %s: %w", name, err)
		}
	}
	return c.awaitNodes(ctx, names)
}

// NodePartition cuts a node off from the network, or joins it again. Its pods go on. It lasts until the node is stopped.
func (m *Manager) NodePartition(_ context.Context, name, nodeName string, on bool) error {
	c, n, err := m.nodeChange(name, nodeName)
	if err != nil {
		return err
	}
	defer c.unlock()
	if n.Stopped {
		return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("node %s is stopped and has no network: bulkhead node start --cluster-name %s %s", nodeName, name, nodeName))
	}
	return fabric.Partition(c.net(), n.Index, on)
}

// removeCgroups removes a control group and those below it.
func removeCgroups(path string) error {
	if err := cgroup.RemoveTree(path); err != nil {
		return fmt.Errorf("remove control groups %s: %w", path, err)
	}
	return nil
}
