package netpol

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/knftables"
)

// rendered is what makes the table for s, in one transaction.
func rendered(s State) string {
	tx := knftables.NewFake(knftables.InetFamily, Tables()[0]).NewTransaction()
	wanted := Compile(s).table()
	wanted.create(tx)
	wanted.attach(tx)
	return tx.String()
}

// TestRender compares the transaction with testdata/render.nft, which -update writes.
func TestRender(t *testing.T) {
	s := documented()
	s.Pods = append(s.Pods, newPod("default/starting", "", ""))
	s.Policies = newPolicies(t, `
name: default/db
spec:
  podSelector: {matchLabels: {role: db}}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}
    - podSelector: {matchLabels: {role: frontend}}
    ports: [{port: 6379}, {port: 7000, endPort: 7010}, {protocol: UDP}]
  egress:
  - to: [{ipBlock: {cidr: 0.0.0.0/0}}]
  - to: [{namespaceSelector: {}}]
    ports: [{port: web}]
---
name: default/deny
spec: {podSelector: {}}`)
	got := rendered(s)
	golden := filepath.Join("testdata", "render.nft")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("transaction (-want +got):\n%s", diff)
	}
}

var update = flag.Bool("update", false, "write the golden files")

// TestUpdate goes from one random cluster to another by transactions, and compares with a table made from nothing.
func TestUpdate(t *testing.T) {
	nft := knftables.NewFake(knftables.InetFamily, Tables()[0])
	var has, last *table
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed/20, 0))
		s := randomState(rng)
		// Twenty states in a row are of one cluster from which some pods and policies are missing.
		rng = rand.New(rand.NewPCG(seed, 1))
		s.Pods = slices.DeleteFunc(s.Pods, func(*corev1.Pod) bool { return rng.IntN(4) == 0 })
		s.Policies = slices.DeleteFunc(s.Policies, func(*networkingv1.NetworkPolicy) bool { return rng.IntN(4) == 0 })
		if seed%3 == 0 {
			s.Pods = append(s.Pods, newPod("n0/starting", "", ""), newPod("n1/starting", "", ""))
		}
		wanted := Compile(s).table()
		run := func(tx *knftables.Transaction) {
			t.Helper()
			if err := nft.Run(t.Context(), tx); err != nil {
				t.Fatalf("seed %d: %v\n%s", seed, err, tx)
			}
		}
		if tx := nft.NewTransaction(); has == nil {
			wanted.create(tx)
			wanted.attach(tx)
			run(tx)
			has = wanted
		} else {
			has = wanted.prepare(tx, has, last)
			run(tx)
			if diff := cmp.Diff(last, inUse(nft.Table, last), cmp.AllowUnexported(table{}, set{}), cmpopts.EquateEmpty()); diff != "" {
				t.Fatalf("seed %d: what was in use differs after the preparation (-want +got):\n%s", seed, diff)
			}
			tx = nft.NewTransaction()
			has = wanted.change(tx, has)
			if strings.Contains(tx.String(), "add chain") {
				t.Fatalf("seed %d: a chain is made in the transaction that leads packets to it:\n%s", seed, tx)
			}
			run(tx)
		}
		if seed%7 == 0 {
			tx := nft.NewTransaction()
			has = has.sweep(tx, wanted)
			run(tx)
			if have, want := len(nft.Table.Chains)+len(nft.Table.Sets), len(wanted.chains)+len(wanted.sets); have != want {
				t.Fatalf("seed %d: %d chains and sets after sweeping, want %d", seed, have, want)
			}
		}
		last = wanted
		if diff := cmp.Diff(wanted, inUse(nft.Table, wanted), cmp.AllowUnexported(table{}, set{}), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("seed %d (-want +got):\n%s", seed, diff)
		}
		again := nft.NewTransaction()
		if wanted.change(again, wanted.prepare(again, has, wanted)); again.NumOperations() > 0 {
			t.Fatalf("seed %d: a second time there is still something to do:\n%s", seed, again)
		}
	}
}

// inUse reads those objects of a fake that wanted has.
func inUse(fake *knftables.FakeTable, wanted *table) *table {
	got := newTable()
	for name := range wanted.sets {
		s := fake.Sets[name]
		got.sets[name] = &set{s.Type, len(s.Flags) > 0, map[string]string{}}
		for _, e := range s.Elements {
			got.sets[name].elements[strings.Join(e.Key, " . ")] = ""
		}
	}
	for name := range wanted.maps {
		m := fake.Maps[name]
		got.maps[name] = &set{m.Type, false, map[string]string{}}
		for _, e := range m.Elements {
			got.maps[name].elements[e.Key[0]] = e.Value[0]
		}
	}
	for name := range wanted.chains {
		got.chains[name] = nil
		for _, r := range fake.Chains[name].Rules {
			got.chains[name] = append(got.chains[name], r.Rule)
		}
	}
	return got
}

// bigState has 2,000 pods of which 110 are the node's, and 200 policies.
func bigState() State {
	s := State{Node: testNode}
	for n := range 20 {
		s.Namespaces = append(s.Namespaces, newNamespace(fmt.Sprintf("n%d", n), fmt.Sprintf("team=t%d", n%4)))
	}
	for i := range 2000 {
		p := newPod(fmt.Sprintf("n%d/p%d", i%20, i), fmt.Sprintf("app=a%d,tier=t%d", i/20%10, i%3),
			fmt.Sprintf("10.244.%d.%d,fd44:0:0:%x::%x", i/200, i%200+2, i/200, i%200+2), withPort("web", "TCP", int32(8080+i%2)))
		if i >= 110 {
			elsewhere(p)
		}
		s.Pods = append(s.Pods, p)
	}
	for i := range 200 {
		p := policyNamed(fmt.Sprintf("p%d", i), networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{"Ingress", "Egress"},
			Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From: []networkingv1.NetworkPolicyPeer{
					{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": fmt.Sprintf("t%d", i%4)}}},
					{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "t1"}}},
				},
				Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromString("web"))}},
			}},
			Egress: []networkingv1.NetworkPolicyEgressRule{{
				To: []networkingv1.NetworkPolicyPeer{{
					NamespaceSelector: &metav1.LabelSelector{}, PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprintf("a%d", i%10)}}},
					{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("10.%d.0.0/16", i), Except: []string{fmt.Sprintf("10.%d.7.0/24", i)}}},
				},
				Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromString("web"))}, {Port: new(intstr.FromInt32(443))}, {Protocol: new(corev1.ProtocolUDP), Port: new(intstr.FromInt32(53))}},
			}},
		})
		p.Namespace = fmt.Sprintf("n%d", i%20)
		s.Policies = append(s.Policies, p)
	}
	return s
}

func BenchmarkCompile(b *testing.B) {
	s := bigState()
	for b.Loop() {
		Compile(s)
	}
}

func BenchmarkTable(b *testing.B) {
	r := Compile(bigState())
	nft := knftables.NewFake(knftables.InetFamily, Tables()[0])
	old := r.table()
	for b.Loop() {
		next := r.table()
		next.change(nft.NewTransaction(), next.prepare(nft.NewTransaction(), old, old))
	}
}
