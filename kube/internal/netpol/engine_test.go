package netpol

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/knftables"
)

// recorder is the fake nftables, which counts transactions and can fail.
type recorder struct {
	fakes [2]*knftables.Fake
	mu    sync.Mutex
	runs  int
	pass  int // so many of the next transactions before those that fail
	fail  int // so many transactions then
}

func newRecorder() *recorder {
	r := &recorder{}
	for i, name := range Tables() {
		r.fakes[i] = knftables.NewFake(knftables.InetFamily, name)
	}
	return r
}

// recorded is one of the recorder's tables.
type recorded struct {
	*knftables.Fake
	r *recorder
}

func (r *recorder) nft() [2]knftables.Interface {
	return [2]knftables.Interface{recorded{r.fakes[0], r}, recorded{r.fakes[1], r}}
}

func (t recorded) Run(ctx context.Context, tx *knftables.Transaction) error {
	r := t.r
	r.mu.Lock()
	defer r.mu.Unlock()
	r.runs++
	if r.pass > 0 {
		r.pass--
	} else if r.fail > 0 {
		r.fail--
		return errors.New("no")
	}
	return t.Fake.Run(ctx, tx)
}

// attached are the tables that the kernel would call.
func (r *recorder) attached() []*knftables.Fake {
	var there []*knftables.Fake
	for _, f := range r.fakes {
		if f.Table != nil && f.Table.Chains[forwardChain] != nil {
			there = append(there, f)
		}
	}
	return there
}

func (r *recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.runs
}

// isolated returns the addresses in a verdict map.
func (r *recorder) isolated(verdicts string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	there := r.attached()
	if len(there) != 1 {
		return fmt.Sprintf("%d tables", len(there))
	}
	elements, err := there[0].ListElements(context.Background(), "map", verdicts)
	if err != nil {
		return err.Error()
	}
	var addrs []string
	for _, e := range elements {
		addrs = append(addrs, e.Key[0])
	}
	slices.Sort(addrs)
	return strings.Join(addrs, " ")
}

func (r *recorder) waitFor(t *testing.T, verdicts, want string) {
	t.Helper()
	waitUntil(t, func() bool { return r.isolated(verdicts) == want },
		func() string { return verdicts + " has " + r.isolated(verdicts) + ", want " + want })
}

func waitUntil(t *testing.T, done func() bool, state func() string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited a minute: %s", state())
		}
	}
}

// startEngine runs an engine on the objects of documented until the test ends.
func startEngine(t *testing.T, nft *recorder, log *slog.Logger) *fake.Clientset {
	t.Helper()
	s := documented()
	client := fake.NewClientset()
	for _, n := range s.Namespaces {
		if err := client.Tracker().Add(n); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range s.Pods {
		if err := client.Tracker().Add(p); err != nil {
			t.Fatal(err)
		}
	}
	e, err := New(Options{Node: testNode, Client: client, NFT: nft.nft(), Log: log, StandIns: s.StandIns})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the engine ended with %v", err)
		}
		// Whatever the engine did, at its end the table is in place.
		if len(nft.attached()) != 1 {
			t.Error("there isn't one table after the engine's end")
		}
	})
	return client
}

func TestEngineFollowsTheAPI(t *testing.T) {
	nft := newRecorder()
	client := startEngine(t, nft, slog.New(slog.DiscardHandler))
	ctx := t.Context()
	nft.waitFor(t, "ingress4", `no such map "ingress4"`)

	policies := client.NetworkingV1().NetworkPolicies("default")
	policy := newPolicies(t, "name: default/p\nspec: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {}}]}]}")[0]
	if _, err := policies.Create(ctx, policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	nft.waitFor(t, "ingress4", "10.244.0.1")
	nft.waitFor(t, "ingress6", "fd44::1")

	policy = policy.DeepCopy()
	policy.Spec.PodSelector = metav1.LabelSelector{}
	if _, err := policies.Update(ctx, policy, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	nft.waitFor(t, "ingress4", "10.244.0.1 10.244.0.2 10.244.0.3")

	pods := client.CoreV1().Pods("default")
	started := newPod("default/started", "", "10.244.0.9")
	if _, err := pods.Create(ctx, started, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	nft.waitFor(t, "ingress4", "10.244.0.1 10.244.0.2 10.244.0.3 10.244.0.9")
	ended := started.DeepCopy()
	ended.Status.Phase = corev1.PodSucceeded
	if _, err := pods.UpdateStatus(ctx, ended, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	nft.waitFor(t, "ingress4", "10.244.0.1 10.244.0.2 10.244.0.3")

	if err := policies.Delete(ctx, "p", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, func() bool {
		nft.mu.Lock()
		defer nft.mu.Unlock()
		return len(nft.attached()[0].Table.Chains[forwardChain].Rules) == len((&Ruleset{}).table().chains[forwardChain])
	}, func() string { return "the rules for isolated pods are still there" })
}

// TestEngineAppliesChangesOnly: what makes no difference to the rules makes no transaction.
func TestEngineAppliesChangesOnly(t *testing.T) {
	nft := newRecorder()
	client := startEngine(t, nft, slog.New(slog.DiscardHandler))
	ctx := t.Context()
	waitUntil(t, func() bool { return nft.count() == 3 }, func() string { return "no first sync" })
	pods := client.CoreV1().Pods("guests")
	for _, name := range []string{"a", "b", "c"} {
		if _, err := pods.Create(ctx, newPod("guests/"+name, "x=y", "10.244.7.1", elsewhere), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * debounce) // so that it is a sync of its own, if it is one
	}
	policy := newPolicies(t, "name: default/p\nspec: {podSelector: {matchLabels: {role: db}}}")[0]
	if _, err := client.NetworkingV1().NetworkPolicies("default").Create(ctx, policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	nft.waitFor(t, "ingress4", "10.244.0.1")
	if n := nft.count(); n != 5 {
		t.Errorf("%d transactions, want three at the start and two for the policy", n)
	}
}

// TestEngineTriesAgain: a transaction that goes wrong is logged and made again.
func TestEngineTriesAgain(t *testing.T) {
	nft := newRecorder()
	nft.fail = 1
	log := &safeBuffer{}
	startEngine(t, nft, slog.New(slog.NewTextHandler(log, nil)))
	waitUntil(t, func() bool { return strings.Contains(log.String(), "policies applied") }, log.String)
	if !strings.Contains(log.String(), "sync went wrong") {
		t.Errorf("the log doesn't say so:\n%s", log)
	}
}

func TestApply(t *testing.T) {
	ctx := t.Context()
	nft := newRecorder()
	log := &safeBuffer{}
	e := &Engine{o: Options{NFT: nft.nft(), Log: slog.New(slog.NewTextHandler(log, nil))}, kick: make(chan struct{}, 1)}
	port := func(n uint16) *table {
		c := &Chain{Rules: []Rule{{AnyPeer: true, Protocol: TCP, Ports: []PortRange{{n, n}}}}}
		return (&Ruleset{Guards: map[netip.Addr]Guard{netip.MustParseAddr("10.244.0.1"): {Ingress: c}}}).table()
	}
	apply := func(n uint16) {
		t.Helper()
		if _, err := e.apply(ctx, port(n)); err != nil {
			t.Fatal(err)
		}
	}
	apply(1)
	nft.fail = 1
	apply(2)
	if !strings.Contains(log.String(), "will be replaced") {
		t.Errorf("a failed change isn't logged:\n%s", log)
	}
	if want := port(2).objects(); e.applied.objects() != want {
		t.Errorf("after the replacement there are %d objects, want %d", e.applied.objects(), want)
	}
	most := 0
	for n := range uint16(1000) {
		apply(n + 1)
		if len(nft.attached()) != 1 {
			t.Fatalf("%d tables are in use", len(nft.attached()))
		}
		most = max(most, len(nft.attached()[0].Table.Chains))
	}
	if limit := 2*port(1).objects() + spareObjects; most > limit || most < limit/2 {
		t.Errorf("up to %d chains were in the table; those out of use should stay, but not more than %d", most, limit)
	}

	// Whatever fails of a replacement, what there was holds.
	for pass := range 3 {
		before := nft.isolated("ingress4")
		e.applied = nil
		nft.pass, nft.fail = pass, 1
		if _, err := e.apply(ctx, port(7)); err == nil {
			t.Fatalf("a replacement whose transaction %d failed is none", pass)
		}
		if there := nft.attached(); len(there) != 1+pass/2 || pass < 2 && nft.isolated("ingress4") != before || e.applied != nil {
			t.Errorf("after a replacement whose transaction %d failed there are %d tables", pass, len(there))
		}
		apply(1)
		if len(nft.attached()) != 1 || nft.isolated("ingress4") != "10.244.0.1" {
			t.Errorf("after the next one there are %d tables", len(nft.attached()))
		}
	}

	e.check(ctx)
	if len(e.kick) > 0 {
		t.Error("a table that is there is taken as missing")
	}
	gone := nft.attached()[0]
	tx := gone.NewTransaction()
	tx.Delete(&knftables.Table{})
	if err := gone.Run(ctx, tx); err != nil {
		t.Fatal(err)
	}
	e.check(ctx)
	if len(e.kick) == 0 || e.applied != nil {
		t.Error("a table that is gone isn't made again")
	}
}

func TestTrim(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	p := newPod("default/p", "a=b", "10.244.0.1", withPort("web", "TCP", 80), withPort("", "TCP", 81), withInitPort("side", 82, &always))
	p.Annotations = map[string]string{"big": strings.Repeat("x", 1000)}
	p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "SECRET"}}
	trimmed, err := trim(p)
	if err != nil {
		t.Fatal(err)
	}
	got := trimmed.(*corev1.Pod)
	if got.Annotations != nil || got.Spec.Containers[0].Env != nil || len(got.Spec.Containers) != 1 {
		t.Errorf("too much is left: %v", got)
	}
	s := documented()
	s.Pods = append(s.Pods[1:], p)
	s.Policies = newPolicies(t, "name: default/p\nspec: {podSelector: {matchLabels: {a: b}}, ingress: [{ports: [{port: web}, {port: side}]}]}")
	want := rendered(s)
	for i := range s.Pods {
		trimmed, _ := trim(s.Pods[i])
		s.Pods[i] = trimmed.(*corev1.Pod)
	}
	if rendered(s) != want {
		t.Error("the rules differ after trimming")
	}
	newer := got.DeepCopy()
	newer.ResourceVersion = "2"
	if !same(got, newer) {
		t.Error("another version of the same is a change")
	}
	newer.Labels["a"] = "c"
	if same(got, newer) {
		t.Error("another label is no change")
	}
}

// safeBuffer is a buffer that a test reads while others write.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
