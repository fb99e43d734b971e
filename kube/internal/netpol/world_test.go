package netpol

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

const testNode = "here"

// newPod makes a running pod of the node; name is namespace/name, lbls is "a=b,c=d", and ips are separated by commas.
func newPod(name, lbls, ips string, change ...func(*corev1.Pod)) *corev1.Pod {
	namespace, name, _ := strings.Cut(name, "/")
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: parseLabels(lbls)},
		Spec:       corev1.PodSpec{NodeName: testNode},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for ip := range strings.SplitSeq(ips, ",") {
		if ip != "" {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
		}
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func parseLabels(s string) map[string]string {
	lbls := map[string]string{}
	for l := range strings.SplitSeq(s, ",") {
		if k, v, ok := strings.Cut(l, "="); ok {
			lbls[k] = v
		}
	}
	return lbls
}

func elsewhere(p *corev1.Pod) { p.Spec.NodeName = "there" }

func withPort(name string, protocol corev1.Protocol, number int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{
			Ports: []corev1.ContainerPort{{Name: name, Protocol: protocol, ContainerPort: number}},
		})
	}
}

func withInitPort(name string, number int32, restart *corev1.ContainerRestartPolicy) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{
			RestartPolicy: restart,
			Ports:         []corev1.ContainerPort{{Name: name, ContainerPort: number}},
		})
	}
}

func newNamespace(name, lbls string) *corev1.Namespace {
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: parseLabels(lbls)}}
	n.Labels[corev1.LabelMetadataName] = name
	return n
}

// newPolicies reads documents of which each is a policy: name (namespace/name) and spec.
func newPolicies(t testing.TB, text string) []*networkingv1.NetworkPolicy {
	t.Helper()
	var policies []*networkingv1.NetworkPolicy
	for doc := range strings.SplitSeq(text, "\n---\n") {
		if strings.TrimSpace(doc) == "" {
			continue
		}
		var p struct {
			Name string                         `json:"name"`
			Spec networkingv1.NetworkPolicySpec `json:"spec"`
		}
		if err := yaml.UnmarshalStrict([]byte(doc), &p); err != nil {
			t.Fatalf("parsing policy %s: %v", doc, err)
		}
		namespace, name, _ := strings.Cut(p.Name, "/")
		policies = append(policies, &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: p.Spec,
		})
	}
	return policies
}

// allows evaluates the ruleset for the first packet of a connection.
func (r *Ruleset) allows(src, dst netip.Addr, protocol string, port uint16) bool {
	if src == dst {
		return true
	}
	return r.Guards[src].Egress.allows(dst, protocol, port) && r.Guards[dst].Ingress.allows(src, protocol, port)
}

func (c *Chain) allows(peer netip.Addr, protocol string, port uint16) bool {
	if c == nil {
		return true
	}
	for _, r := range c.Rules {
		if !r.AnyPeer && !r.Peers.Contains(peer) || r.Protocol != AnyProtocol && string(r.Protocol) != protocol {
			continue
		}
		if len(r.Ports) == 0 {
			return true
		}
		for _, p := range r.Ports {
			if p.From <= port && port <= p.To {
				return true
			}
		}
	}
	return false
}

// probe is "source > destination protocol port".
func (r *Ruleset) probe(t *testing.T, probe string) bool {
	t.Helper()
	var src, dst, protocol string
	var port uint16
	if _, err := fmt.Sscanf(probe, "%s > %s %s %d", &src, &dst, &protocol, &port); err != nil {
		t.Fatalf("probe %q: %v", probe, err)
	}
	return r.allows(netip.MustParseAddr(src), netip.MustParseAddr(dst), protocol, port)
}
