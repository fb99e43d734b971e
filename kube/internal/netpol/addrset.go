package netpol

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
)

// Span is a range of addresses of one family, both ends included.
type Span struct {
	From, To netip.Addr
}

// spanOf returns the addresses of a prefix; bits of the address beyond the prefix's length are ignored.
func spanOf(p netip.Prefix) Span {
	from := p.Masked().Addr()
	bytes := from.AsSlice()
	for bit := p.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 1 << (7 - bit%8)
	}
	to, _ := netip.AddrFromSlice(bytes)
	return Span{from, to}
}

// single tells whether the span is one address.
func (s Span) single() bool { return s.From == s.To }

// whole tells whether the span is all addresses of its family.
func (s Span) whole() bool {
	return s == spanOf(netip.PrefixFrom(s.From, 0))
}

// without returns the parts of s that are not in cut.
func (s Span) without(cut Span) []Span {
	if cut.From.BitLen() != s.From.BitLen() || cut.To.Less(s.From) || s.To.Less(cut.From) {
		return []Span{s}
	}
	var rest []Span
	if s.From.Less(cut.From) {
		rest = append(rest, Span{s.From, cut.From.Prev()})
	}
	if cut.To.Less(s.To) {
		rest = append(rest, Span{cut.To.Next(), s.To})
	}
	return rest
}

// AddrSet is an immutable set of addresses of both families. The zero value is the empty set.
type AddrSet struct {
	spans []Span // sorted, IPv4 first, none overlaps another
	// id names the set in the table. Sets of pods are named by what selects the pods, so that a set keeps its name, and
	// the rules that refer to it stay, when pods come and go. Others, which are fixed, are named by their content.
	id    string
	fixed bool
}

// newPodSet returns the set of addresses, which are those of the pods that selected describes.
func newPodSet(selected string, addrs []netip.Addr) AddrSet {
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	spans := make([]Span, len(addrs))
	for i, a := range addrs {
		spans[i] = Span{a, a}
	}
	return AddrSet{spans: spans, id: contentID(selected)}
}

// newAddrSet returns the union of spans, which it may reorder.
func newAddrSet(spans []Span) AddrSet {
	slices.SortFunc(spans, func(a, b Span) int {
		return cmp.Or(a.From.Compare(b.From), a.To.Compare(b.To))
	})
	union := make([]Span, 0, len(spans))
	for _, s := range spans {
		last := len(union) - 1
		if last < 0 || union[last].From.BitLen() != s.From.BitLen() || union[last].To.Less(s.From) {
			union = append(union, s)
		} else if union[last].To.Less(s.To) {
			union[last].To = s.To
		}
	}
	return AddrSet{spans: union, id: contentID(fmt.Sprint(union)), fixed: true}
}

// contentID is a name for content in the table.
func contentID(content string) string {
	sum := sha256.Sum256([]byte(content))
	return hex.EncodeToString(sum[:10])
}

// Contains tells whether a is in the set.
func (s AddrSet) Contains(a netip.Addr) bool {
	i, found := slices.BinarySearchFunc(s.spans, a, func(s Span, a netip.Addr) int { return s.From.Compare(a) })
	if found {
		return true
	}
	return i > 0 && s.spans[i-1].From.BitLen() == a.BitLen() && !s.spans[i-1].To.Less(a)
}

// family returns the spans of IPv4 or IPv6.
func (s AddrSet) family(v6 bool) []Span {
	i := slices.IndexFunc(s.spans, func(s Span) bool { return s.From.Is6() })
	switch {
	case i < 0 && v6:
		return nil
	case i < 0:
		return s.spans
	case v6:
		return s.spans[i:]
	default:
		return s.spans[:i]
	}
}

// String spells the span as nft does.
func (s Span) String() string {
	if s.single() {
		return s.From.String()
	}
	return s.From.String() + "-" + s.To.String()
}
