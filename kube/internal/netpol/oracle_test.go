package netpol

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/knftables"
)

// The oracle says what policies mean, packet by packet, straight from the API's documentation. It shares no code with
// Compile and expects valid policies.

// oracle tells whether the first packet of a connection may pass the node.
func oracle(s State, src, dst netip.Addr, protocol corev1.Protocol, port int32) bool {
	if src == dst {
		return true
	}
	from, to := s.podAt(src), s.podAt(dst)
	return oracleSide(s, from, to, dst, to, protocol, port, networkingv1.PolicyTypeEgress) &&
		oracleSide(s, to, from, src, to, protocol, port, networkingv1.PolicyTypeIngress)
}

func (s State) podAt(a netip.Addr) *corev1.Pod {
	for _, p := range slices.Concat(s.Pods, s.StandIns) {
		for _, ip := range p.Status.PodIPs {
			if netip.MustParseAddr(ip.IP) == a && !p.Spec.HostNetwork && p.Status.Phase == corev1.PodRunning {
				return p
			}
		}
	}
	return nil
}

// oracleSide judges what policies of pod say about its peer; server is the pod that named ports are looked up at.
func oracleSide(s State, pod, peer *corev1.Pod, peerAddr netip.Addr, server *corev1.Pod, protocol corev1.Protocol, port int32, direction networkingv1.PolicyType) bool {
	if pod == nil || pod.Spec.NodeName != s.Node {
		return true
	}
	isolated := false
	for _, p := range s.Policies {
		if p.Namespace != pod.Namespace || !oracleSelects(p.Spec.PodSelector, pod.Labels) {
			continue
		}
		types := p.Spec.PolicyTypes
		if len(types) == 0 {
			types = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
			if len(p.Spec.Egress) > 0 {
				types = append(types, networkingv1.PolicyTypeEgress)
			}
		}
		if !slices.Contains(types, direction) {
			continue
		}
		isolated = true
		if direction == networkingv1.PolicyTypeIngress {
			for _, r := range p.Spec.Ingress {
				if oraclePeers(s, p, r.From, peer, peerAddr) && oraclePorts(r.Ports, server, protocol, port) {
					return true
				}
			}
			continue
		}
		for _, r := range p.Spec.Egress {
			if oraclePeers(s, p, r.To, peer, peerAddr) && oraclePorts(r.Ports, server, protocol, port) {
				return true
			}
		}
	}
	return !isolated
}

func oraclePeers(s State, p *networkingv1.NetworkPolicy, peers []networkingv1.NetworkPolicyPeer, pod *corev1.Pod, addr netip.Addr) bool {
	for _, peer := range peers {
		if b := peer.IPBlock; b != nil {
			in := netip.MustParsePrefix(b.CIDR).Contains(addr)
			for _, e := range b.Except {
				in = in && !netip.MustParsePrefix(e).Contains(addr)
			}
			if in {
				return true
			}
			continue
		}
		if pod == nil || peer.PodSelector != nil && !oracleSelects(*peer.PodSelector, pod.Labels) {
			continue
		}
		if peer.NamespaceSelector == nil {
			if pod.Namespace == p.Namespace {
				return true
			}
			continue
		}
		for _, n := range s.Namespaces {
			if n.Name == pod.Namespace && oracleSelects(*peer.NamespaceSelector, n.Labels) {
				return true
			}
		}
	}
	return len(peers) == 0
}

func oraclePorts(ports []networkingv1.NetworkPolicyPort, server *corev1.Pod, protocol corev1.Protocol, port int32) bool {
	for _, p := range ports {
		want := corev1.ProtocolTCP
		if p.Protocol != nil {
			want = *p.Protocol
		}
		if want != protocol {
			continue
		}
		switch {
		case p.Port == nil:
			return true
		case p.Port.Type == intstr.Int && p.EndPort == nil:
			if port == p.Port.IntVal {
				return true
			}
		case p.Port.Type == intstr.Int:
			if p.Port.IntVal <= port && port <= *p.EndPort {
				return true
			}
		case server != nil:
			for _, c := range server.Spec.Containers {
				for _, cp := range c.Ports {
					if cp.Name == p.Port.StrVal && cp.Protocol == protocol && cp.ContainerPort == port {
						return true
					}
				}
			}
		}
	}
	return len(ports) == 0
}

func oracleSelects(s metav1.LabelSelector, l map[string]string) bool {
	for k, v := range s.MatchLabels {
		if got, ok := l[k]; !ok || got != v {
			return false
		}
	}
	for _, e := range s.MatchExpressions {
		v, has := l[e.Key]
		ok := false
		switch e.Operator {
		case metav1.LabelSelectorOpIn:
			ok = has && slices.Contains(e.Values, v)
		case metav1.LabelSelectorOpNotIn:
			ok = !has || !slices.Contains(e.Values, v)
		case metav1.LabelSelectorOpExists:
			ok = has
		case metav1.LabelSelectorOpDoesNotExist:
			ok = !has
		}
		if !ok {
			return false
		}
	}
	return true
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func randomLabels(r *rand.Rand) map[string]string {
	l := map[string]string{}
	for _, k := range []string{"a", "b"} {
		if v := pick(r, "", "0", "1"); v != "" {
			l[k] = v
		}
	}
	return l
}

func randomSelector(r *rand.Rand) metav1.LabelSelector {
	var s metav1.LabelSelector
	for range pick(r, 0, 1, 1, 2) {
		key := pick(r, "a", "b")
		switch r.IntN(3) {
		case 0:
			s.MatchLabels = map[string]string{key: pick(r, "0", "1")}
		case 1:
			s.MatchExpressions = append(s.MatchExpressions, metav1.LabelSelectorRequirement{
				Key: key, Operator: pick(r, metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn), Values: []string{pick(r, "0", "1")}})
		default:
			s.MatchExpressions = append(s.MatchExpressions, metav1.LabelSelectorRequirement{
				Key: key, Operator: pick(r, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)})
		}
	}
	return s
}

func randomPeers(r *rand.Rand) []networkingv1.NetworkPolicyPeer {
	var peers []networkingv1.NetworkPolicyPeer
	for range r.IntN(3) {
		var p networkingv1.NetworkPolicyPeer
		if r.IntN(3) == 0 {
			p.IPBlock = &networkingv1.IPBlock{CIDR: pick(r, "10.244.0.0/24", "10.244.0.0/29", "0.0.0.0/0", "fd44::/64", "::/0", "10.244.0.3/32", "8.0.0.0/8")}
			bits := netip.MustParsePrefix(p.IPBlock.CIDR)
			for _, e := range []string{"10.244.0.2/31", "10.244.0.0/30", "8.8.8.8/32", "fd44::4/126", "fd44::/127", "255.255.255.255/32"} {
				if e := netip.MustParsePrefix(e); bits.Contains(e.Addr()) && e.Bits() > bits.Bits() && r.IntN(3) == 0 {
					p.IPBlock.Except = append(p.IPBlock.Except, e.String())
				}
			}
		} else {
			kind := r.IntN(3)
			if s := randomSelector(r); kind != 0 {
				p.PodSelector = &s
			}
			if s := randomSelector(r); kind != 1 {
				p.NamespaceSelector = &s
			}
		}
		peers = append(peers, p)
	}
	return peers
}

func randomPorts(r *rand.Rand) []networkingv1.NetworkPolicyPort {
	var ports []networkingv1.NetworkPolicyPort
	for range r.IntN(3) {
		var p networkingv1.NetworkPolicyPort
		if r.IntN(3) > 0 {
			p.Protocol = new(pick(r, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP))
		}
		switch r.IntN(4) {
		case 0:
			p.Port = new(intstr.FromString(pick(r, "web", "dns")))
		case 1:
			p.Port = new(intstr.FromInt32(pick[int32](r, 53, 80, 81, 65535)))
		case 2:
			p.Port = new(intstr.FromInt32(pick[int32](r, 1, 53, 80)))
			p.EndPort = new(pick[int32](r, 80, 82, 65535))
		}
		ports = append(ports, p)
	}
	return ports
}

// randomState makes a small cluster with valid policies.
func randomState(r *rand.Rand) State {
	s := State{Node: testNode}
	for _, n := range []string{"n0", "n1"} {
		s.Namespaces = append(s.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n, Labels: randomLabels(r)}})
	}
	for i := range 8 {
		p := newPod(fmt.Sprintf("%s/p%d", pick(r, "n0", "n1"), i), "", fmt.Sprintf("10.244.0.%d,fd44::%d", i, i))
		p.Labels = randomLabels(r)
		p.Spec.NodeName = pick(r, testNode, testNode, "there")
		p.Spec.HostNetwork = r.IntN(8) == 0
		p.Status.Phase = pick(r, corev1.PodRunning, corev1.PodRunning, corev1.PodRunning, corev1.PodSucceeded)
		if r.IntN(2) == 0 {
			withPort("web", pick(r, corev1.ProtocolTCP, corev1.ProtocolUDP), pick[int32](r, 80, 81))(p)
		}
		if r.IntN(3) == 0 {
			withPort("dns", corev1.ProtocolUDP, 53)(p)
		}
		if r.IntN(8) == 0 {
			p.Spec.NodeName = ""
			s.StandIns = append(s.StandIns, p)
			p.Spec.HostNetwork, p.Status.Phase = false, corev1.PodRunning
			continue
		}
		s.Pods = append(s.Pods, p)
	}
	for i := range r.IntN(5) {
		p := policyNamed(fmt.Sprintf("p%d", i), networkingv1.NetworkPolicySpec{PodSelector: randomSelector(r)})
		p.Namespace = pick(r, "n0", "n1")
		p.Spec.PolicyTypes = pick(r, nil, []networkingv1.PolicyType{"Ingress"}, []networkingv1.PolicyType{"Egress"}, []networkingv1.PolicyType{"Ingress", "Egress"})
		for range r.IntN(3) {
			p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: randomPeers(r), Ports: randomPorts(r)})
		}
		for range r.IntN(3) {
			p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: randomPeers(r), Ports: randomPorts(r)})
		}
		s.Policies = append(s.Policies, p)
	}
	return s
}

// checkAgainstOracle compares each pair of addresses in a random cluster, and returns how many packets pass and don't.
func checkAgainstOracle(t *testing.T, seed uint64) (passed, dropped int) {
	t.Helper()
	s := randomState(rand.New(rand.NewPCG(seed, 0)))
	r := Compile(s)
	if len(r.Problems) > 0 {
		t.Errorf("seed %d: problems %q", seed, r.Problems)
	}
	for _, addrs := range [][]string{
		{"10.244.0.0", "10.244.0.1", "10.244.0.2", "10.244.0.3", "10.244.0.4", "10.244.0.5", "10.244.0.6", "10.244.0.7", "10.244.0.8", "8.8.8.8", "255.255.255.255"},
		{"fd44::", "fd44::1", "fd44::2", "fd44::3", "fd44::4", "fd44::5", "fd44::6", "fd44::7", "2001:db8::1"},
	} {
		for _, from := range addrs {
			for _, to := range addrs {
				src, dst := netip.MustParseAddr(from), netip.MustParseAddr(to)
				for _, protocol := range []Protocol{TCP, UDP, SCTP, "icmp"} {
					for _, port := range []uint16{1, 53, 80, 81, 82, 83, 65535} {
						api := map[Protocol]corev1.Protocol{TCP: "TCP", UDP: "UDP", SCTP: "SCTP"}[protocol]
						want := oracle(s, src, dst, api, int32(port))
						if got := r.allows(src, dst, string(protocol), port); got != want {
							policies, _ := json.MarshalIndent(s.Policies, "", " ")
							t.Fatalf("seed %d: %s > %s %s %d: got %v, want %v\n%s", seed, src, dst, protocol, port, got, want, policies)
						}
						if want {
							passed++
						} else {
							dropped++
						}
					}
				}
			}
		}
	}
	return passed, dropped
}

func TestAgainstOracle(t *testing.T) {
	passed, dropped := 0, 0
	for seed := range uint64(400) {
		p, d := checkAgainstOracle(t, seed)
		passed, dropped = passed+p, dropped+d
	}
	if passed < 100_000 || dropped < 100_000 {
		t.Errorf("the clusters are too simple: %d packets pass, %d don't", passed, dropped)
	}
}

//testtier:slow 40
func FuzzAgainstOracle(f *testing.F) {
	f.Add(uint64(1 << 40))
	f.Fuzz(func(t *testing.T, seed uint64) { checkAgainstOracle(t, seed) })
}

// FuzzPolicy: whatever a policy says, it is compiled and makes a transaction that can be run.
//
//testtier:slow 4
func FuzzPolicy(f *testing.F) {
	for seed := range uint64(10) {
		for _, p := range randomState(rand.New(rand.NewPCG(seed, 0))).Policies {
			text, err := json.Marshal(p.Spec)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(string(text))
		}
	}
	f.Add(`{"podSelector":{},"ingress":[{"ports":[{"port":-1,"endPort":70000}],"from":[{"ipBlock":{"cidr":"1.2.3.4/99","except":["x"]}}]}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		var spec networkingv1.NetworkPolicySpec
		if json.Unmarshal([]byte(text), &spec) != nil {
			t.Skip()
		}
		s := documented()
		s.Policies = []*networkingv1.NetworkPolicy{policyNamed("fuzz", spec)}
		nft := knftables.NewFake(knftables.InetFamily, Tables()[0])
		tx := nft.NewTransaction()
		wanted := Compile(s).table()
		wanted.create(tx)
		wanted.attach(tx)
		if err := nft.Run(t.Context(), tx); err != nil {
			t.Errorf("applying %s: %v", text, err)
		}
	})
}
