//go:build root

package netconf

import (
	"errors"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inNetNS moves the test to a network namespace of its own.
func inNetNS(t *testing.T) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

func addVeth(t *testing.T, name string, addr net.HardwareAddr) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, addr
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name + "p"}); err != nil {
		t.Fatal(err)
	}
}

func TestApply(t *testing.T) {
	inNetNS(t)
	// The names are the wrong way round, and the second device comes late.
	addVeth(t, "eth1", mac(1))
	waits := 0
	wait := func() error {
		waits++
		if waits > 1 {
			return errors.New("waited too often")
		}
		addVeth(t, "eth0", mac(2))
		return nil
	}
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	c := Config{
		Interfaces: []Interface{
			{Name: "eth0", MAC: mac(1), MTU: 1450, Addresses: []netip.Prefix{p("10.1.0.2/24"), p("fd00::2/64")}},
			{Name: "eth1", MAC: mac(2), Addresses: []netip.Prefix{p("10.2.0.2/32")}},
		},
		Routes: []Route{
			// In the wrong order: the default's gateway becomes reachable by the last.
			{Destination: p("0.0.0.0/0"), Gateway: a("169.254.1.1"), Interface: "eth1"},
			{Destination: p("::/0"), Gateway: a("fd00::1"), Interface: "eth0", Metric: 7},
			{Destination: p("fd00::/64"), Interface: "eth0", Metric: 256},
			{Destination: p("10.9.0.0/16"), Gateway: a("10.99.0.1"), Interface: "eth0", Onlink: true},
			{Destination: p("169.254.1.1/32"), Interface: "eth1", Scope: unix.RT_SCOPE_LINK},
		},
		Neighbours: []Neighbour{{Address: a("169.254.1.1"), MAC: mac(9), Interface: "eth1"}},
	}
	// Peers up, so that the devices have a carrier.
	if err := Apply(c, wait); err != nil {
		t.Fatal(err)
	}
	if err := Apply(c, wait); err != nil {
		t.Errorf("applied again: %v", err)
	}
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	attrs := link.Attrs()
	if attrs.HardwareAddr.String() != mac(1).String() || attrs.MTU != 1450 || attrs.Flags&net.FlagUp == 0 {
		t.Errorf("eth0: %v, MTU %d, %v", attrs.HardwareAddr, attrs.MTU, attrs.Flags)
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string]bool)
	for _, addr := range addrs {
		found[addr.IPNet.String()] = true
		if addr.Flags&unix.IFA_F_TENTATIVE != 0 && addr.IP.IsGlobalUnicast() {
			t.Errorf("%v is tentative", addr)
		}
	}
	if !found["10.1.0.2/24"] || !found["fd00::2/64"] {
		t.Errorf("eth0 has %v", addrs)
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	var defaults, onlinks int
	for _, r := range routes {
		if r.Gw.String() == "169.254.1.1" {
			defaults++
		}
		if r.Gw.String() == "10.99.0.1" {
			onlinks++
		}
	}
	if defaults != 1 || onlinks != 1 {
		t.Errorf("routes: %v", routes)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil || lo.Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("loopback is not up: %v", err)
	}
	second, _ := netlink.LinkByName("eth1")
	neighbours, err := netlink.NeighList(second.Attrs().Index, netlink.FAMILY_V4)
	if err != nil || len(neighbours) != 1 || neighbours[0].State != unix.NUD_PERMANENT {
		t.Errorf("neighbours %v, %v", neighbours, err)
	}
}

// CNI's ptp has a network behind a gateway though the address has the network's prefix: nothing but the gateway is on the link.
func TestApplyNetworkBehindGateway(t *testing.T) {
	inNetNS(t)
	addVeth(t, "eth0", mac(1))
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	c := Config{
		Interfaces: []Interface{{Name: "eth0", MAC: mac(1), Addresses: []netip.Prefix{p("10.1.0.2/24"), p("fd00::2/64")}}},
		Routes: []Route{
			{Destination: p("10.1.0.1/32"), Interface: "eth0", Scope: unix.RT_SCOPE_LINK, Source: a("10.1.0.2")},
			{Destination: p("10.1.0.0/24"), Interface: "eth0", Gateway: a("10.1.0.1"), Source: a("10.1.0.2")},
			{Destination: p("fd00::1/128"), Interface: "eth0", Metric: 1024, Source: a("fd00::2")},
			{Destination: p("fd00::/64"), Interface: "eth0", Gateway: a("fd00::1"), Metric: 1024, Source: a("fd00::2")},
		},
	}
	if err := Apply(c, nil); err != nil {
		t.Fatal(err)
	}
	for to, gateway := range map[string]string{"10.1.0.9": "10.1.0.1", "fd00::9": "fd00::1", "10.1.0.1": "<nil>", "fd00::1": "<nil>"} {
		routes, err := netlink.RouteGet(net.ParseIP(to))
		if err != nil || len(routes) != 1 || routes[0].Gw.String() != gateway {
			t.Errorf("to %s: %v, %v; want the gateway %s", to, routes, err, gateway)
		}
	}
}

func TestApplyRouteThatCannotBe(t *testing.T) {
	inNetNS(t)
	addVeth(t, "eth0", mac(1))
	err := Apply(Config{
		Interfaces: []Interface{{Name: "eth0", MAC: mac(1)}},
		Routes:     []Route{{Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.0.0.1"), Interface: "eth0"}},
	}, nil)
	if !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("Apply = %v, want that the network is unreachable", err)
	}
}

func TestApplyDeviceThatNeverComes(t *testing.T) {
	inNetNS(t)
	never := errors.New("never")
	err := Apply(Config{Interfaces: []Interface{{Name: "eth0", MAC: mac(1)}}}, func() error { return never })
	if !errors.Is(err, never) {
		t.Errorf("Apply = %v", err)
	}
}
