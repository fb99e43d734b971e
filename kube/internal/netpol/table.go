package netpol

import (
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"
)

// Tables are the names of the nftables tables, of family inet, of which one has a node's rules. The other is there only
// while it takes the place of the first.
func Tables() [2]string { return [2]string{"bulkhead_netpol", "bulkhead_netpol_2"} }

// table is the content of the nftables table. [Ruleset.table] makes one; create and then attach, or prepare and then change, bring the kernel to it.
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

// baseChain is the chain that the kernel calls. The rest of the table is out of use without it.
func baseChain() *knftables.Chain {
	return &knftables.Chain{
		Name:     forwardChain,
		Type:     knftables.PtrTo(knftables.FilterType),
		Hook:     knftables.PtrTo(knftables.ForwardHook),
		Priority: knftables.PtrTo(knftables.FilterPriority),
		Policy:   knftables.PtrTo(knftables.AcceptPolicy),
	}
}

// remove adds to tx what removes the table, if it is there.
func remove(tx *knftables.Transaction) {
	tx.Add(&knftables.Table{}) // to delete what isn't there would be an error
	tx.Delete(&knftables.Table{})
}

// create adds to tx what makes all of t but the base chain, in place of whatever the table was.
func (t *table) create(tx *knftables.Transaction) {
	remove(tx)
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("NetworkPolicies of this node's pods")})
	rest := newTable()
	maps.Copy(rest.sets, t.sets)
	maps.Copy(rest.maps, t.maps)
	maps.Copy(rest.chains, t.chains)
	delete(rest.chains, forwardChain)
	empty := newTable()
	rest.change(tx, rest.prepare(tx, empty, empty))
}

// attach adds to tx what has the kernel call t, created.
func (t *table) attach(tx *knftables.Transaction) {
	tx.Add(baseChain())
	addRules(tx, forwardChain, t.chains[forwardChain])
}

// prepare adds to tx what t has and old, which the kernel has, lacks, as far as no packet meets it before change: sets, chains, and
// the rules of chains that nothing led to in last, the part of old that is in use. It returns what the kernel has afterwards.
func (t *table) prepare(tx *knftables.Transaction, old, last *table) *table {
	after := newTable()
	maps.Copy(after.sets, old.sets)
	maps.Copy(after.maps, old.maps)
	maps.Copy(after.chains, old.chains)
	for _, name := range slices.Sorted(maps.Keys(t.sets)) {
		if old.sets[name] == nil {
			s := t.sets[name]
			tx.Add(s.declareSet(name))
			s.updateElements(tx, nil, setElement(name))
			after.sets[name] = s
		}
	}
	var filled []string
	for _, name := range slices.Sorted(maps.Keys(t.chains)) {
		rules := t.chains[name]
		if had, ok := old.chains[name]; !ok {
			tx.Add(&knftables.Chain{Name: name})
		} else if _, inUse := last.chains[name]; inUse || slices.Equal(had, rules) {
			continue
		} else {
			tx.Flush(&knftables.Chain{Name: name})
		}
		filled = append(filled, name)
		after.chains[name] = rules
	}
	for _, name := range filled { // rules refer to other chains
		if !refersToMaps(name) {
			addRules(tx, name, t.chains[name])
		} else {
			after.chains[name] = nil
		}
	}
	return after
}

// change adds to tx what makes t of old, which the kernel has, prepared. It returns what the kernel has afterwards: t, and what was in
// old and that nothing leads to any longer. That stays until sweep.
func (t *table) change(tx *knftables.Transaction, old *table) *table {
	after := newTable()
	maps.Copy(after.sets, old.sets)
	maps.Copy(after.chains, old.chains)
	for _, name := range slices.Sorted(maps.Keys(t.sets)) {
		if s := old.sets[name]; s != nil {
			t.sets[name].updateElements(tx, s, setElement(name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.maps)) {
		if old.maps[name] == nil {
			tx.Add(&knftables.Map{Name: name, Type: t.maps[name].typ})
		}
		t.maps[name].updateElements(tx, old.maps[name], mapElement(name))
	}
	for _, name := range slices.Sorted(maps.Keys(old.maps)) {
		if t.maps[name] == nil { // it must lead to no chain
			none := &set{typ: old.maps[name].typ}
			none.updateElements(tx, old.maps[name], mapElement(name))
			after.maps[name] = none
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.chains)) {
		if rules, ok := old.chains[name]; ok && !slices.Equal(rules, t.chains[name]) {
			tx.Flush(&knftables.Chain{Name: name})
			addRules(tx, name, t.chains[name])
		}
	}
	maps.Copy(after.sets, t.sets)
	maps.Copy(after.maps, t.maps)
	maps.Copy(after.chains, t.chains)
	return after
}

// refersToMaps tells whether the rules of a chain look into verdict maps, which change makes.
func refersToMaps(chain string) bool { return chain == forwardChain || chain == replyChain }

// sweep adds to tx what deletes the sets and chains of t that none of the tables in use has. It returns what is left.
func (t *table) sweep(tx *knftables.Transaction, inUse ...*table) *table {
	left := newTable()
	maps.Copy(left.maps, t.maps)
	var chains []string
	for name, rules := range t.chains {
		if slices.ContainsFunc(inUse, func(u *table) bool { _, ok := u.chains[name]; return ok }) {
			left.chains[name] = rules
		} else {
			chains = append(chains, name)
		}
	}
	slices.Sort(chains)
	for _, name := range chains { // their rules first: they refer to chains and sets
		tx.Flush(&knftables.Chain{Name: name})
	}
	for _, name := range chains {
		tx.Delete(&knftables.Chain{Name: name})
	}
	for _, name := range slices.Sorted(maps.Keys(t.sets)) {
		if slices.ContainsFunc(inUse, func(u *table) bool { return u.sets[name] != nil }) {
			left.sets[name] = t.sets[name]
		} else {
			tx.Delete(&knftables.Set{Name: name})
		}
	}
	return left
}

func setElement(set string) func(key, value string) *knftables.Element {
	return func(key, _ string) *knftables.Element {
		return &knftables.Element{Set: set, Key: strings.Split(key, " . ")}
	}
}

func mapElement(verdicts string) func(key, value string) *knftables.Element {
	return func(key, value string) *knftables.Element {
		return &knftables.Element{Map: verdicts, Key: []string{key}, Value: []string{value}}
	}
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
