package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/cluster/fabric"
	"bulkhead.dev/bulkhead/internal/cluster/spec"
)

// undoTimeout is how long removing a half-made cluster may take after an error or an interrupt.
const undoTimeout = 2 * time.Minute

// CreateOptions say what a new cluster should be.
type CreateOptions struct {
	Pools  []spec.Pool
	Config spec.Config
}

// Create makes a cluster and returns when its nodes are ready. Parameters that can't be met are *spec.ParameterError, before
// anything is made. If it fails or is interrupted, what it had made is removed.
func (m *Manager) Create(ctx context.Context, name string, o CreateOptions) (err error) {
	if err := spec.ValidateClusterName(name); err != nil {
		return err
	}
	for _, p := range o.Pools {
		if err := m.checkPool(ctx, p, o.Config); err != nil {
			return err
		}
	}
	if err := m.checkHost(); err != nil {
		return err
	}
	unlock, err := m.lock(name)
	if err != nil {
		return err
	}
	defer func() { unlock() }()
	c := &cluster{place: m.place(name), m: m}
	if err := c.clearInterrupted(ctx); err != nil {
		return err
	}
	m.noteForwarding()
	c.spec = spec.Cluster{
		Name: name, Phase: spec.Creating, Created: time.Now().UTC().Truncate(time.Second),
		Pools: o.Pools, Config: o.Config, IPv6: hasIPv6(), KubernetesVersion: m.kubernetesVersion(ctx),
	}
	for _, p := range o.Pools {
		for range p.Count {
			if _, err := c.spec.AllocateNode(p.Name); err != nil {
				return err
			}
		}
	}
	if err := c.make(ctx); err != nil {
		m.o.Progress("removing what was made of cluster %s", name)
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if left := c.remove(undo); left != nil {
			return errors.Join(err, fmt.Errorf("remove the half-made cluster: %w: bulkhead cluster delete %s tries again", left, name))
		}
		return err
	}
	return nil
}

// clearInterrupted makes room for a cluster: the remains of a create or delete that was killed are removed, a cluster is not.
func (c *cluster) clearInterrupted(ctx context.Context) error {
	if _, err := os.Stat(c.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	old, err := spec.Read(c.dir)
	if err == nil && (old.Phase == spec.Running || old.Phase == spec.Stopped) {
		return errdefs.ErrAlreadyExists.WithMessage(fmt.Sprintf("there is a cluster %s already, made %s: take another name, or bulkhead cluster delete %s first",
			c.name, old.Created.Local().Format(time.DateTime), c.name))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the record of the cluster %s that is there: %w: if it is of no use, bulkhead cluster delete %s removes it", c.name, err, c.name)
	}
	c.m.o.Progress("removing what an interrupted command left of cluster %s", c.name)
	c.spec = old
	return c.remove(ctx)
}

// make brings up a new cluster.
func (c *cluster) make(ctx context.Context) error {
	if err := os.MkdirAll(c.dir, 0o711); err != nil {
		return fmt.Errorf("make the cluster's directory: %w", err)
	}
	if err := c.takeSubnet(ctx); err != nil {
		return err
	}
	if err := c.up(ctx); err != nil {
		return err
	}
	return c.setPhase(spec.Running)
}

// takeSubnet chooses a subnet that no other cluster of the state directory has, nor anything else on the host, and makes the
// bridge, by which others see that it is taken.
func (c *cluster) takeSubnet(ctx context.Context) error {
	unlock, err := lockSubnets()
	if err != nil {
		return err
	}
	defer unlock()
	names, err := c.m.names()
	if err != nil {
		return err
	}
	var taken []int
	for _, name := range names {
		// The subnet of a cluster whose record can't be read shows on its bridge.
		if other, err := spec.Read(c.m.place(name).dir); err == nil && name != c.name {
			taken = append(taken, other.Subnet)
		}
	}
	if c.spec.Subnet, err = fabric.FreeSubnet(taken); err != nil {
		return err
	}
	// The record comes first: what has no record looks like an empty directory to those who repair.
	if err := c.write(); err != nil {
		return err
	}
	c.m.o.Progress("network: bridge %s with %v", c.net().Bridge(), c.net().Subnets()[0])
	return fabric.Up(ctx, c.net())
}

// hasIPv6 says whether this host can have IPv6 addresses.
func hasIPv6() bool {
	data, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	return err == nil && len(data) > 0 && data[0] == '0'
}
