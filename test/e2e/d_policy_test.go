//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// policies is a test of NetworkPolicy among the shared pods: ordinary-0 and sandboxed-0 serve, ordinary-1 and sandboxed-1 ask
// them, so that both runtimes are on both sides, and with four pods on two nodes some pairs share a node.
type policies struct {
	client
	servers map[string][]netip.Addr
}

func newPolicies(t *testing.T) policies {
	t.Helper()
	p := policies{shared(t), map[string][]netip.Addr{}}
	for _, server := range []string{ordinary0, sandboxed0} {
		p.servers[server] = p.podIPs(t, server)
		wantFamilies(t, server, p.servers[server])
		p.label(t, server, "role=server")
	}
	for _, asker := range []string{ordinary1, sandboxed1} {
		p.label(t, asker, "role=stranger")
	}
	t.Cleanup(func() {
		for _, args := range [][]string{
			{"delete", "networkpolicy", "--all"},
			{"label", "pods", "--all", "role-"},
		} {
			if err := p.try(args...).failure(); err != nil {
				t.Error(err)
			}
		}
	})
	return p
}

func (p policies) label(t *testing.T, pod, label string) {
	t.Helper()
	p.run(t, "label", "pod", pod, "--overwrite", label)
}

// replace makes the policies of the manifest the only ones.
func (p policies) replace(t *testing.T, manifest string) {
	t.Helper()
	p.run(t, "delete", "networkpolicy", "--all")
	if manifest != "" {
		p.apply(t, manifest)
	}
}

// expectation is what one pod gets of the servers: the ports that answer and those that don't, such as "tcp 8080".
type expectation struct{ open, shut []port }

type port struct {
	network string
	number  int
	// family is 4 or 6 where only that one is asked; 0: both.
	family int
}

// expect waits until a pod is let through to the servers as expected, and no further.
func (p policies) expect(t *testing.T, from string, e expectation) {
	t.Helper()
	want := map[string]string{}
	add := func(ports []port, who func(server string) string) {
		for server, ips := range p.servers {
			for _, ip := range ips {
				for _, port := range ports {
					if port.family == 0 || port.family == 4 == ip.Is4() {
						want[target(port.network, ip, port.number)] = who(server)
					}
				}
			}
		}
	}
	add(e.open, func(server string) string { return server })
	add(e.shut, func(string) string { return blocked })
	var targets []string
	for name := range want {
		targets = append(targets, name)
	}
	t.Run("from "+from, func(t *testing.T) {
		t.Parallel()
		eventually(t, func() string { return cmp.Diff(want, p.probe(t, from, brief, targets...)) })
	})
}

// step is a group of expectations under the same policies, asked for side by side.
func (p policies) step(t *testing.T, name string, expect map[string]expectation) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		for from, e := range expect {
			p.expect(t, from, e)
		}
	})
}

func ports(network string, numbers ...int) []port {
	var all []port
	for _, number := range numbers {
		all = append(all, port{network: network, number: number})
	}
	return all
}

func allPorts() []port {
	return append(ports("tcp", 8080, 8081, 8082, 9000), ports("udp", 8080, 9000)...)
}

const ingressRange = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: ingress-range}
spec:
  podSelector: {matchLabels: {role: server}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {role: friend}}}]
    ports: [{protocol: TCP, port: 8080, endPort: 8081}]
`

// A range of ports is open to pods with a label, over both families, and to nobody else; the labels count as they are now.
func TestPolicyIngressEndPort(t *testing.T) {
	p := newPolicies(t)
	everything := expectation{open: allPorts()}
	p.step(t, "without policies", map[string]expectation{ordinary1: everything, sandboxed1: everything})

	p.replace(t, ingressRange)
	p.label(t, ordinary1, "role=friend")
	friend := expectation{open: ports("tcp", 8080, 8081), shut: append(ports("tcp", 8082, 9000), ports("udp", 8080)...)}
	stranger := expectation{shut: allPorts()}
	p.step(t, "the ordinary pod is the friend", map[string]expectation{ordinary1: friend, sandboxed1: stranger})

	p.label(t, ordinary1, "role=stranger")
	p.label(t, sandboxed1, "role=friend")
	p.step(t, "the sandboxed pod is the friend", map[string]expectation{ordinary1: stranger, sandboxed1: friend})

	p.replace(t, "")
	p.step(t, "without policies again", map[string]expectation{ordinary1: everything, sandboxed1: everything})
}

const ingressNamed = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: ingress-named}
spec:
  podSelector: {matchLabels: {role: server}}
  ingress:
  - from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: ` + sharedNamespace + `}}}]
    ports: [{protocol: TCP, port: web}]
  - from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: elsewhere}}}]
    ports: [{protocol: TCP, port: 9000}]
`

// Named ports are the pod's own, and namespaces are peers.
func TestPolicyNamedPortAndNamespace(t *testing.T) {
	p := newPolicies(t)
	p.replace(t, ingressNamed)
	e := expectation{open: ports("tcp", 8080), shut: append(ports("tcp", 8081, 9000), ports("udp", 8080)...)}
	p.step(t, "by name", map[string]expectation{ordinary1: e, sandboxed1: e})
}

// egressManifest takes the servers' IPv4 networks.
const egressManifest = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny}
spec:
  podSelector: {matchLabels: {role: stranger}}
  policyTypes: [Ingress, Egress]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: dns}
spec:
  podSelector: {matchLabels: {role: stranger}}
  policyTypes: [Egress]
  egress:
  - to:
    - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
      podSelector: {matchLabels: {k8s-app: kube-dns}}
    ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: egress-range}
spec:
  podSelector: {matchLabels: {role: stranger}}
  policyTypes: [Egress]
  egress:
  - to: [{podSelector: {matchLabels: {role: server}}}]
    ports: [{protocol: TCP, port: 8080, endPort: 8081}]
  - to:
    - ipBlock: {cidr: 0.0.0.0/0, except: [%s/32]}
    ports: [{protocol: UDP, port: 9000}]
`

// Pods may send nothing but to a range of the servers' ports, to an IPv4 network less an address, and to DNS.
func TestPolicyEgress(t *testing.T) {
	p := newPolicies(t)
	except := p.servers[sandboxed0][0]
	p.replace(t, fmt.Sprintf(egressManifest, except))
	e := expectation{
		open: ports("tcp", 8080, 8081),
		shut: append(ports("tcp", 8082, 9000), port{network: "udp", number: 9000, family: 6}, port{network: "udp", number: 8080}),
	}
	p.step(t, "to the servers", map[string]expectation{ordinary1: e, sandboxed1: e})
	for _, from := range []string{ordinary1, sandboxed1} {
		t.Run("from "+from, func(t *testing.T) {
			t.Parallel()
			block := map[string]string{target("udp", p.servers[ordinary0][0], 9000): ordinary0, target("udp", except, 9000): blocked}
			var targets []string
			for name := range block {
				targets = append(targets, name)
			}
			eventually(t, func() string { return cmp.Diff(block, p.probe(t, from, brief, targets...)) })
			if got := p.exec(t, from, "testprog", "lookup", "kubernetes.default"); !strings.HasPrefix(got, "kubernetes.default 10.96.0.1") {
				t.Errorf("DNS is allowed; lookup says %q", got)
			}
			// The API server answers nonsense, not the probe's question, where it can be reached at all.
			why := map[string]string{}
			p.probeIn(t, from, brief, why, []string{"tcp:10.96.0.1:443"})
			if answer := why["tcp:10.96.0.1:443"]; answer != "dial tcp 10.96.0.1:443: i/o timeout" {
				t.Errorf("the API server: %q", answer)
			}
		})
	}
}

const denyAll = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all}
spec:
  podSelector: {}
  policyTypes: [Ingress, Egress]
`

// Where nothing is allowed nothing passes, DNS included; but the kubelet still probes its pods.
func TestPolicyDenyAll(t *testing.T) {
	p := newPolicies(t)
	restarts := p.run(t, "get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}")
	p.replace(t, denyAll)
	nothing := expectation{shut: allPorts()}
	p.step(t, "everything", map[string]expectation{ordinary1: nothing, sandboxed1: nothing})
	for _, from := range []string{ordinary1, sandboxed1} {
		why := map[string]string{}
		p.probeIn(t, from, brief, why, []string{"tcp:kubernetes.default:443"})
		if len(why) != 1 {
			t.Errorf("%s resolves names and reaches the API server", from)
		}
	}
	// A pod that is started now comes to be ready by the kubelet's probe.
	p.apply(t, `
apiVersion: v1
kind: Pod
metadata: {name: late, labels: {app: late}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: bulkhead.test/base:1
    command: [testprog, serve, "8080"]
    readinessProbe: {tcpSocket: {port: 8080}}
`)
	t.Cleanup(func() {
		if err := p.try("delete", "pod", "late", "--wait=false").failure(); err != nil {
			t.Error(err)
		}
	})
	p.ready(t, "late")
	if now := p.run(t, "get", "pods", "-l", "app=shared", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}"); now != restarts {
		t.Errorf("restarts were %s, are %s", restarts, now)
	}
}
