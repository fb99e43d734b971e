package fabric

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	mtu    = 1500
	uplink = "eth0" // of a member, in its namespace
	// podRoutes marks the routes that Routes made, as /etc/iproute2/rt_protos has it: nobody else uses the number.
	podRoutes netlink.RouteProtocol = 88
)

// find returns the link of a name, or nil if there is none.
func find(name string) (netlink.Link, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for link %s: %w", name, err)
	}
	return link, nil
}

// must is find for a link that an earlier step made.
func must(name string) (netlink.Link, error) {
	link, err := find(name)
	if err == nil && link == nil {
		err = fmt.Errorf("link %s: %w", name, errdefs.ErrNotFound)
	}
	return link, err
}

func loopbackUp() error {
	lo, err := must("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	return nil
}

// makeBridge makes it without spanning tree, so that its ports forward at once, and with a MAC that ports don't change.
func (n Network) makeBridge() error {
	link, err := n.findBridge()
	if err != nil || link != nil {
		return err
	}
	id, err := hex.DecodeString(n.ID)
	if err != nil {
		return err
	}
	snooping := false // neighbour discovery is multicast, and there is no querier
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = n.Bridge(), mtu, append(net.HardwareAddr{0x02, 0x88}, id...)
	return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping})
}

// findBridge returns nil if there is none, and an error if a link of another kind has its name.
func (n Network) findBridge() (netlink.Link, error) {
	link, err := find(n.Bridge())
	if err != nil || link == nil {
		return nil, err
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("link %s is a %s, which isn't this network's: %w", n.Bridge(), link.Type(), errdefs.ErrAlreadyExists)
	}
	return link, nil
}

func (n Network) addressBridge() error {
	link, err := must(n.Bridge())
	if err != nil {
		return err
	}
	if err := n.setAddrs(link, n.HostAddrs()); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func (n Network) removeBridge() error {
	link, err := n.findBridge()
	if err == nil && link != nil {
		err = deleteLink(link)
	}
	if err != nil {
		return fmt.Errorf("remove bridge %s: %w", n.Bridge(), err)
	}
	return nil
}

// findVeth returns the host's end of a veth, nil if there is none, and an error if it is somebody else's.
func (n Network) findVeth(name string) (netlink.Link, error) {
	link, err := find(name)
	if err != nil || link == nil {
		return nil, err
	}
	if link.Type() != "veth" {
		return nil, fmt.Errorf("link %s is a %s, which isn't this network's: %w", name, link.Type(), errdefs.ErrAlreadyExists)
	}
	if at := link.Attrs().MasterIndex; at != 0 {
		bridge, err := find(n.Bridge())
		if err != nil {
			return nil, err
		}
		// Names have only the first digits of the ID.
		if bridge == nil || bridge.Attrs().Index != at {
			return nil, fmt.Errorf("link %s is joined to another bridge, and isn't this network's: %w", name, errdefs.ErrAlreadyExists)
		}
	}
	return link, nil
}

// makeVeth makes the pair if its two ends aren't where they belong: the namespace may be another one than it was.
func (n Network) makeVeth(m member) error {
	host, err := n.findVeth(m.veth)
	if err != nil {
		return err
	}
	whole := false
	err = In(m.netns, func() error {
		inner, err := find(uplink)
		if err != nil || inner == nil {
			return err
		}
		if host != nil && inner.Type() == "veth" && inner.Attrs().ParentIndex == host.Attrs().Index &&
			host.Attrs().ParentIndex == inner.Attrs().Index {
			whole = true
			return nil
		}
		return deleteLink(inner)
	})
	if err != nil || whole {
		return err
	}
	if host != nil {
		if err := deleteLink(host); err != nil {
			return err
		}
	}
	return m.addVeth()
}

// addVeth makes the inner end directly in its namespace, so that nothing else of the host ever sees an eth0. Its MAC
// derives from its address: neighbours needn't learn a new one when it is made again.
func (m member) addVeth() error {
	netns, err := openNetNS(m.netns)
	if err != nil {
		return err
	}
	defer netns.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = m.veth, mtu
	v4 := m.addrs[0].As4()
	return netlink.LinkAdd(&netlink.Veth{
		LinkAttrs:        attrs,
		PeerName:         uplink,
		PeerHardwareAddr: append(net.HardwareAddr{0x0a, 0x58}, v4[:]...),
		PeerNamespace:    netlink.NsFd(int(netns.Fd())),
	})
}

func (n Network) joinVeth(m member) error {
	host, err := must(m.veth)
	if err != nil {
		return err
	}
	bridge, err := must(n.Bridge())
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(host, bridge); err != nil {
		return err
	}
	return netlink.LinkSetUp(host)
}

// addressMember runs in the member's namespace.
func (n Network) addressMember(m member) error {
	link, err := must(uplink)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", uplink, err)
	}
	if err := n.setAddrs(link, m.addrs); err != nil {
		return err
	}
	for _, gateway := range n.HostAddrs() {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(defaultRoute(gateway)), Gw: gateway.AsSlice()}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("write the default route via %s: %w", gateway, err)
		}
	}
	return nil
}

// setAddrs makes the link's addresses the wanted ones; link-local ones stay.
func (n Network) setAddrs(link netlink.Link, wanted []netip.Addr) error {
	extra := map[netip.Addr]netlink.Addr{}
	have, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
	}
	for _, a := range have {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && !addr.Unmap().IsLinkLocalUnicast() {
			extra[addr.Unmap()] = a
		}
	}
	for i, addr := range wanted {
		delete(extra, addr)
		a := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, n.Subnets()[i].Bits()))}
		if addr.Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrReplace(link, a); err != nil {
			return fmt.Errorf("give %s the address %s: %w", link.Attrs().Name, addr, err)
		}
	}
	for addr, a := range extra {
		if err := netlink.AddrDel(link, &a); err != nil {
			return fmt.Errorf("take the address %s from %s: %w", addr, link.Attrs().Name, err)
		}
	}
	return nil
}

// replaceRoutes makes the pod routes of the thread's namespace the wanted ones, by prefix the gateway.
func replaceRoutes(wanted map[netip.Prefix]netip.Addr) error {
	link, err := must(uplink)
	if err != nil {
		return err
	}
	for prefix, gateway := range wanted {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(prefix), Gw: gateway.AsSlice(), Protocol: podRoutes}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("write the route to %s via %s: %w", prefix, gateway, err)
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		have, err := netlink.RouteListFiltered(family, &netlink.Route{Protocol: podRoutes}, netlink.RT_FILTER_PROTOCOL)
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, route := range have {
			if _, ok := wanted[prefixOf(route.Dst)]; ok {
				continue
			}
			if err := netlink.RouteDel(&route); err != nil {
				return fmt.Errorf("remove the route to %s: %w", route.Dst, err)
			}
		}
	}
	return nil
}

// veths returns the names of the host's ends of this network's veths. Those of another network whose ID begins alike hang
// on that one's bridge.
func (n Network) veths() ([]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	pattern := regexp.MustCompile("^" + n.vethPrefix() + `(cp|n\d+)$`)
	var names []string
	for _, link := range links {
		if name := link.Attrs().Name; pattern.MatchString(name) {
			if ours, err := n.findVeth(name); err == nil && ours != nil {
				names = append(names, name)
			}
		}
	}
	return names, nil
}

func (n Network) removeVeth(name string) error {
	link, err := n.findVeth(name)
	if err == nil && link != nil {
		err = deleteLink(link)
	}
	if err != nil {
		return fmt.Errorf("remove veth %s: %w", name, err)
	}
	return nil
}

// deleteLink is content if the link goes by itself meanwhile, as a veth does with its namespace.
func deleteLink(link netlink.Link) error {
	err := netlink.LinkDel(link)
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", link.Attrs().Name, err)
	}
	return nil
}

func defaultRoute(gateway netip.Addr) netip.Prefix {
	if gateway.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf is the zero prefix for a default route without destination.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	addr, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), bits)
}
