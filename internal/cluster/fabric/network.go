package fabric

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"

	"github.com/containerd/errdefs"
)

const (
	// MaxNodes is how many nodes fit into a cluster's subnet: their addresses are .10 to .254.
	MaxNodes = 245
	// HostPort is the port of the control plane where a server may trust who comes from an address of the host: nobody else's
	// connections are forwarded to it with one.
	HostPort = 5000

	netnsDir        = "/run/netns"
	firstNode       = 10 // last octet of node 0's address
	controlPlaneOwn = 2  // last octet of the control plane's
)

// Network is a cluster's network. All names and addresses derive from its fields, and the names from ID alone, so that what
// is left of a cluster can be found when nothing else is known of it.
type Network struct {
	// ID is 8 lower-case hex digits that no other cluster of this host has.
	ID string
	// Subnet is the third octet of 10.88.x.0/24.
	Subnet int
	// IPv6 says that all has IPv6 addresses too.
	IPv6 bool
}

// validate refuses what would make names or addresses of somebody else's.
func (n Network) validate() error {
	if err := n.validateID(); err != nil {
		return err
	}
	if n.Subnet < 0 || n.Subnet > 255 {
		return fmt.Errorf("cluster subnet 10.88.%d.0/24: its third octet is not 0 to 255: %w", n.Subnet, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (n Network) validateID() error {
	if !regexp.MustCompile(`^[0-9a-f]{8}$`).MatchString(n.ID) {
		return fmt.Errorf("network ID %q is not 8 lower-case hex digits: %w", n.ID, errdefs.ErrInvalidArgument)
	}
	return nil
}

func validateNode(i int) error {
	if i < 0 || i >= MaxNodes {
		return fmt.Errorf("node index %d is not 0 to %d: %w", i, MaxNodes-1, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Bridge is the name of the bridge in the host's namespace that joins the nodes and the control plane.
func (n Network) Bridge() string { return "bh" + n.ID }

// Subnets are the prefixes that hold the addresses of the host's bridge, the control plane and the nodes.
func (n Network) Subnets() []netip.Prefix {
	prefixes := []netip.Prefix{netip.PrefixFrom(n.addr4(0), 24)}
	if n.IPv6 {
		prefixes = append(prefixes, netip.PrefixFrom(n.addr6(0), 64))
	}
	return prefixes
}

// HostAddrs are the addresses of the host on the bridge: the gateway of all the rest.
func (n Network) HostAddrs() []netip.Addr { return n.addrs(1) }

// ControlPlaneAddrs are the addresses of the control plane, the IPv4 one first.
func (n Network) ControlPlaneAddrs() []netip.Addr { return n.addrs(controlPlaneOwn) }

// NodeAddrs are the addresses of node i, the IPv4 one first.
func (n Network) NodeAddrs(i int) []netip.Addr { return n.addrs(firstNode + i) }

// ControlPlaneNetNS is the path of the control plane's network namespace.
func (n Network) ControlPlaneNetNS() string { return n.netnsPrefix() + "cp" }

// NodeNetNS is the path of the network namespace of node i.
func (n Network) NodeNetNS(i int) string { return n.netnsPrefix() + "n" + strconv.Itoa(i) }

// PodCIDRs are the prefixes of the pods on node i, the IPv4 one first.
func (n Network) PodCIDRs(i int) []netip.Prefix {
	return n.families(
		netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i), 0}), 24),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x44, 6: byte(i >> 8), 7: byte(i)}), 64))
}

// ClusterPodCIDRs are the prefixes of all pods, the IPv4 one first. Every cluster has the same: they exist only inside its
// namespaces.
func (n Network) ClusterPodCIDRs() []netip.Prefix {
	return n.families(netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd44::/48"))
}

// ServiceCIDRs are the prefixes of the services, the IPv4 one first. Every cluster has the same.
func (n Network) ServiceCIDRs() []netip.Prefix {
	return n.families(netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd96::/112"))
}

// ClusterDNS is the service address of the cluster's name server.
func (n Network) ClusterDNS() netip.Addr { return netip.MustParseAddr("10.96.0.10") }

func (n Network) netnsPrefix() string { return netnsDir + "/bh-" + n.ID + "-" }

// vethPrefix begins the names of the host's ends of veths: an interface's name has at most 15 characters.
func (n Network) vethPrefix() string { return "bh" + n.ID[:6] }

func (n Network) controlPlaneVeth() string { return n.vethPrefix() + "cp" }

func (n Network) nodeVeth(i int) string { return n.vethPrefix() + "n" + strconv.Itoa(i) }

// hostTable is the name of the nft table in the host's namespace.
func (n Network) hostTable() string { return "bulkhead_" + n.ID }

func (n Network) addrs(last int) []netip.Addr {
	if n.IPv6 {
		return []netip.Addr{n.addr4(last), n.addr6(last)}
	}
	return []netip.Addr{n.addr4(last)}
}

func (n Network) addr4(last int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 88, byte(n.Subnet), byte(last)})
}

// addr6 is in fd88:<id>::/64. The last group's digits are those of the IPv4 address's last octet, as people write it.
func (n Network) addr6(last int) netip.Addr {
	host := ""
	if last > 0 {
		host = strconv.Itoa(last)
	}
	return netip.MustParseAddr("fd88:" + n.ID[:4] + ":" + n.ID[4:] + "::" + host)
}

func (n Network) families(v4, v6 netip.Prefix) []netip.Prefix {
	if n.IPv6 {
		return []netip.Prefix{v4, v6}
	}
	return []netip.Prefix{v4}
}
