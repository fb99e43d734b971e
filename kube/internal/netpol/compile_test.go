package netpol

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// documented is a cluster for the examples of https://kubernetes.io/docs/concepts/services-networking/network-policies/.
//
//	db    10.244.0.1 fd44::1  default    role=db           the node's
//	front 10.244.0.2 fd44::2  default    role=frontend     the node's
//	other 10.244.0.3          default    role=other        the node's
//	mine  10.244.1.1          myproject  role=client       elsewhere; the namespace has project=myproject
//	guest 10.244.1.2          guests     role=client       elsewhere
//	dns   10.88.0.2           kube-system k8s-app=kube-dns a stand-in
func documented() State {
	return State{
		Node: testNode,
		Pods: []*corev1.Pod{
			newPod("default/db", "role=db", "10.244.0.1,fd44::1", withPort("redis", "TCP", 6379), withPort("dns", "UDP", 53)),
			newPod("default/front", "role=frontend", "10.244.0.2,fd44::2", withPort("web", "", 8080)),
			newPod("default/other", "role=other", "10.244.0.3", withPort("web", "TCP", 9090)),
			newPod("myproject/mine", "role=client", "10.244.1.1", elsewhere, withPort("web", "TCP", 80)),
			newPod("guests/guest", "role=client", "10.244.1.2", elsewhere),
		},
		Namespaces: []*corev1.Namespace{
			newNamespace("default", ""), newNamespace("myproject", "project=myproject"), newNamespace("guests", "tier=guests"),
			newNamespace("kube-system", ""),
		},
		StandIns: []*corev1.Pod{newPod("kube-system/dns", "k8s-app=kube-dns", "10.88.0.2", elsewhere, withPort("dns", "UDP", 53))},
	}
}

func TestCompile(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	tests := map[string]struct {
		policies string
		change   func(*State)
		allowed  []string
		denied   []string
		problems []string // prefixes
	}{
		"no policy": {
			allowed: []string{"10.244.1.2 > 10.244.0.1 tcp 6379", "10.244.0.1 > 1.1.1.1 udp 53", "fd44::1 > fd44::2 icmp 0"},
		},
		"documentation: the NetworkPolicy resource": {
			policies: `
name: default/test-network-policy
spec:
  podSelector: {matchLabels: {role: db}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}
    - namespaceSelector: {matchLabels: {project: myproject}}
    - podSelector: {matchLabels: {role: frontend}}
    ports: [{protocol: TCP, port: 6379}]
  egress:
  - to: [{ipBlock: {cidr: 10.0.0.0/24}}]
    ports: [{protocol: TCP, port: 5978}]`,
			allowed: []string{
				"10.244.0.2 > 10.244.0.1 tcp 6379", "fd44::2 > fd44::1 tcp 6379", "10.244.1.1 > 10.244.0.1 tcp 6379",
				"172.17.0.255 > 10.244.0.1 tcp 6379", "172.17.2.0 > 10.244.0.1 tcp 6379", "172.17.255.255 > 10.244.0.1 tcp 6379",
				"10.244.0.1 > 10.0.0.7 tcp 5978", "10.244.0.1 > 10.244.0.1 tcp 1",
				"10.244.1.2 > 10.244.0.2 tcp 6379", "10.244.0.2 > 1.1.1.1 tcp 443",
			},
			denied: []string{
				"10.244.0.2 > 10.244.0.1 tcp 6380", "10.244.0.2 > 10.244.0.1 udp 6379", "10.244.0.2 > 10.244.0.1 icmp 0",
				"10.244.0.3 > 10.244.0.1 tcp 6379", "10.244.1.2 > 10.244.0.1 tcp 6379", "172.17.1.9 > 10.244.0.1 tcp 6379",
				"172.16.255.255 > 10.244.0.1 tcp 6379", "172.18.0.0 > 10.244.0.1 tcp 6379",
				"10.244.0.1 > 10.0.1.0 tcp 5978", "10.244.0.1 > 10.0.0.7 tcp 5979", "10.244.0.1 > 10.244.0.2 tcp 5978",
				"fd44::1 > fd44::2 tcp 5978",
			},
		},
		"documentation: selectors of one peer are combined": {
			policies: `
name: default/and
spec:
  podSelector: {}
  ingress: [{from: [{namespaceSelector: {matchLabels: {project: myproject}}, podSelector: {matchLabels: {role: client}}}]}]`,
			allowed: []string{"10.244.1.1 > 10.244.0.3 udp 9"},
			denied:  []string{"10.244.1.2 > 10.244.0.3 udp 9", "10.244.0.2 > 10.244.0.3 udp 9"},
		},
		"documentation: two peers are alternatives": {
			policies: `
name: default/or
spec:
  podSelector: {matchLabels: {role: db}}
  ingress: [{from: [{namespaceSelector: {matchLabels: {project: myproject}}}, {podSelector: {matchLabels: {role: other}}}]}]`,
			allowed: []string{"10.244.1.1 > 10.244.0.1 udp 9", "10.244.0.3 > 10.244.0.1 udp 9"},
			denied:  []string{"10.244.1.2 > 10.244.0.1 udp 9", "10.244.0.2 > 10.244.0.1 udp 9"},
		},
		"documentation: default deny ingress": {
			policies: "name: default/d\nspec: {podSelector: {}, policyTypes: [Ingress]}",
			allowed:  []string{"10.244.0.1 > 1.1.1.1 tcp 80", "10.244.0.2 > 10.244.1.2 tcp 80"},
			denied:   []string{"10.244.0.2 > 10.244.0.1 tcp 80", "fd44::2 > fd44::1 tcp 80", "1.1.1.1 > 10.244.0.3 tcp 80"},
		},
		"documentation: allow all ingress beside default deny": {
			policies: `
name: default/d
spec: {podSelector: {}, policyTypes: [Ingress]}
---
name: default/a
spec: {podSelector: {}, policyTypes: [Ingress], ingress: [{}]}`,
			allowed: []string{"10.244.0.2 > 10.244.0.1 tcp 80", "fd44::9 > fd44::1 icmp 0"},
		},
		"documentation: default deny egress": {
			policies: "name: default/d\nspec: {podSelector: {}, policyTypes: [Egress]}",
			allowed:  []string{"1.1.1.1 > 10.244.0.1 tcp 80", "10.244.1.1 > 10.244.0.1 tcp 80"},
			denied:   []string{"10.244.0.2 > 10.244.0.1 tcp 80", "10.244.0.1 > 10.88.0.2 udp 53"},
		},
		"documentation: allow all egress": {
			policies: "name: default/a\nspec: {podSelector: {}, policyTypes: [Egress], egress: [{}]}",
			allowed:  []string{"10.244.0.2 > 10.244.0.1 tcp 80", "10.244.0.1 > 1.1.1.1 icmp 0"},
		},
		"documentation: default deny all": {
			policies: "name: default/d\nspec: {podSelector: {}, policyTypes: [Ingress, Egress]}",
			allowed:  []string{"10.244.1.1 > 10.244.1.2 tcp 80", "10.244.0.1 > 10.244.0.1 tcp 80"},
			denied:   []string{"10.244.0.2 > 10.244.0.1 tcp 80", "1.1.1.1 > 10.244.0.1 tcp 80", "10.244.0.1 > 1.1.1.1 tcp 80"},
		},
		"documentation: a range of ports": {
			policies: `
name: default/multi-port-egress
spec:
  podSelector: {matchLabels: {role: db}}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 10.0.0.0/24}}], ports: [{protocol: TCP, port: 32000, endPort: 32768}]}]`,
			allowed: []string{"10.244.0.1 > 10.0.0.1 tcp 32000", "10.244.0.1 > 10.0.0.1 tcp 32768"},
			denied: []string{"10.244.0.1 > 10.0.0.1 tcp 31999", "10.244.0.1 > 10.0.0.1 tcp 32769",
				"10.244.0.1 > 10.0.0.1 udp 32000", "10.244.0.1 > 10.0.1.1 tcp 32000"},
		},
		"documentation: several namespaces by label, and one by name": {
			policies: `
name: default/egress-namespaces
spec:
  podSelector: {matchLabels: {role: db}}
  policyTypes: [Egress]
  egress:
  - to: [{namespaceSelector: {matchExpressions: [{key: project, operator: In, values: [myproject, yours]}]}}]
  - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: guests}}}]
    ports: [{port: 80}]`,
			allowed: []string{"10.244.0.1 > 10.244.1.1 sctp 7", "10.244.0.1 > 10.244.1.2 tcp 80"},
			denied:  []string{"10.244.0.1 > 10.244.1.2 tcp 81", "10.244.0.1 > 10.244.0.2 tcp 80"},
		},
		"egress to DNS, which is a stand-in": {
			policies: `
name: default/dns
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
  - to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]
    ports: [{protocol: UDP, port: dns}]`,
			allowed: []string{"10.244.0.1 > 10.88.0.2 udp 53"},
			denied:  []string{"10.244.0.1 > 10.88.0.2 tcp 53", "10.244.0.1 > 10.88.0.3 udp 53", "10.244.0.2 > 10.244.0.1 udp 53"},
		},
		"policyTypes default to ingress": {
			policies: "name: default/d\nspec: {podSelector: {}}",
			allowed:  []string{"10.244.0.1 > 1.1.1.1 tcp 80"},
			denied:   []string{"1.1.1.1 > 10.244.0.1 tcp 80"},
		},
		"policyTypes default to both with egress rules": {
			policies: "name: default/d\nspec: {podSelector: {}, egress: [{ports: [{port: 80}]}]}",
			allowed:  []string{"10.244.0.1 > 1.1.1.1 tcp 80"},
			denied:   []string{"1.1.1.1 > 10.244.0.1 tcp 80", "10.244.0.1 > 1.1.1.1 tcp 81"},
		},
		"egress rules without that policyType mean nothing": {
			policies: "name: default/d\nspec: {podSelector: {}, policyTypes: [Ingress], egress: [{ports: [{port: 80}]}]}",
			allowed:  []string{"10.244.0.1 > 1.1.1.1 tcp 81"},
			denied:   []string{"1.1.1.1 > 10.244.0.1 tcp 80"},
		},
		"empty lists of peers and ports": {
			policies: "name: default/d\nspec: {podSelector: {}, ingress: [{from: [], ports: []}]}",
			allowed:  []string{"1.1.1.1 > 10.244.0.1 tcp 80", "1.1.1.1 > 10.244.0.1 icmp 0"},
		},
		"a protocol without port": {
			policies: "name: default/d\nspec: {podSelector: {}, ingress: [{ports: [{protocol: SCTP}, {}]}]}",
			allowed:  []string{"1.1.1.1 > 10.244.0.1 sctp 80", "1.1.1.1 > 10.244.0.1 tcp 65535"},
			denied:   []string{"1.1.1.1 > 10.244.0.1 udp 80", "1.1.1.1 > 10.244.0.1 icmp 0"},
		},
		"policies add up": {
			policies: `
name: default/a
spec: {podSelector: {matchLabels: {role: db}}, ingress: [{ports: [{port: 1}]}]}
---
name: default/b
spec: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {role: other}}}], ports: [{port: 2}]}]}`,
			allowed: []string{"10.244.0.2 > 10.244.0.1 tcp 1", "10.244.0.3 > 10.244.0.1 tcp 2"},
			denied:  []string{"10.244.0.2 > 10.244.0.1 tcp 2", "10.244.0.3 > 10.244.0.2 tcp 1"},
		},
		"both ends must allow": {
			policies: `
name: default/out
spec: {podSelector: {matchLabels: {role: frontend}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {role: db}}}]}]}
---
name: default/in
spec: {podSelector: {matchLabels: {role: db}}, ingress: [{ports: [{port: 6379}]}]}`,
			allowed: []string{"10.244.0.2 > 10.244.0.1 tcp 6379"},
			denied:  []string{"10.244.0.2 > 10.244.0.1 tcp 1", "10.244.0.2 > 10.244.0.3 tcp 6379"},
		},
		"an empty namespaceSelector is all pods, and no other addresses": {
			policies: "name: default/d\nspec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}",
			allowed:  []string{"10.244.1.2 > 10.244.0.1 tcp 80", "10.88.0.2 > 10.244.0.1 tcp 80", "fd44::2 > fd44::1 tcp 80"},
			denied:   []string{"1.1.1.1 > 10.244.0.1 tcp 80", "10.88.0.1 > 10.244.0.1 tcp 80"},
		},
		"an empty podSelector as peer is the namespace": {
			policies: "name: default/d\nspec: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}",
			allowed:  []string{"10.244.0.3 > 10.244.0.1 tcp 80"},
			denied:   []string{"10.244.1.1 > 10.244.0.1 tcp 80"},
		},
		"ports named at the pod that is protected": {
			policies: "name: default/d\nspec: {podSelector: {}, ingress: [{ports: [{port: web}]}]}",
			allowed:  []string{"1.1.1.1 > 10.244.0.2 tcp 8080", "fd44::1 > fd44::2 tcp 8080", "1.1.1.1 > 10.244.0.3 tcp 9090"},
			denied:   []string{"1.1.1.1 > 10.244.0.2 tcp 9090", "1.1.1.1 > 10.244.0.3 tcp 8080", "1.1.1.1 > 10.244.0.1 tcp 8080"},
		},
		"ports named at the destination": {
			policies: `
name: default/d
spec: {podSelector: {matchLabels: {role: db}}, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}`,
			allowed: []string{"10.244.0.1 > 10.244.0.2 tcp 8080", "fd44::1 > fd44::2 tcp 8080", "10.244.0.1 > 10.244.0.3 tcp 9090",
				"10.244.0.1 > 10.244.1.1 tcp 80"},
			denied: []string{"10.244.0.1 > 10.244.0.2 tcp 80", "10.244.0.1 > 10.244.1.2 tcp 80", "10.244.0.1 > 1.1.1.1 tcp 80"},
		},
		"ports named at those destinations that are peers": {
			policies: `
name: default/d
spec:
  podSelector: {matchLabels: {role: db}}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 10.244.1.0/24}}, {podSelector: {matchLabels: {role: other}}}], ports: [{port: web}]}]`,
			allowed: []string{"10.244.0.1 > 10.244.1.1 tcp 80", "10.244.0.1 > 10.244.0.3 tcp 9090"},
			denied:  []string{"10.244.0.1 > 10.244.0.2 tcp 8080", "10.244.0.1 > 10.244.1.7 tcp 80"},
		},
		"a named port has a protocol": {
			policies: "name: default/d\nspec: {podSelector: {}, ingress: [{ports: [{port: dns}, {port: redis, protocol: UDP}]}]}",
			denied:   []string{"1.1.1.1 > 10.244.0.1 udp 53", "1.1.1.1 > 10.244.0.1 tcp 53", "1.1.1.1 > 10.244.0.1 udp 6379"},
		},
		"named ports of init containers count if they go on to run": {
			policies: "name: default/d\nspec: {podSelector: {}, ingress: [{ports: [{port: side}, {port: init}]}]}",
			change: func(s *State) {
				s.Pods = append(s.Pods, newPod("default/m", "", "10.244.0.9", withInitPort("side", 15000, &always), withInitPort("init", 15001, nil)))
			},
			allowed: []string{"1.1.1.1 > 10.244.0.9 tcp 15000"},
			denied:  []string{"1.1.1.1 > 10.244.0.9 tcp 15001"},
		},
		"of two ports with a name the first counts": {
			policies: "name: default/d\nspec: {podSelector: {}, ingress: [{ports: [{port: p}]}]}",
			change: func(s *State) {
				s.Pods = append(s.Pods, newPod("default/m", "", "10.244.0.9", withPort("p", "TCP", 1), withPort("p", "TCP", 2)))
			},
			allowed: []string{"1.1.1.1 > 10.244.0.9 tcp 1"},
			denied:  []string{"1.1.1.1 > 10.244.0.9 tcp 2"},
		},
		"IPv6 blocks": {
			policies: `
name: default/d
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "fd00::/8", except: ["fd44::/16", "fdff:ffff::/32"]}}]}]}`,
			allowed: []string{"fd00::1 > fd44::1 tcp 1", "fdff:fffe:ffff:ffff:ffff:ffff:ffff:ffff > fd44::1 tcp 1"},
			denied:  []string{"fd44::2 > fd44::1 tcp 1", "fdff:ffff::1 > fd44::1 tcp 1", "fe00::1 > fd44::1 tcp 1", "1.1.1.1 > 10.244.0.1 tcp 1"},
		},
		"everything but private addresses": {
			policies: `
name: default/d
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8, 192.168.0.0/16]}}]}]`,
			allowed: []string{"10.244.0.1 > 9.255.255.255 tcp 1", "10.244.0.1 > 11.0.0.0 tcp 1", "10.244.0.1 > 255.255.255.254 tcp 1"},
			denied:  []string{"10.244.0.1 > 10.0.0.1 tcp 1", "10.244.0.1 > 192.168.255.255 tcp 1", "fd44::1 > 2001:db8::1 tcp 1"},
		},
		"a block whose exceptions are all of it": {
			policies: `
name: default/d
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16, except: [10.1.0.0/17, 10.1.128.0/17]}}]}]}`,
			denied: []string{"10.1.0.1 > 10.244.0.1 tcp 1", "10.1.200.1 > 10.244.0.1 tcp 1"},
		},
		"a block with bits beyond its length": {
			policies: "name: default/d\nspec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/16}}]}]}",
			allowed:  []string{"10.1.0.0 > 10.244.0.1 tcp 1", "10.1.255.255 > 10.244.0.1 tcp 1"},
			denied:   []string{"10.2.0.0 > 10.244.0.1 tcp 1"},
		},
		"policies of other namespaces select nothing here": {
			policies: "name: guests/d\nspec: {podSelector: {}, policyTypes: [Ingress, Egress]}",
			allowed:  []string{"1.1.1.1 > 10.244.0.1 tcp 1", "1.1.1.1 > 10.244.1.2 tcp 1"},
		},
		"pods on the node's network and pods that have ended are neither protected nor peers": {
			policies: "name: default/d\nspec: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}",
			change: func(s *State) {
				s.Pods = append(s.Pods,
					newPod("default/h", "", "10.88.0.10", func(p *corev1.Pod) { p.Spec.HostNetwork = true }),
					newPod("default/s", "", "10.244.0.20", func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }),
					newPod("default/f", "", "10.244.0.21", func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }))
			},
			allowed: []string{"1.1.1.1 > 10.88.0.10 tcp 1", "1.1.1.1 > 10.244.0.20 tcp 1"},
			denied:  []string{"10.88.0.10 > 10.244.0.1 tcp 1", "10.244.0.20 > 10.244.0.1 tcp 1", "10.244.0.21 > 10.244.0.1 tcp 1"},
		},
		"an address belongs to the newest pod that has it": {
			policies: `
name: default/d
spec: {podSelector: {matchLabels: {age: new}}, ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}]}]}`,
			change: func(s *State) {
				at := func(minute int) func(*corev1.Pod) {
					return func(p *corev1.Pod) {
						p.CreationTimestamp = metav1.NewTime(time.Date(2026, 1, 1, 0, minute, 0, 0, time.UTC))
					}
				}
				s.Pods = append(s.Pods,
					newPod("default/z", "age=old,role=frontend", "10.244.0.30", at(1)), newPod("default/y", "age=new", "10.244.0.30", at(2)))
			},
			allowed: []string{"10.244.0.2 > 10.244.0.30 tcp 1"},
			denied:  []string{"1.1.1.1 > 10.244.0.30 tcp 1"},
		},
		"addresses that no pod has": {
			policies: "name: default/d\nspec: {podSelector: {}, policyTypes: [Ingress, Egress]}",
			change: func(s *State) {
				s.Pods = append(s.Pods, newPod("default/x", "", "nonsense,127.0.0.1,::,fe80::1%eth0,ff02::1,::ffff:10.244.0.40"))
			},
			allowed: []string{"127.0.0.1 > 1.1.1.1 tcp 1", "1.1.1.1 > 224.0.0.1 tcp 1"},
			denied:  []string{"10.244.0.40 > 1.1.1.1 tcp 1"},
		},
		"what can't be understood allows nothing": {
			policies: `
name: default/d
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress, Sideways]
  ingress:
  - ports: [{port: 0}, {port: 70000}, {port: 5, endPort: 4}, {endPort: 9}, {port: x, endPort: 9}, {protocol: ICMP}, {port: ""}]
  - from: [{}]
  - from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]
  - from: [{ipBlock: {cidr: nonsense}}, {ipBlock: {cidr: "::ffff:10.0.0.0/104"}}]
  - from: [{ipBlock: {cidr: 10.0.0.0/8, except: [nonsense]}}]
  - from: [{podSelector: {matchExpressions: [{key: a, operator: Near}]}}]
  - from: [{namespaceSelector: {matchExpressions: [{key: a, operator: In}]}}]`,
			denied: []string{"10.244.0.2 > 10.244.0.1 tcp 5", "10.1.0.0 > 10.244.0.1 tcp 1", "10.244.0.1 > 10.244.0.2 tcp 1"},
			problems: []string{
				"default/d: ingress[0].ports[0]: ports 0 to 0", "default/d: ingress[0].ports[1]: ports 70000",
				"default/d: ingress[0].ports[2]: ports 5 to 4", "default/d: ingress[0].ports[3]: endPort without",
				"default/d: ingress[0].ports[4]: endPort with", `default/d: ingress[0].ports[5]: protocol "ICMP"`,
				"default/d: ingress[0].ports[6]: port has an empty name", "default/d: ingress[1].from[0]: a peer without",
				"default/d: ingress[2].from[0]: an ipBlock together", "default/d: ingress[3].from[0]: ipBlock.cidr",
				"default/d: ingress[3].from[1]: ipBlock.cidr", "default/d: ingress[4].from[0]: ipBlock.except[0]",
				"default/d: ingress[5].from[0]: podSelector", "default/d: ingress[6].from[0]: namespaceSelector",
				`default/d: policyTypes: "Sideways"`,
			},
		},
		"a policy that selects nobody knows whom selects all": {
			policies: "name: default/d\nspec: {podSelector: {matchExpressions: [{key: a, operator: Near}]}}",
			allowed:  []string{"10.244.0.1 > 1.1.1.1 tcp 1"},
			denied:   []string{"1.1.1.1 > 10.244.0.1 tcp 1"},
			problems: []string{"default/d: podSelector: "},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := documented()
			s.Policies = newPolicies(t, tc.policies)
			if tc.change != nil {
				tc.change(&s)
			}
			r := Compile(s)
			for _, p := range tc.allowed {
				if !r.probe(t, p) {
					t.Errorf("%s is dropped", p)
				}
			}
			for _, p := range tc.denied {
				if r.probe(t, p) {
					t.Errorf("%s passes", p)
				}
			}
			if len(r.Problems) != len(tc.problems) {
				t.Errorf("problems: %q", r.Problems)
			}
			for i, p := range tc.problems {
				if i < len(r.Problems) && !strings.HasPrefix(r.Problems[i], p) {
					t.Errorf("problem %d: got %q, want %q...", i, r.Problems[i], p)
				}
			}
		})
	}
}

func TestPending(t *testing.T) {
	starting := newPod("default/new", "role=new", "")
	tests := map[string]struct {
		policies string
		want     Directions
	}{
		"no policy":             {"", Directions{}},
		"another's":             {"name: default/d\nspec: {podSelector: {matchLabels: {role: db}}}", Directions{}},
		"ingress":               {"name: default/d\nspec: {podSelector: {matchLabels: {role: new}}}", Directions{Ingress: true}},
		"egress":                {"name: default/d\nspec: {podSelector: {}, policyTypes: [Egress]}", Directions{Egress: true}},
		"both, of two policies": {"name: default/d\nspec: {podSelector: {}, policyTypes: [Egress]}\n---\nname: default/e\nspec: {podSelector: {}}", Directions{true, true}},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := documented()
			s.Pods = append(s.Pods, starting)
			s.Policies = newPolicies(t, tc.policies)
			r := Compile(s)
			if diff := cmp.Diff(tc.want, r.Pending); diff != "" {
				t.Errorf("pending (-want +got):\n%s", diff)
			}
			var known []netip.Addr
			if tc.want != (Directions{}) {
				for _, a := range []string{"10.244.0.1", "10.244.0.2", "10.244.0.3", "fd44::1", "fd44::2"} {
					known = append(known, netip.MustParseAddr(a))
				}
			}
			if !slices.Equal(known, r.Known) {
				t.Errorf("known: got %v, want %v", r.Known, known)
			}
		})
	}
}

// TestSharing: pods with the same rules share chains.
func TestSharing(t *testing.T) {
	s := documented()
	s.Policies = newPolicies(t, `
name: default/a
spec: {podSelector: {}, ingress: [{ports: [{port: 1}, {port: 2}]}]}
---
name: default/b
spec: {podSelector: {matchLabels: {role: db}}, ingress: [{ports: [{port: 1, endPort: 2}]}]}`)
	r := Compile(s)
	a, b := r.Guards[netip.MustParseAddr("10.244.0.1")], r.Guards[netip.MustParseAddr("10.244.0.3")]
	if diff := cmp.Diff(a.Ingress, b.Ingress, cmp.AllowUnexported(AddrSet{})); diff != "" {
		t.Errorf("equal rules differ (-db +other):\n%s", diff)
	}
	if n := len(r.table().chains) - 2*len(r.Guards); n != 4 {
		t.Errorf("%d chains besides those of addresses, want forward, reply, and one for all pods in each direction", n)
	}
	if a.Egress != nil {
		t.Errorf("egress is limited: %v", a.Egress)
	}
}

// TestOrder: the order in which objects come makes no difference to what is applied.
func TestOrder(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		s := randomState(rng)
		want := rendered(s)
		s.Pods, s.Namespaces, s.Policies = slices.Clone(s.Pods), slices.Clone(s.Namespaces), slices.Clone(s.Policies)
		rng.Shuffle(len(s.Pods), func(i, j int) { s.Pods[i], s.Pods[j] = s.Pods[j], s.Pods[i] })
		rng.Shuffle(len(s.Namespaces), func(i, j int) { s.Namespaces[i], s.Namespaces[j] = s.Namespaces[j], s.Namespaces[i] })
		rng.Shuffle(len(s.Policies), func(i, j int) { s.Policies[i], s.Policies[j] = s.Policies[j], s.Policies[i] })
		if diff := cmp.Diff(want, rendered(s)); diff != "" {
			t.Fatalf("seed %d (-first +shuffled):\n%s", seed, diff)
		}
	}
}

func policyNamed(name string, spec networkingv1.NetworkPolicySpec) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: spec}
}
