package netpol

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

const (
	forwardChain = "forward"
	replyChain   = "reply"
	// podInterfaces are the ends of pods' links in the node's namespace, as the CNI plugin ptp names them.
	podInterfaces = `"veth*"`
)

// table renders the ruleset. Equal rulesets give equal tables.
func (r *Ruleset) table() *table {
	w := &renderer{t: newTable()}
	w.t.chains[replyChain] = nil
	w.rule(forwardChain, "iifname", podInterfaces, "fib saddr . iif oif missing drop")
	// Also without policies: a namespace tracks connections only while a rule asks for it, and which end of a connection is the
	// server must be known when its first policy comes.
	w.rule(forwardChain, "ct state related accept")
	if len(r.Guards) > 0 || r.Pending != (Directions{}) {
		w.guards(r)
	}
	return w.t
}

type renderer struct {
	t *table
}

func (w *renderer) rule(chain string, words ...string) {
	w.t.chains[chain] = append(w.t.chains[chain], strings.Join(words, " "))
}

// family is what nft's names for IPv4 and IPv6 are.
type family struct {
	v6                      bool
	suffix, expr, typ, name string
}

func families() [2]family {
	return [2]family{
		{false, "4", "ip", "ipv4_addr", "ipv4"},
		{true, "6", "ip6", "ipv6_addr", "ipv6"},
	}
}

// way is one of the four ways in which a packet can meet a guard: its direction as the pod sees it, on the way to the
// server or back.
type way struct {
	prefix, mapName, suffix string // of names
	pod, peer, ports        string // which of the packet's fields are the pod's address, its peer's, and the server's port
	chain                   func(Guard) *Chain
}

func egressWay() way {
	return way{"eg-", "egress", "", "saddr", "daddr", "dport", func(g Guard) *Chain { return g.Egress }}
}

func ingressWay() way {
	return way{"in-", "ingress", "", "daddr", "saddr", "dport", func(g Guard) *Chain { return g.Ingress }}
}

// back is the way of the packets that answer.
func (w way) back() way {
	return way{w.prefix, w.mapName, "-reply", w.peer, w.pod, "sport", w.chain}
}

// guards adds the rules for the pods that have addresses.
func (w *renderer) guards(r *Ruleset) {
	addrs := slices.SortedFunc(maps.Keys(r.Guards), netip.Addr.Compare)
	for _, f := range families() {
		w.self(f, addrs)
	}
	w.rule(forwardChain, "ct state established ct direction reply goto", replyChain)
	// Before the maps: who comes to be known while a packet is on its way is in the maps when the packet comes to them.
	w.pending(r)
	for _, way := range []way{egressWay(), ingressWay()} {
		w.verdicts(forwardChain, way, r, addrs)
		w.verdicts(replyChain, way.back(), r, addrs)
	}
}

// self lets a pod reach itself.
func (w *renderer) self(f family, addrs []netip.Addr) {
	self := &set{typ: f.typ + " . " + f.typ, elements: map[string]string{}}
	for _, a := range addrs {
		if a.Is6() == f.v6 {
			self.elements[a.String()+" . "+a.String()] = ""
		}
	}
	name := "self" + f.suffix
	w.t.sets[name] = self
	w.rule(forwardChain, f.expr, "saddr .", f.expr, "daddr @"+name, "accept")
}

// verdicts adds the maps that send packets to the chains of addresses, and the rules in chain that look into them. The chain of an
// address leads to the one with the rules that hold for it: to change a rule is atomic, to change an element isn't, before Linux 6.17.
func (w *renderer) verdicts(chain string, way way, r *Ruleset, addrs []netip.Addr) {
	var verdicts [2]*set
	for i, f := range families() {
		name := way.mapName + f.suffix + way.suffix
		verdicts[i] = &set{typ: f.typ + " : verdict", elements: map[string]string{}}
		w.t.maps[name] = verdicts[i]
		w.rule(chain, f.expr, way.pod, "vmap", "@"+name)
	}
	names := map[*Chain]string{} // many addresses share a chain
	for _, a := range addrs {
		c := way.chain(r.Guards[a])
		if c == nil {
			continue
		}
		if names[c] == "" {
			names[c] = w.chain(way, c)
		}
		family := 0
		if a.Is6() {
			family = 1
		}
		own := fmt.Sprintf("%s%x%s", way.prefix, a.AsSlice(), way.suffix)
		w.rule(own, "jump", names[c])
		verdicts[family].elements[a.String()] = "jump " + own
	}
}

// chain adds a chain that returns what c allows and drops the rest. Its name is made of its content.
func (w *renderer) chain(way way, c *Chain) string {
	var rules []string
	for _, r := range c.Rules {
		ports := r.portMatch(way)
		if r.AnyPeer {
			rules = append(rules, ports+"return")
			continue
		}
		for _, f := range families() {
			if peers := w.peerMatch(way, f, r.Peers); peers != "" {
				rules = append(rules, peers+ports+"return")
			}
		}
	}
	rules = append(rules, "drop")
	name := way.prefix + contentID(strings.Join(rules, "\n")) + way.suffix
	w.t.chains[name] = rules
	return name
}

// portMatch returns what matches protocol and ports, with a space at its end, or nothing.
func (r Rule) portMatch(way way) string {
	if r.Protocol == AnyProtocol {
		return ""
	}
	if len(r.Ports) == 0 {
		return fmt.Sprintf("meta l4proto %s ", r.Protocol)
	}
	ranges := make([]string, len(r.Ports))
	for i, p := range r.Ports {
		ranges[i] = fmt.Sprint(p.From)
		if p.To != p.From {
			ranges[i] += fmt.Sprintf("-%d", p.To)
		}
	}
	return fmt.Sprintf("%s %s { %s } ", r.Protocol, way.ports, strings.Join(ranges, ", "))
}

// peerMatch returns what matches the peers of one family, with a space at its end, and adds the set that it needs. It is
// empty if no ipBlock is of the family. A set of pods may be empty, and have members later.
func (w *renderer) peerMatch(way way, f family, peers AddrSet) string {
	spans := peers.family(f.v6)
	switch {
	case len(spans) == 0 && peers.fixed:
		return ""
	case len(spans) > 0 && spans[0].whole():
		return "meta nfproto " + f.name + " "
	}
	name := "p" + f.suffix + "-" + peers.id
	if w.t.sets[name] == nil {
		// Sets with ranges are trees, which take more memory and time. Those of pods don't need that.
		s := &set{typ: f.typ, interval: peers.fixed, elements: make(map[string]string, len(spans))}
		for _, span := range spans {
			s.elements[span.String()] = ""
		}
		w.t.sets[name] = s
	}
	return fmt.Sprintf("%s %s @%s ", f.expr, way.peer, name)
}

// pending drops the traffic of pods that aren't known, in the directions in which a pod is to be isolated that has no
// address yet.
func (w *renderer) pending(r *Ruleset) {
	if r.Pending == (Directions{}) {
		return
	}
	for _, f := range families() {
		name := "known" + f.suffix
		known := &set{typ: f.typ, elements: map[string]string{}}
		for _, a := range r.Known {
			if a.Is6() == f.v6 {
				known.elements[a.String()] = ""
			}
		}
		w.t.sets[name] = known
		if r.Pending.Egress {
			w.rule(forwardChain, "iifname", podInterfaces, f.expr, "saddr != @"+name, "drop")
		}
		if r.Pending.Ingress {
			w.rule(forwardChain, "oifname", podInterfaces, f.expr, "daddr != @"+name, "drop")
		}
	}
}
