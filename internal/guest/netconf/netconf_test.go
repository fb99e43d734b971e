package netconf

import (
	"net"
	"net/netip"
	"testing"

	"github.com/containerd/errdefs"
)

func mac(last byte) net.HardwareAddr { return net.HardwareAddr{2, 0, 0, 0, 0, last} }

func TestValidate(t *testing.T) {
	good := func() Config {
		return Config{
			Interfaces: []Interface{{Name: "eth0", MAC: mac(1), MTU: 1450, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}}},
			Routes:     []Route{{Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.0.0.1"), Interface: "eth0"}},
			Neighbours: []Neighbour{{Address: netip.MustParseAddr("10.0.0.1"), MAC: mac(2), Interface: "eth0"}},
		}
	}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"no name":               func(c *Config) { c.Interfaces[0].Name = "" },
		"long name":             func(c *Config) { c.Interfaces[0].Name = "a234567890123456" },
		"slash in name":         func(c *Config) { c.Interfaces[0].Name = "../x" },
		"loopback":              func(c *Config) { c.Interfaces[0].Name = "lo" },
		"same name twice":       func(c *Config) { c.Interfaces = append(c.Interfaces, c.Interfaces[0]) },
		"short MAC":             func(c *Config) { c.Interfaces[0].MAC = mac(1)[:5] },
		"small MTU":             func(c *Config) { c.Interfaces[0].MTU = 60 },
		"invalid address":       func(c *Config) { c.Interfaces[0].Addresses[0] = netip.Prefix{} },
		"route by unknown":      func(c *Config) { c.Routes[0].Interface = "eth1" },
		"route to nowhere":      func(c *Config) { c.Routes[0].Destination = netip.Prefix{} },
		"gateway of other kind": func(c *Config) { c.Routes[0].Gateway = netip.MustParseAddr("fe80::1") },
		"neighbour of unknown":  func(c *Config) { c.Neighbours[0].Interface = "eth1" },
		"neighbour without MAC": func(c *Config) { c.Neighbours[0].MAC = nil },
	} {
		t.Run(name, func(t *testing.T) {
			c := good()
			spoil(&c)
			if err := c.Validate(); !errdefs.IsInvalidArgument(err) {
				t.Errorf("Validate = %v", err)
			}
			if err := Apply(c, nil); !errdefs.IsInvalidArgument(err) {
				t.Errorf("Apply = %v", err)
			}
		})
	}
}

func FuzzParseLink(f *testing.F) {
	f.Add([]byte{0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 3, 0, 'e', 't', 'h', '0', 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) { parseLink(b) })
}
