package fabric

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// FreeSubnet returns the third octet of the first 10.88.x.0/24 that isn't taken and overlaps no address or route of the
// host. Default routes don't count.
func FreeSubnet(taken []int) (int, error) {
	used, err := usedPrefixes(-1)
	if err != nil {
		return 0, fmt.Errorf("look for a free subnet: %w", err)
	}
	return freeSubnet(taken, used)
}

func freeSubnet(taken []int, used []netip.Prefix) (int, error) {
	var last netip.Prefix
	for x := range 256 {
		if slices.Contains(taken, x) {
			continue
		}
		subnet := Network{Subnet: x}.Subnets()[0]
		at := slices.IndexFunc(used, subnet.Overlaps)
		if at < 0 {
			return x, nil
		}
		last = used[at]
	}
	if last.IsValid() {
		return 0, fmt.Errorf("no subnet of 10.88.0.0/16 is free: the host has an address in, or a route to, %s: %w", last, errdefs.ErrResourceExhausted)
	}
	return 0, fmt.Errorf("no subnet of 10.88.0.0/16 is free: clusters have them all: %w", errdefs.ErrResourceExhausted)
}

// checkSubnet finds out whether something else on the host has the network's subnet. A network that has it already is left to work
// as well as it can.
func (n Network) checkSubnet() error {
	own := -1
	bridge, err := n.findBridge()
	if err != nil {
		return err
	}
	if bridge != nil {
		own = bridge.Attrs().Index
		have, err := netlink.AddrList(bridge, netlink.FAMILY_V4)
		if err != nil {
			return fmt.Errorf("list addresses of %s: %w", n.Bridge(), err)
		}
		if slices.ContainsFunc(have, func(a netlink.Addr) bool { return a.IP.Equal(n.HostAddrs()[0].AsSlice()) }) {
			return nil
		}
	}
	used, err := usedPrefixes(own)
	if err != nil {
		return err
	}
	subnet := n.Subnets()[0]
	if at := slices.IndexFunc(used, subnet.Overlaps); at >= 0 {
		return fmt.Errorf("%s is this cluster's, and the host has an address in, or a route to, %s by now: "+
			"stop what has it, such as a cluster of another --state-dir: %w", subnet, used[at], errdefs.ErrFailedPrecondition)
	}
	return nil
}

// usedPrefixes are the destinations of all routes of the host, in all tables; the local one has its addresses. Those of one link,
// by its index, don't count.
func usedPrefixes(except int) ([]netip.Prefix, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	var used []netip.Prefix
	for _, route := range routes {
		if p := prefixOf(route.Dst); p.Bits() > 0 && route.LinkIndex != except {
			used = append(used, p)
		}
	}
	for _, addr := range addrs { // those of links that are down have no routes
		if addr.LinkIndex != except {
			used = append(used, prefixOf(addr.IPNet).Masked())
		}
	}
	return used, nil
}
