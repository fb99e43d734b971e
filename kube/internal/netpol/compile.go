package netpol

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// State is all that a ruleset is made from. Nothing in it is changed.
type State struct {
	// Node is the name of the node whose pods are to be isolated.
	Node       string
	Pods       []*corev1.Pod
	Namespaces []*corev1.Namespace
	Policies   []*networkingv1.NetworkPolicy
	// StandIns are pods that the API doesn't know and that run elsewhere.
	StandIns []*corev1.Pod
}

// Compile says what the node has to enforce. It is a pure function, and it takes any input: what the API server would not
// have accepted is a problem in the ruleset and allows nothing.
func Compile(s State) *Ruleset {
	c := &compiler{view: newView(s), problems: map[string]bool{}}
	policies := slices.Clone(s.Policies)
	slices.SortFunc(policies, func(a, b *networkingv1.NetworkPolicy) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	isolation := map[*endpoint]*isolation{}
	for _, p := range policies {
		c.add(p, isolation)
	}
	r := &Ruleset{
		Guards: map[netip.Addr]Guard{},
		Counts: Counts{Policies: len(s.Policies), Pods: len(s.Pods), LocalPods: len(c.view.local), Isolated: len(isolation)},
	}
	for e, i := range isolation {
		if e.pending {
			r.Pending.Ingress = r.Pending.Ingress || i.Ingress
			r.Pending.Egress = r.Pending.Egress || i.Egress
			continue
		}
		var g Guard
		if i.Ingress {
			g.Ingress = newChain(i.ingress)
		}
		if i.Egress {
			g.Egress = newChain(i.egress)
		}
		if g == (Guard{}) {
			continue
		}
		for _, a := range e.addrs {
			r.Guards[a] = g
		}
	}
	if r.Pending != (Directions{}) {
		r.Known = c.view.known()
	}
	for p := range c.problems {
		r.Problems = append(r.Problems, p)
	}
	slices.Sort(r.Problems)
	return r
}

// isolation is what the policies that select a pod say together.
type isolation struct {
	Directions
	ingress, egress []Rule
}

type compiler struct {
	view     *view
	problems map[string]bool
}

// problem notes what can't be understood in a policy.
func (c *compiler) problem(p *networkingv1.NetworkPolicy, format string, args ...any) {
	c.problems[fmt.Sprintf("%s/%s: ", p.Namespace, p.Name)+fmt.Sprintf(format, args...)] = true
}

// add adds what policy p says about each of the node's pods that it selects.
func (c *compiler) add(p *networkingv1.NetworkPolicy, to map[*endpoint]*isolation) {
	selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
	if err != nil {
		// Whom it was meant for is unknown. To isolate too many pods is the safe side.
		c.problem(p, "podSelector: %v; taken as one that selects all pods of the namespace", err)
		selector = labels.Everything()
	}
	var selected []*endpoint
	for _, e := range c.view.local {
		if e.namespace == p.Namespace && selector.Matches(e.labels) {
			selected = append(selected, e)
		}
	}
	if len(selected) == 0 {
		return
	}
	directions := c.directions(p)
	var ingress []ingressRule
	if directions.Ingress {
		ingress = c.ingress(p)
	}
	var egress []Rule
	if directions.Egress {
		egress = c.egress(p)
	}
	for _, e := range selected {
		i := to[e]
		if i == nil {
			i = &isolation{}
			to[e] = i
		}
		i.Ingress = i.Ingress || directions.Ingress
		i.Egress = i.Egress || directions.Egress
		i.egress = append(i.egress, egress...)
		for _, r := range ingress {
			i.ingress = append(i.ingress, r.at(e)...)
		}
	}
}

// directions says in which directions a policy isolates. The default is the API server's (SetDefaults_NetworkPolicy).
func (c *compiler) directions(p *networkingv1.NetworkPolicy) Directions {
	if len(p.Spec.PolicyTypes) == 0 {
		return Directions{Ingress: true, Egress: len(p.Spec.Egress) > 0}
	}
	var d Directions
	for _, t := range p.Spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			d.Ingress = true
		case networkingv1.PolicyTypeEgress:
			d.Egress = true
		default:
			c.problem(p, "policyTypes: %q is unknown", t)
		}
	}
	return d
}

// ingressRule is a rule of a policy whose named ports depend on the pod that it protects.
type ingressRule struct {
	peers peers
	ports []port // empty: all
}

// at returns the rules for pod e.
func (r ingressRule) at(e *endpoint) []Rule {
	if len(r.ports) == 0 {
		return r.peers.rules(AnyProtocol)
	}
	var rules []Rule
	for _, p := range r.ports {
		if p.name == "" {
			rules = append(rules, r.peers.rules(p.protocol, p.numbers...)...)
		} else if number, ok := e.port(p.namedPort); ok {
			rules = append(rules, r.peers.rules(p.protocol, PortRange{number, number})...)
		}
	}
	return rules
}

func (c *compiler) ingress(p *networkingv1.NetworkPolicy) []ingressRule {
	rules := make([]ingressRule, 0, len(p.Spec.Ingress))
	for i, in := range p.Spec.Ingress {
		where := fmt.Sprintf("ingress[%d]", i)
		ports := c.ports(p, where, in.Ports)
		if len(in.Ports) > 0 && len(ports) == 0 {
			continue
		}
		rules = append(rules, ingressRule{c.peers(p, where+".from", in.From), ports})
	}
	return rules
}

func (c *compiler) egress(p *networkingv1.NetworkPolicy) []Rule {
	var rules []Rule
	for i, out := range p.Spec.Egress {
		where := fmt.Sprintf("egress[%d]", i)
		peers := c.peers(p, where+".to", out.To)
		if len(out.Ports) == 0 {
			rules = append(rules, peers.rules(AnyProtocol)...)
		}
		for _, port := range c.ports(p, where, out.Ports) {
			if port.name == "" {
				rules = append(rules, peers.rules(port.protocol, port.numbers...)...)
			} else {
				rules = append(rules, c.view.namedRules(peers, port.namedPort)...)
			}
		}
	}
	return rules
}

// peers is the other side of a rule: all, or what is in one of the sets.
type peers struct {
	all  bool
	sets []AddrSet
}

func (p peers) rules(protocol Protocol, ports ...PortRange) []Rule {
	if p.all {
		return []Rule{{AnyPeer: true, Protocol: protocol, Ports: ports}}
	}
	rules := make([]Rule, len(p.sets))
	for i, s := range p.sets {
		rules[i] = Rule{Peers: s, Protocol: protocol, Ports: ports}
	}
	return rules
}

func (p peers) contains(a netip.Addr) bool {
	return p.all || slices.ContainsFunc(p.sets, func(s AddrSet) bool { return s.Contains(a) })
}

// id names what the peers are, whichever pods that may be now.
func (p peers) id() string {
	id := fmt.Sprint(p.all)
	for _, s := range p.sets {
		id += " " + s.id
	}
	return id
}

// peers returns the union of a rule's peers: the pods and the blocks. An empty list is everything; a peer that can't be
// understood is nothing.
func (c *compiler) peers(p *networkingv1.NetworkPolicy, where string, list []networkingv1.NetworkPolicyPeer) peers {
	if len(list) == 0 {
		return peers{all: true}
	}
	var blocks []Span
	var selectors []podSelector
	for i, peer := range list {
		var err error
		if peer.IPBlock == nil {
			var s podSelector
			if s, err = newPodSelector(p.Namespace, peer); err == nil {
				selectors = append(selectors, s)
			}
		} else {
			var s []Span
			s, err = block(peer)
			blocks = append(blocks, s...)
		}
		if err != nil {
			c.problem(p, "%s[%d]: %v", where, i, err)
		}
	}
	var result peers
	if len(selectors) > 0 {
		result.sets = append(result.sets, c.view.selectPods(selectors))
	}
	if len(blocks) > 0 {
		result.sets = append(result.sets, newAddrSet(blocks))
	}
	return result
}

// block returns the addresses of an ipBlock. If any part of it is invalid it is nothing: an exception that can't be read
// must not become open.
func block(peer networkingv1.NetworkPolicyPeer) ([]Span, error) {
	b := peer.IPBlock
	if peer.PodSelector != nil || peer.NamespaceSelector != nil {
		return nil, fmt.Errorf("an ipBlock together with a selector")
	}
	cidr, err := parsePrefix(b.CIDR)
	if err != nil {
		return nil, fmt.Errorf("ipBlock.cidr: %w", err)
	}
	spans := []Span{spanOf(cidr)}
	for i, except := range b.Except {
		cut, err := parsePrefix(except)
		if err != nil {
			return nil, fmt.Errorf("ipBlock.except[%d]: %w", i, err)
		}
		var rest []Span
		for _, s := range spans {
			rest = append(rest, s.without(spanOf(cut))...)
		}
		spans = rest
	}
	return spans, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, fmt.Errorf("parsing %q: %w", s, err)
	}
	if p.Addr().Is4In6() {
		return p, fmt.Errorf("%q is an IPv4 prefix written as IPv6", s)
	}
	return p, nil
}

// namedPort is a port that containers give a number to.
type namedPort struct {
	name     string
	protocol Protocol
}

// port is a port of a rule: named, or a range of numbers of which none means all.
type port struct {
	namedPort
	numbers []PortRange
}

// ports returns those ports of a rule that can be understood.
func (c *compiler) ports(p *networkingv1.NetworkPolicy, where string, list []networkingv1.NetworkPolicyPort) []port {
	ports := make([]port, 0, len(list))
	for i, in := range list {
		out, err := parsePort(in)
		if err != nil {
			c.problem(p, "%s.ports[%d]: %v", where, i, err)
			continue
		}
		ports = append(ports, out)
	}
	return ports
}

func parsePort(in networkingv1.NetworkPolicyPort) (port, error) {
	out := port{namedPort: namedPort{protocol: TCP}}
	if in.Protocol != nil {
		p, ok := protocolOf(*in.Protocol)
		if !ok {
			return out, fmt.Errorf("protocol %q is unknown", *in.Protocol)
		}
		out.protocol = p
	}
	switch {
	case in.Port == nil && in.EndPort != nil:
		return out, fmt.Errorf("endPort without port")
	case in.Port == nil:
		return out, nil
	case in.Port.Type == intstr.String && in.EndPort != nil:
		return out, fmt.Errorf("endPort with the named port %q", in.Port.StrVal)
	case in.Port.Type == intstr.String && in.Port.StrVal == "":
		return out, fmt.Errorf("port has an empty name")
	case in.Port.Type == intstr.String:
		out.name = in.Port.StrVal
		return out, nil
	}
	from, to := in.Port.IntVal, in.Port.IntVal
	if in.EndPort != nil {
		to = *in.EndPort
	}
	if from < 1 || to < from || to > 65535 {
		return out, fmt.Errorf("ports %d to %d are no range within 1 to 65535", from, to)
	}
	out.numbers = []PortRange{{uint16(from), uint16(to)}}
	return out, nil
}

func protocolOf(p corev1.Protocol) (Protocol, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return TCP, true
	case corev1.ProtocolUDP:
		return UDP, true
	case corev1.ProtocolSCTP:
		return SCTP, true
	default:
		return "", false
	}
}
