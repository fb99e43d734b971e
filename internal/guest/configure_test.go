package guest

import (
	"net"
	"net/netip"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	guestapi "bulkhead.dev/bulkhead/api/guest"
	"bulkhead.dev/bulkhead/internal/guest/netconf"
)

func TestNetworkConfig(t *testing.T) {
	got, err := networkConfig(&guestapi.ConfigureRequest{
		Interfaces: []*guestapi.Interface{{Name: "eth0", Mac: "02:00:00:00:00:01", Mtu: 1450, Addresses: []string{"10.0.0.2/24", "fd00::2/64"}}},
		Routes: []*guestapi.Route{
			{Gateway: "10.0.0.1", Interface: "eth0"},
			{Gateway: "fd00::1", Interface: "eth0", Metric: 5},
			{Ipv6: true, Interface: "eth0"},
			{Destination: "10.1.0.0/16", Source: "10.0.0.2", Interface: "eth0", Scope: 253, Onlink: true},
		},
		Neighbours: []*guestapi.Neighbour{{Address: "10.0.0.1", Mac: "02:00:00:00:00:02", Interface: "eth0"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	want := netconf.Config{
		Interfaces: []netconf.Interface{{Name: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, MTU: 1450, Addresses: []netip.Prefix{p("10.0.0.2/24"), p("fd00::2/64")}}},
		Routes: []netconf.Route{
			{Destination: p("0.0.0.0/0"), Gateway: a("10.0.0.1"), Interface: "eth0"},
			{Destination: p("::/0"), Gateway: a("fd00::1"), Interface: "eth0", Metric: 5},
			{Destination: p("::/0"), Interface: "eth0"},
			{Destination: p("10.1.0.0/16"), Source: a("10.0.0.2"), Interface: "eth0", Scope: 253, Onlink: true},
		},
		Neighbours: []netconf.Neighbour{{Address: a("10.0.0.1"), MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, Interface: "eth0"}},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestNetworkConfigRefuses(t *testing.T) {
	eth0 := func() *guestapi.Interface { return &guestapi.Interface{Name: "eth0", Mac: "02:00:00:00:00:01"} }
	for name, r := range map[string]*guestapi.ConfigureRequest{
		"MAC":             {Interfaces: []*guestapi.Interface{{Name: "eth0", Mac: "x"}}},
		"address":         {Interfaces: []*guestapi.Interface{{Name: "eth0", Mac: "02:00:00:00:00:01", Addresses: []string{"10.0.0.1"}}}},
		"MTU":             {Interfaces: []*guestapi.Interface{{Name: "eth0", Mac: "02:00:00:00:00:01", Mtu: 1 << 31}}},
		"gateway":         {Interfaces: []*guestapi.Interface{eth0()}, Routes: []*guestapi.Route{{Gateway: "x", Interface: "eth0"}}},
		"source":          {Interfaces: []*guestapi.Interface{eth0()}, Routes: []*guestapi.Route{{Source: "x", Interface: "eth0"}}},
		"destination":     {Interfaces: []*guestapi.Interface{eth0()}, Routes: []*guestapi.Route{{Destination: "x", Interface: "eth0"}}},
		"scope":           {Interfaces: []*guestapi.Interface{eth0()}, Routes: []*guestapi.Route{{Scope: 256, Interface: "eth0"}}},
		"route interface": {Routes: []*guestapi.Route{{Interface: "eth1"}}},
		"neighbour":       {Interfaces: []*guestapi.Interface{eth0()}, Neighbours: []*guestapi.Neighbour{{Address: "x", Interface: "eth0"}}},
		"neighbour's MAC": {Interfaces: []*guestapi.Interface{eth0()}, Neighbours: []*guestapi.Neighbour{{Address: "10.0.0.1", Mac: "x", Interface: "eth0"}}},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := networkConfig(r); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestHostnameRefuses(t *testing.T) {
	for _, name := range []string{"a b", "a/b", "a\n", string(make([]byte, 65))} {
		if err := setHostname(name); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
}
