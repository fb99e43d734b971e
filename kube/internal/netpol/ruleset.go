package netpol

import (
	"cmp"
	"net/netip"
	"slices"
)

// Ruleset is what the node has to enforce. [Compile] makes it; equal states give equal rulesets.
type Ruleset struct {
	// Guards has the addresses of the node's pods that are isolated in at least one direction.
	Guards map[netip.Addr]Guard
	// Pending says in which directions pods are to be isolated that have no address yet. Traffic of pods that are not in
	// Known is dropped in these directions.
	Pending Directions
	// Known has the addresses of all pods of the node, sorted; nil while nothing is pending.
	Known []netip.Addr
	// Problems says what could not be understood in policies, sorted. What can't be understood allows nothing.
	Problems []string
	// Counts is for the log.
	Counts Counts
}

// Directions is a choice of ingress and egress.
type Directions struct {
	Ingress, Egress bool
}

// Counts says how much a ruleset was made from.
type Counts struct {
	Policies, Pods, LocalPods, Isolated int
}

// Guard holds what may come to an address and go from it. A chain that is nil doesn't limit its direction.
type Guard struct {
	Ingress, Egress *Chain
}

// Chain is a list of rules, of which any allows. What none allows is dropped.
type Chain struct {
	Rules []Rule
}

// Rule allows traffic that fits all of its fields.
type Rule struct {
	// AnyPeer makes Peers meaningless: any address fits.
	AnyPeer bool
	Peers   AddrSet
	// Protocol is tcp, udp or sctp; empty means that anything fits, also what has no ports.
	Protocol Protocol
	// Ports are the destination's, sorted and apart from each other; empty means all.
	Ports []PortRange
}

// Protocol is a transport protocol as nft spells it.
type Protocol string

// The protocols that policies can name.
const (
	AnyProtocol Protocol = ""
	TCP         Protocol = "tcp"
	UDP         Protocol = "udp"
	SCTP        Protocol = "sctp"
)

// PortRange is a range of ports, both ends included.
type PortRange struct {
	From, To uint16
}

// unlimited tells whether the rule allows everything.
func (r Rule) unlimited() bool {
	return r.AnyPeer && r.Protocol == AnyProtocol
}

// newChain makes a chain of the union of rules: in one order, one per peers and protocol. It is nil if the rules allow everything.
func newChain(rules []Rule) *Chain {
	type group struct {
		anyPeer  bool
		peers    string
		protocol Protocol
	}
	merged := map[group]Rule{}
	for _, r := range rules {
		if r.unlimited() {
			return nil
		}
		id := group{r.AnyPeer, r.Peers.id, r.Protocol}
		old, ok := merged[id]
		if ok && (len(old.Ports) == 0 || len(r.Ports) == 0) {
			r.Ports = nil
		} else {
			r.Ports = mergePorts(slices.Concat(old.Ports, r.Ports))
		}
		merged[id] = r
	}
	c := &Chain{Rules: make([]Rule, 0, len(merged))}
	for _, r := range merged {
		c.Rules = append(c.Rules, r)
	}
	slices.SortFunc(c.Rules, func(a, b Rule) int {
		return cmp.Or(boolCompare(b.AnyPeer, a.AnyPeer), cmp.Compare(a.Peers.id, b.Peers.id), cmp.Compare(a.Protocol, b.Protocol))
	})
	return c
}

func boolCompare(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

// mergePorts returns the union of ranges, which it may reorder.
func mergePorts(ranges []PortRange) []PortRange {
	if len(ranges) == 0 {
		return nil
	}
	slices.SortFunc(ranges, func(a, b PortRange) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
	union := ranges[:1:1]
	for _, r := range ranges[1:] {
		last := &union[len(union)-1]
		if int(r.From) > int(last.To)+1 {
			union = append(union, r)
		} else {
			last.To = max(last.To, r.To)
		}
	}
	return union
}
