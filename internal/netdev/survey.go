package netdev

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// findings are what a namespace has that the guest is to get.
type findings struct {
	devices    []device
	routes     []Route
	neighbours []Neighbour
}

// device is an interface that is to be joined.
type device struct {
	link   netlink.Link
	config Interface
}

// survey looks at the namespace and changes nothing.
func survey(h *netlink.Handle) (findings, error) {
	var f findings
	links, err := h.LinkList()
	if err != nil {
		return f, fmt.Errorf("list its interfaces: %w", err)
	}
	for _, link := range links {
		if strings.HasPrefix(link.Attrs().Name, tapPrefix) {
			return f, fmt.Errorf("it has the tap %s: it is joined to a VM already: %w", link.Attrs().Name, errdefs.ErrAlreadyExists)
		}
		d, ok, err := inspect(h, link)
		if err != nil {
			return f, err
		}
		if ok {
			f.devices = append(f.devices, d)
		}
	}
	slices.SortFunc(f.devices, func(a, b device) int { return cmp.Compare(a.link.Attrs().Index, b.link.Attrs().Index) })

	names := map[int]string{}
	for _, d := range f.devices {
		names[d.link.Attrs().Index] = d.config.Name
	}
	if f.routes, err = routes(h, names); err != nil {
		return f, err
	}
	f.neighbours, err = neighbours(h, names)
	return f, err
}

// inspect says whether the interface is one for the guest. One that has an address and can't be handed over is an error:
// a pod that silently lacks a network is worse than one that doesn't start.
func inspect(h *netlink.Handle, link netlink.Link) (device, bool, error) {
	attrs := link.Attrs()
	if attrs.Flags&net.FlagUp == 0 || attrs.Flags&net.FlagLoopback != 0 || attrs.MasterIndex != 0 {
		return device{}, false, nil
	}
	addresses, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return device{}, false, fmt.Errorf("list the addresses of %s: %w", attrs.Name, err)
	}
	d := device{link: link, config: Interface{Name: attrs.Name, MAC: attrs.HardwareAddr, MTU: attrs.MTU}}
	for _, a := range addresses {
		p, ok := prefix(a.IPNet)
		if !ok || a.Flags&unix.IFA_F_DADFAILED != 0 || p.Addr().Is6() && p.Addr().IsLinkLocalUnicast() {
			continue
		}
		d.config.Addresses = append(d.config.Addresses, p)
	}
	if len(d.config.Addresses) == 0 {
		return device{}, false, nil
	}
	return d, true, joinable(link)
}

// joinable says why an interface can't be joined to a tap.
func joinable(link netlink.Link) error {
	attrs := link.Attrs()
	switch link.Type() {
	case "veth", "macvlan", "ipvlan", "device":
	default:
		return fmt.Errorf("interface %s is of the kind %q, which can't be handed to a VM (veth, macvlan, ipvlan and physical ones can): %w",
			attrs.Name, link.Type(), errdefs.ErrFailedPrecondition)
	}
	if attrs.EncapType != "ether" || len(attrs.HardwareAddr) != 6 || attrs.RawFlags&unix.IFF_NOARP != 0 {
		return fmt.Errorf("interface %s carries no Ethernet with ARP, which a VM needs: %w", attrs.Name, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// routes lists the unicast routes of the main table over the named interfaces.
func routes(h *netlink.Handle, names map[int]string) ([]Route, error) {
	list, err := h.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list its routes: %w", err)
	}
	var result []Route
	for _, r := range list {
		for _, hop := range r.MultiPath {
			if name, ok := names[hop.LinkIndex]; ok {
				return nil, fmt.Errorf("the route to %v over %s has several next hops, which the guest can't be given: %w",
					r.Dst, name, errdefs.ErrFailedPrecondition)
			}
		}
		name, ours := names[r.LinkIndex]
		if !ours || r.Type != unix.RTN_UNICAST {
			continue
		}
		route, ok := convert(r)
		if !ok {
			continue
		}
		route.Interface = name
		result = append(result, route)
	}
	slices.SortStableFunc(result, func(a, b Route) int { return rank(a) - rank(b) })
	return result, nil
}

// rank orders routes so that a gateway's own route comes before the routes that use it.
func rank(r Route) int {
	if r.Gateway.IsValid() {
		return 1
	}
	return 0
}

// convert leaves out what the guest's kernel makes by itself: link-local and multicast routes of IPv6.
func convert(r netlink.Route) (Route, bool) {
	route := Route{Scope: uint8(r.Scope), Metric: uint32(r.Priority), OnLink: r.Flags&int(netlink.FLAG_ONLINK) != 0}
	switch dst, ok := prefix(r.Dst); {
	case ok:
		route.Destination = dst
	case r.Dst == nil && r.Family == netlink.FAMILY_V6:
		route.Destination = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	case r.Dst == nil:
		route.Destination = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	default:
		return Route{}, false
	}
	to := route.Destination.Addr()
	if to.Is6() && (to.IsLinkLocalUnicast() || to.IsMulticast()) {
		return Route{}, false
	}
	route.Gateway, route.Source = addr(r.Gw), addr(r.Src)
	if via, ok := r.Via.(*netlink.Via); ok {
		route.Gateway = addr(via.Addr)
	}
	return route, true
}

// neighbours lists the permanent entries on the named interfaces.
func neighbours(h *netlink.Handle, names map[int]string) ([]Neighbour, error) {
	list, err := h.NeighList(0, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list its neighbours: %w", err)
	}
	var result []Neighbour
	for _, n := range list {
		name, ours := names[n.LinkIndex]
		if !ours || n.State&netlink.NUD_PERMANENT == 0 || n.Flags&netlink.NTF_PROXY != 0 || len(n.HardwareAddr) != 6 {
			continue
		}
		if n.Family != netlink.FAMILY_V4 && n.Family != netlink.FAMILY_V6 {
			continue // a bridge's forwarding entry
		}
		result = append(result, Neighbour{Interface: name, Address: addr(n.IP), MAC: n.HardwareAddr})
	}
	return result, nil
}

func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	ones, _ := n.Mask.Size()
	p := netip.PrefixFrom(addr(n.IP), ones)
	return p, p.IsValid()
}
