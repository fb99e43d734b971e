package netdev

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func network(t *testing.T, cidr string) *net.IPNet {
	t.Helper()
	ip, n, err := net.ParseCIDR(cidr)
	if err != nil {
		t.Fatal(err)
	}
	n.IP = ip
	return n
}

func TestConvert(t *testing.T) {
	for _, c := range []struct {
		name string
		in   netlink.Route
		want string // destination, gateway, source; empty: left out
	}{
		{"default of IPv4", netlink.Route{Family: netlink.FAMILY_V4, Gw: net.ParseIP("10.0.0.1")}, "0.0.0.0/0 10.0.0.1 -"},
		{"default of IPv6 without gateway", netlink.Route{Family: netlink.FAMILY_V6}, "::/0 - -"},
		{"default with a destination", netlink.Route{Dst: network(t, "::/0"), Gw: net.ParseIP("fd00::1")}, "::/0 fd00::1 -"},
		{"4 in 16 bytes", netlink.Route{Dst: network(t, "10.0.0.0/8"), Src: net.ParseIP("10.1.2.3").To16()}, "10.0.0.0/8 - 10.1.2.3"},
		{
			"IPv4 by way of IPv6", netlink.Route{Dst: network(t, "10.0.0.0/8"), Via: &netlink.Via{AddrFamily: unix.AF_INET6, Addr: net.ParseIP("fe80::1")}},
			"10.0.0.0/8 fe80::1 -",
		},
		{"IPv4's link-local is a network like others", netlink.Route{Dst: network(t, "169.254.1.1/32")}, "169.254.1.1/32 - -"},
		{"IPv6's link-local", netlink.Route{Dst: network(t, "fe80::/64")}, ""},
		{"multicast of IPv6", netlink.Route{Dst: network(t, "ff00::/8")}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			route, ok := convert(c.in)
			got := ""
			if ok {
				got = strings.Join([]string{route.Destination.String(), text(route.Gateway), text(route.Source)}, " ")
			}
			if got != c.want {
				t.Errorf("convert = %q; want %q", got, c.want)
			}
		})
	}
}

func text(a netip.Addr) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

func TestJoinable(t *testing.T) {
	ethernet := func() netlink.LinkAttrs {
		return netlink.LinkAttrs{Name: "x0", EncapType: "ether", HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	}
	noARP := ethernet()
	noARP.RawFlags = unix.IFF_NOARP
	other := ethernet()
	other.EncapType = "none"
	for _, c := range []struct {
		name string
		link netlink.Link
		want bool
	}{
		{"veth", &netlink.Veth{LinkAttrs: ethernet()}, true},
		{"macvlan", &netlink.Macvlan{LinkAttrs: ethernet()}, true},
		{"physical", &netlink.Device{LinkAttrs: ethernet()}, true},
		{"vlan takes its frames from another interface", &netlink.Vlan{LinkAttrs: ethernet()}, false},
		{"bridge", &netlink.Bridge{LinkAttrs: ethernet()}, false},
		{"without ARP", &netlink.IPVlan{LinkAttrs: noARP}, false},
		{"no Ethernet", &netlink.Device{LinkAttrs: other}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := joinable(c.link)
			if (err == nil) != c.want {
				t.Fatalf("joinable = %v", err)
			}
			if err != nil && (!errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "x0")) {
				t.Errorf("%v is not FailedPrecondition, or doesn't name the interface", err)
			}
		})
	}
}

func TestRoutesWithoutGatewayComeFirst(t *testing.T) {
	gateway := netip.MustParseAddr("10.0.0.1")
	got := []int{rank(Route{}), rank(Route{Gateway: gateway}), rank(Route{OnLink: true})}
	if diff := cmp.Diff([]int{0, 1, 0}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
