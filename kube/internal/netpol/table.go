package netpol

import (
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"
)

// Table is the name of the nftables table, of family inet, that a node's rules are in.
const Table = "bulkhead_netpol"

// table is the content of the nftables table. [Ruleset.table] makes one; replace and update bring the kernel to it.
type table struct {
	sets, maps map[string]*set
	chains     map[string][]string // rules by the chain's name
}

// set is a set or a verdict map.
type set struct {
	typ      string
	interval bool
	elements map[string]string // the verdict by key; without meaning in a set
}

func newTable() *table {
	return &table{sets: map[string]*set{}, maps: map[string]*set{}, chains: map[string][]string{}}
}

// objects counts what is in the table, elements and rules left out.
func (t *table) objects() int { return len(t.sets) + len(t.maps) + len(t.chains) }

// replace adds to tx what makes a new table of t, whatever there was.
func (t *table) replace(tx *knftables.Transaction) {
	// Whether there is a table isn't known: with one added before, delete is right in both cases.
	tx.Add(&knftables.Table{})
	tx.Delete(&knftables.Table{})
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("NetworkPolicies of this node's pods")})
	tx.Add(&knftables.Chain{
		Name:     forwardChain,
		Type:     knftables.PtrTo(knftables.FilterType),
		Hook:     knftables.PtrTo(knftables.ForwardHook),
		Priority: knftables.PtrTo(knftables.FilterPriority),
		Policy:   knftables.PtrTo(knftables.AcceptPolicy),
	})
	tx.Add(&knftables.Chain{Name: replyChain})
	empty := newTable()
	empty.chains[forwardChain], empty.chains[replyChain] = nil, nil
	t.update(tx, empty)
}

// update adds to tx what makes t of old, which the kernel has. It returns what the kernel has afterwards: t, and what was in old
// and is no longer referred to. That is left behind, since kernels before 6.2 don't delete a chain in the
// transaction that deletes the last map element that leads to it, and with a set would go what refers to it.
func (t *table) update(tx *knftables.Transaction, old *table) *table {
	after := newTable()
	maps.Copy(after.sets, old.sets)
	maps.Copy(after.maps, old.maps)
	maps.Copy(after.chains, old.chains)
	for _, name := range slices.Sorted(maps.Keys(t.sets)) {
		s := t.sets[name]
		if old.sets[name] == nil {
			tx.Add(s.declareSet(name))
		}
		s.updateElements(tx, old.sets[name], func(key, _ string) *knftables.Element {
			return &knftables.Element{Set: name, Key: strings.Split(key, " . ")}
		})
		after.sets[name] = s
	}
	for _, name := range slices.Sorted(maps.Keys(t.chains)) {
		if _, ok := old.chains[name]; !ok {
			tx.Add(&knftables.Chain{Name: name})
			addRules(tx, name, t.chains[name])
			after.chains[name] = t.chains[name]
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.maps)) {
		m := t.maps[name]
		if old.maps[name] == nil {
			tx.Add(&knftables.Map{Name: name, Type: m.typ})
		}
		m.updateElements(tx, old.maps[name], func(key, value string) *knftables.Element {
			return &knftables.Element{Map: name, Key: []string{key}, Value: []string{value}}
		})
		after.maps[name] = m
	}
	// The chains whose rules may differ under one name come last: they refer to the maps.
	for _, name := range slices.Sorted(maps.Keys(t.chains)) {
		if rules, ok := old.chains[name]; ok && !slices.Equal(rules, t.chains[name]) {
			tx.Flush(&knftables.Chain{Name: name})
			addRules(tx, name, t.chains[name])
			after.chains[name] = t.chains[name]
		}
	}
	return after
}

func addRules(tx *knftables.Transaction, chain string, rules []string) {
	for _, r := range rules {
		tx.Add(&knftables.Rule{Chain: chain, Rule: r})
	}
}

func (s *set) declareSet(name string) *knftables.Set {
	d := &knftables.Set{Name: name, Type: s.typ}
	if s.interval {
		d.Flags = []knftables.SetFlag{knftables.IntervalFlag}
	}
	return d
}

// updateElements adds and deletes what differs between s and old, which may be nil.
func (s *set) updateElements(tx *knftables.Transaction, old *set, element func(key, value string) *knftables.Element) {
	if old == nil {
		old = &set{}
	}
	var added, deleted []string
	for key, value := range old.elements {
		if now, ok := s.elements[key]; !ok || now != value {
			deleted = append(deleted, key)
		}
	}
	for key, value := range s.elements {
		if before, ok := old.elements[key]; !ok || before != value {
			added = append(added, key)
		}
	}
	slices.Sort(deleted)
	for _, key := range deleted {
		tx.Delete(element(key, old.elements[key]))
	}
	slices.Sort(added)
	for _, key := range added {
		tx.Add(element(key, s.elements[key]))
	}
}
