package node

import (
	"crypto/sha256"
	"fmt"
	"strings"
)

// Configuration files of CNI 1.0.0: https://www.cni.dev/docs/spec/#configuration-format.
type (
	networkList struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
		Plugins    []any  `json:"plugins"`
	}
	// pairPlugin is the plugin bridge or ptp.
	pairPlugin struct {
		Type   string `json:"type"`
		Bridge string `json:"bridge,omitempty"`
		// IsGateway gives the bridge an address; ptp always has one.
		IsGateway bool `json:"isGateway,omitempty"`
		// IPMasq would need iptables and leave rules behind.
		IPMasq bool `json:"ipMasq"`
		MTU    int  `json:"mtu,omitempty"`
		IPAM   ipam `json:"ipam"`
	}
	// ipam is the plugin host-local. It gives a pod an address of each list of ranges.
	ipam struct {
		Type    string       `json:"type"`
		DataDir string       `json:"dataDir"`
		Ranges  [][]ipRange  `json:"ranges"`
		Routes  []routeEntry `json:"routes"`
	}
	ipRange struct {
		Subnet string `json:"subnet"`
	}
	routeEntry struct {
		Destination string `json:"dst"`
	}
	// tuningPlugin sets sysctls in the pod's network namespace.
	tuningPlugin struct {
		Type   string            `json:"type"`
		Sysctl map[string]string `json:"sysctl"`
	}
	// plugin is one that needs nothing said.
	plugin struct {
		Type string `json:"type"`
	}
	// portmapPlugin gives pods their hostPorts.
	portmapPlugin struct {
		Type         string          `json:"type"`
		Backend      string          `json:"backend"`
		Capabilities map[string]bool `json:"capabilities"`
	}
)

// network is the name of the node's CNI network. Results are kept by this name in a directory of the host.
func (n *Node) network() string { return n.Bridge() }

// Bridge is the device that CNI makes for the first pod with a network of a private containerd and keeps, at most 15 bytes;
// Stop removes it.
func (n *Node) Bridge() string { return "bh" + n.sockets[len(n.sockets)-8:] }

// bridgeConfig is a bridge without address translation. Nodes in different directories get different networks.
func (n *Node) bridgeConfig() networkList {
	hash := sha256.Sum256([]byte(n.dir))
	return networkList{
		CNIVersion: "1.0.0", Name: n.network(), Plugins: []any{pairPlugin{
			Type: "bridge", Bridge: n.Bridge(), IsGateway: true, IPAM: n.ipam(
				fmt.Sprintf("10.189.%d.0/24", hash[4]), fmt.Sprintf("fd89:%x:%x::/64", hash[4:6], hash[6:8])),
		}},
	}
}

// routedConfig gives each pod a pair of devices with the node and no bridge, so that packets from pod to pod are forwarded
// by the node, through its filters, even on one node.
func (n *Node) routedConfig() networkList {
	var subnets []string
	for _, prefix := range n.options.Member.PodCIDRs {
		subnets = append(subnets, prefix.String())
	}
	return networkList{
		CNIVersion: "1.0.0", Name: n.network(), Plugins: []any{
			// Before it has a device: ptp waits for the detection of duplicate addresses, one to two seconds, and on a pair of devices there is
			// nobody who could have the same. The plugin tuning wants to follow another one, and loopback does no harm.
			plugin{Type: "loopback"},
			tuningPlugin{Type: "tuning", Sysctl: map[string]string{"net.ipv6.conf.default.accept_dad": "0"}},
			pairPlugin{Type: "ptp", MTU: n.options.Member.MTU, IPAM: n.ipam(subnets...)},
			portmapPlugin{Type: "portmap", Backend: "nftables", Capabilities: map[string]bool{"portMappings": true}},
		},
	}
}

func (n *Node) ipam(subnets ...string) ipam {
	made := ipam{Type: "host-local", DataDir: n.path("ipam")}
	for _, subnet := range subnets {
		made.Ranges = append(made.Ranges, []ipRange{{subnet}})
		route := "0.0.0.0/0"
		if strings.Contains(subnet, ":") {
			route = "::/0"
		}
		made.Routes = append(made.Routes, routeEntry{route})
	}
	return made
}
