package netpol

import (
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"
)

// Table is the name of the nftables table, of family inet, that a node's rules are in.
const Table = "bulkhead_netpol"

// table is the content of the nftables table. [Ruleset.table] makes one; replace, or prepare and then change, bring the kernel to it.
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

// hold adds to tx what drops all new connections of pods until replace or release.
func hold(tx *knftables.Transaction) {
	tx.Add(&knftables.Table{})
	tx.Add(holding())
	tx.Flush(holding()) // an engine that died may have left its rules
	addRules(tx, holdChain, []string{
		"iifname " + podInterfaces + " ct state new drop",
		"oifname " + podInterfaces + " ct state new drop",
	})
}

// release adds to tx what undoes hold.
func release(tx *knftables.Transaction) {
	tx.Add(&knftables.Table{})
	tx.Add(holding()) // whether it is there isn't known
	tx.Flush(holding())
	tx.Delete(holding())
}

func holding() *knftables.Chain {
	return &knftables.Chain{
		Name:     holdChain,
		Type:     knftables.PtrTo(knftables.FilterType),
		Hook:     knftables.PtrTo(knftables.ForwardHook),
		Priority: knftables.PtrTo(knftables.FilterPriority + "-1"),
	}
}

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
	t.prepare(tx, empty)
	t.change(tx, empty)
}

// prepare adds to tx the sets and chains of t that aren't in old, which the kernel has. No packet meets them before change.
func (t *table) prepare(tx *knftables.Transaction, old *table) {
	for _, name := range slices.Sorted(maps.Keys(t.sets)) {
		if old.sets[name] == nil {
			s := t.sets[name]
			tx.Add(s.declareSet(name))
			s.updateElements(tx, nil, setElement(name))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.chains)) {
		if _, ok := old.chains[name]; !ok {
			tx.Add(&knftables.Chain{Name: name})
			addRules(tx, name, t.chains[name])
		}
	}
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
	// The chains whose rules may differ under one name come last: they refer to the maps.
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
	for _, name := range chains { // chains refer to sets, and none of these to another chain
		tx.Flush(&knftables.Chain{Name: name})
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
