package fabric

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

// step is a part of making a network. Steps are done in order, each is idempotent, and what any number of them made is
// completed by doing all again or removed by Down.
type step struct {
	name string
	do   func() error
}

// Up makes the bridge, the host's nft table and the control plane's namespace, or completes what is there.
func Up(ctx context.Context, n Network) error {
	if err := n.validate(); err != nil {
		return err
	}
	return run(ctx, "network "+n.ID, n.upSteps(ctx))
}

// NodeUp makes the namespace of node i and all in it, with routes to the pods of its peers, or completes what is there. It
// needs the bridge. A partition is healed.
func NodeUp(ctx context.Context, n Network, i int, peers []int) error {
	if err := n.validateNodes(append(slices.Clone(peers), i)); err != nil {
		return err
	}
	return run(ctx, fmt.Sprintf("network %s: node %d", n.ID, i), n.nodeSteps(ctx, i, peers))
}

func run(ctx context.Context, of string, steps []step) error {
	for _, s := range steps {
		err := ctx.Err()
		if err == nil {
			err = s.do()
		}
		if err != nil {
			return fmt.Errorf("%s: %s: %w", of, s.name, err)
		}
	}
	return nil
}

func (n Network) upSteps(ctx context.Context) []step {
	table := n.hostRules()
	steps := []step{
		{"look for programs", checkPrograms},
		{"look whether the subnet is free", n.checkSubnet},
		{"make bridge " + n.Bridge(), n.makeBridge},
		{"give bridge " + n.Bridge() + " its addresses", n.addressBridge},
		{"write nft table " + n.hostTable(), func() error { return nft(ctx, table) }},
	}
	return append(steps, n.memberSteps(n.controlPlane())...)
}

func (n Network) nodeSteps(ctx context.Context, i int, peers []int) []step {
	m := n.node(i)
	return append(n.memberSteps(m),
		step{"write nft table " + nodeTable, func() error {
			return In(m.netns, func() error { return nft(ctx, n.nodeRules()) })
		}},
		step{"write pod routes", func() error { return n.routePods(m, peers) }},
	)
}

// member is what is joined to the bridge by a veth.
type member struct {
	netns, veth string
	addrs       []netip.Addr
	index       int // of the node; -1: the control plane
}

func (n Network) controlPlane() member {
	return member{n.ControlPlaneNetNS(), n.controlPlaneVeth(), n.ControlPlaneAddrs(), -1}
}

func (n Network) node(i int) member { return member{n.NodeNetNS(i), n.nodeVeth(i), n.NodeAddrs(i), i} }

func (n Network) memberSteps(m member) []step {
	return []step{
		{"make network namespace " + m.netns, func() error { return makeNetNS(m.netns) }},
		{"set its sysctls", func() error { return In(m.netns, n.configure) }},
		{"make veth " + m.veth, func() error { return n.makeVeth(m) }},
		{"join veth " + m.veth + " to the bridge", func() error { return n.joinVeth(m) }},
		{"give its end in the namespace addresses", func() error { return In(m.netns, func() error { return n.addressMember(m) }) }},
	}
}

// Routes makes the pod routes in every node's and the control plane's namespace those of the nodes, and removes those to
// others. Nodes whose namespace isn't there are ErrNotFound; the rest get their routes all the same.
func Routes(n Network, nodes []int) error {
	if err := n.validateNodes(nodes); err != nil {
		return err
	}
	errs := []error{n.routePods(n.controlPlane(), nodes)}
	for _, i := range nodes {
		errs = append(errs, n.routePods(n.node(i), nodes))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("network %s: write pod routes: %w", n.ID, err)
	}
	return nil
}

func (n Network) routePods(m member, nodes []int) error {
	wanted := map[netip.Prefix]netip.Addr{}
	for _, i := range nodes {
		if i == m.index {
			continue
		}
		for k, prefix := range n.PodCIDRs(i) {
			wanted[prefix] = n.NodeAddrs(i)[k]
		}
	}
	return In(m.netns, func() error { return replaceRoutes(wanted) })
}

// Partition cuts node i off from the other nodes, the control plane and the host, or heals that.
func Partition(n Network, i int, on bool) error {
	if err := n.validateNodes([]int{i}); err != nil {
		return err
	}
	link, err := find(n.nodeVeth(i))
	if err == nil && link == nil {
		err = errdefs.ErrNotFound
	}
	switch {
	case err != nil:
	case on:
		err = netlink.LinkSetDown(link)
	default:
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("network %s: node %d: set link %s: %w", n.ID, i, n.nodeVeth(i), err)
	}
	return nil
}

// NodeDown removes what NodeUp made. Processes in the namespace keep it, without links, until they end.
func NodeDown(n Network, i int) error {
	if err := n.validateID(); err != nil {
		return err
	}
	if err := validateNode(i); err != nil {
		return err
	}
	err := errors.Join(n.removeVeth(n.nodeVeth(i)), removeNetNS(n.NodeNetNS(i)), removeNetNSDir())
	if err != nil {
		return fmt.Errorf("network %s: remove node %d: %w", n.ID, i, err)
	}
	return nil
}

// Down removes everything of the network, whatever part of it there is. Only n.ID is needed. If something can't be
// removed, the error says what, and the rest is removed all the same.
func Down(n Network) error {
	if err := n.validateID(); err != nil {
		return err
	}
	veths, err := n.veths()
	errs := []error{err}
	namespaces, err := filepath.Glob(n.netnsPrefix() + "*")
	errs = append(errs, err)
	bridge, err := find(n.Bridge())
	errs = append(errs, err)
	found := bridge != nil || len(veths)+len(namespaces) > 0

	for _, name := range veths {
		errs = append(errs, n.removeVeth(name))
	}
	for _, path := range namespaces {
		errs = append(errs, removeNetNS(path))
	}
	errs = append(errs, n.removeBridge(), removeNetNSDir(), n.removeTable(found))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove network %s: %w", n.ID, err)
	}
	return nil
}

func (n Network) validateNodes(nodes []int) error {
	if err := n.validate(); err != nil {
		return err
	}
	for _, i := range nodes {
		if err := validateNode(i); err != nil {
			return err
		}
	}
	return nil
}

// HostIPv6 says whether the host has IPv6, so that a network can.
func HostIPv6() bool {
	disabled, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	return err == nil && strings.TrimSpace(string(disabled)) == "0"
}
