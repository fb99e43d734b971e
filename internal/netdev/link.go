package netdev

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"

	"bulkhead.dev/bulkhead/internal/vmm"
)

// Link is the join between a network namespace and a VM.
type Link struct {
	// NICs are the VM's network devices, one for each of Interfaces, in the same order. Their taps have open descriptors
	// that Close closes. While a VMM holds its own, a caller may close these earlier: then the taps end with the VMM.
	NICs []vmm.NIC
	// Interfaces is what the guest configures on them.
	Interfaces []Interface
	// Routes of the main table, those without a gateway first, so that they can be added in order. The kernel's own routes
	// to connected networks are among them: adding an address makes them too, unless it is added with noprefixroute.
	Routes []Route
	// Neighbours are the permanent entries only.
	Neighbours []Neighbour
	// Loopback gets the connections that are made to 127.0.0.1 in the namespace: by who forwards ports to the pod, since everybody else
	// is in the VM. It is nil without NICs, and where the host's kernel can't do that: LoopbackError says why. Close closes it.
	Loopback      *net.TCPListener
	LoopbackError error

	netns string
}

// Interface is a network interface as the guest is to have it.
type Interface struct {
	// Name is the name of the interface that the CNI plugin made: "eth0".
	Name string
	MAC  net.HardwareAddr
	// MTU in bytes.
	MTU int
	// Addresses with the length of the network's prefix.
	Addresses []netip.Prefix
}

// Route is a unicast route of the main table.
type Route struct {
	// Interface is its name.
	Interface string
	// Destination is never the zero Prefix: a default route is 0.0.0.0/0 or ::/0.
	Destination netip.Prefix
	// Gateway is the zero Addr if the destination is on the link. It may be an IPv6 address for an IPv4 destination.
	Gateway netip.Addr
	// Source is the preferred source address, or the zero Addr.
	Source netip.Addr
	// Scope and Metric are rtnetlink's numbers.
	Scope  uint8
	Metric uint32
	// OnLink says that the gateway is reachable though no route to it exists.
	OnLink bool
}

// Neighbour is a permanent entry of the ARP or neighbour table.
type Neighbour struct {
	Interface string
	Address   netip.Addr
	MAC       net.HardwareAddr
}

// Attach joins all usable interfaces of the network namespace to new taps. When it fails, nothing is left of what it began.
func Attach(netnsPath string) (*Link, error) {
	link := &Link{netns: netnsPath}
	err := inNetNS(netnsPath, func(h *netlink.Handle) error {
		found, err := survey(h)
		if err != nil {
			return err
		}
		link.Routes, link.Neighbours = found.routes, found.neighbours
		for i, d := range found.devices {
			nic, err := join(h, d, fmt.Sprintf("%s%d", tapPrefix, i))
			if err != nil {
				return errors.Join(fmt.Errorf("interface %s: %w", d.config.Name, err), link.closeTaps(), detach(h))
			}
			link.NICs = append(link.NICs, nic)
			link.Interfaces = append(link.Interfaces, d.config)
		}
		if len(link.NICs) > 0 { // else nothing says that the namespace is this VM's alone
			link.Loopback, link.LoopbackError = listenLoopback()
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("join network namespace %s to a VM: %w", netnsPath, err)
	}
	return link, nil
}

// Close parts the VM from the namespace: the interfaces are as they were before Attach. It is idempotent, and fine with a
// namespace that has gone.
func (l *Link) Close() error {
	err := l.closeTaps()
	if l.Loopback != nil {
		err = errors.Join(err, l.Loopback.Close())
		l.Loopback = nil
	}
	return errors.Join(err, Detach(l.netns))
}

func (l *Link) closeTaps() error {
	var errs []error
	for i := range l.NICs {
		if tap := l.NICs[i].Tap; tap != nil {
			errs = append(errs, tap.Close())
			l.NICs[i].Tap = nil
		}
	}
	return errors.Join(errs...)
}

// Detach removes the redirects, taps and table that an Attach left in the namespace, even if a VMM still has them open. It is
// idempotent; a namespace that is gone needs nothing.
func Detach(netnsPath string) error {
	err := inNetNS(netnsPath, detach)
	if err != nil && !errors.Is(err, errNoNetNS) {
		return fmt.Errorf("part network namespace %s from its VM: %w", netnsPath, err)
	}
	return nil
}
