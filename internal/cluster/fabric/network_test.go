package fabric

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

// texts are the values as people write them.
func texts[T interface{ String() string }](values []T) string {
	var s []string
	for _, v := range values {
		s = append(s, v.String())
	}
	return strings.Join(s, " ")
}

func TestNamesAndAddresses(t *testing.T) {
	n := Network{ID: "0a1b2c3d", Subnet: 7, IPv6: true}
	got := map[string]string{
		"bridge":        n.Bridge(),
		"subnets":       texts(n.Subnets()),
		"host":          texts(n.HostAddrs()),
		"control plane": texts(n.ControlPlaneAddrs()) + " " + n.ControlPlaneNetNS() + " " + n.controlPlaneVeth(),
		"node 0":        texts(n.NodeAddrs(0)) + " " + n.NodeNetNS(0) + " " + n.nodeVeth(0),
		"node 244":      texts(n.NodeAddrs(244)) + " " + n.NodeNetNS(244) + " " + n.nodeVeth(244),
		"pods 0":        texts(n.PodCIDRs(0)),
		"pods 244":      texts(n.PodCIDRs(244)),
		"pods":          texts(n.ClusterPodCIDRs()),
		"services":      texts(n.ServiceCIDRs()),
		"DNS":           n.ClusterDNS().String(),
	}
	want := map[string]string{
		"bridge":        "bh0a1b2c3d",
		"subnets":       "10.88.7.0/24 fd88:a1b:2c3d::/64",
		"host":          "10.88.7.1 fd88:a1b:2c3d::1",
		"control plane": "10.88.7.2 fd88:a1b:2c3d::2 /run/netns/bh-0a1b2c3d-cp bh0a1b2ccp",
		"node 0":        "10.88.7.10 fd88:a1b:2c3d::10 /run/netns/bh-0a1b2c3d-n0 bh0a1b2cn0",
		"node 244":      "10.88.7.254 fd88:a1b:2c3d::254 /run/netns/bh-0a1b2c3d-n244 bh0a1b2cn244",
		"pods 0":        "10.244.0.0/24 fd44::/64",
		"pods 244":      "10.244.244.0/24 fd44:0:0:f4::/64",
		"pods":          "10.244.0.0/16 fd44::/48",
		"services":      "10.96.0.0/16 fd96::/112",
		"DNS":           "10.96.0.10",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWithoutIPv6(t *testing.T) {
	n := Network{ID: "00000000"}
	for name, addrs := range map[string][]netip.Addr{"host": n.HostAddrs(), "control plane": n.ControlPlaneAddrs(), "node": n.NodeAddrs(3)} {
		if len(addrs) != 1 || !addrs[0].Is4() {
			t.Errorf("%s has %v", name, addrs)
		}
	}
	for name, prefixes := range map[string][]netip.Prefix{
		"subnets": n.Subnets(), "pods": n.PodCIDRs(3), "all pods": n.ClusterPodCIDRs(), "services": n.ServiceCIDRs(),
	} {
		if len(prefixes) != 1 || !prefixes[0].Addr().Is4() {
			t.Errorf("%s are %v", name, prefixes)
		}
	}
	if rules := n.hostRules() + n.nodeRules(); strings.Contains(rules, "ip6") {
		t.Errorf("rules speak of IPv6:\n%s", rules)
	}
}

// What is of one node must be of no other, and within what is of the cluster.
func TestAllNodesDiffer(t *testing.T) {
	n := Network{ID: "ffffffff", Subnet: 255, IPv6: true}
	seen := map[string]int{}
	for i := range MaxNodes {
		unique := []string{n.NodeNetNS(i), n.nodeVeth(i)}
		for k, addr := range n.NodeAddrs(i) {
			unique = append(unique, addr.String())
			if !n.Subnets()[k].Contains(addr) {
				t.Errorf("node %d: %s is not in %s", i, addr, n.Subnets()[k])
			}
			if slices.Contains(n.HostAddrs(), addr) || slices.Contains(n.ControlPlaneAddrs(), addr) {
				t.Errorf("node %d has an address of others: %s", i, addr)
			}
		}
		for k, pods := range n.PodCIDRs(i) {
			unique = append(unique, pods.String())
			if all := n.ClusterPodCIDRs()[k]; !all.Contains(pods.Addr()) || pods.Bits() <= all.Bits() || pods != pods.Masked() {
				t.Errorf("node %d: pods %s are not a part of %s", i, pods, all)
			}
		}
		if len(n.nodeVeth(i)) > 15 {
			t.Errorf("link name %s is longer than 15", n.nodeVeth(i))
		}
		for _, u := range unique {
			if other, ok := seen[u]; ok {
				t.Errorf("nodes %d and %d both have %s", other, i, u)
			}
			seen[u] = i
		}
	}
}

func TestInvalid(t *testing.T) {
	good := Network{ID: "12345678"}
	for name, err := range map[string]error{
		"no ID":             Up(t.Context(), Network{}),
		"short ID":          Down(Network{ID: "1234567"}),
		"upper case":        Down(Network{ID: "1234567A"}),
		"path in the ID":    NodeDown(Network{ID: "../../ab"}, 0),
		"subnet 256":        Up(t.Context(), Network{ID: "12345678", Subnet: 256}),
		"negative subnet":   Routes(Network{ID: "12345678", Subnet: -1}, nil),
		"node 245":          NodeUp(t.Context(), good, MaxNodes, nil),
		"negative node":     NodeDown(good, -1),
		"peer out of range": NodeUp(t.Context(), good, 0, []int{999}),
		"partition of -1":   Partition(good, -1, true),
	} {
		if !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v, want ErrInvalidArgument", name, err)
		}
	}
}

func TestFreeSubnet(t *testing.T) {
	all := make([]int, 256)
	for i := range all {
		all[i] = i
	}
	cases := []struct {
		name  string
		taken []int
		used  string
		want  int
		fails string // part of the error
	}{
		{name: "nothing in use", want: 0},
		{name: "taken by clusters", taken: []int{0, 1, 3}, want: 2},
		{name: "a host's address", used: "10.88.0.17/32", want: 1},
		{name: "a route to a part", used: "10.88.1.128/25", taken: []int{0}, want: 2},
		{name: "a route to many", used: "10.88.0.0/20 192.168.0.0/16", want: 16},
		{name: "other networks", used: "10.87.0.0/16 10.89.0.0/16 fd88::/16", want: 0},
		{name: "a route to all", used: "10.0.0.0/8", fails: "10.0.0.0/8"},
		{name: "only the last is free", taken: all[:255], want: 255},
		{name: "all taken", taken: all, fails: "clusters have them all"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var used []netip.Prefix
			for _, p := range strings.Fields(c.used) {
				used = append(used, netip.MustParsePrefix(p))
			}
			got, err := freeSubnet(c.taken, used)
			if c.fails != "" {
				if !errors.Is(err, errdefs.ErrResourceExhausted) || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("got %d, %v; want ErrResourceExhausted with %q", got, err, c.fails)
				}
				return
			}
			if err != nil || got != c.want {
				t.Errorf("got %d, %v; want %d", got, err, c.want)
			}
		})
	}
}
