//go:build root

package netpol

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/knftables"
)

// rootNode is a testNet with an engine on its node.
type rootNode struct {
	*testNet
	client *fake.Clientset
	log    *safeBuffer
}

// nodeState has pods a and b, of namespace default, and c, of other.
func nodeState() State {
	return State{
		Node:       testNode,
		Namespaces: []*corev1.Namespace{newNamespace("default", "team=mine"), newNamespace("other", "team=theirs")},
		Pods: []*corev1.Pod{
			newPod("default/a", "app=a", addrA+","+addrA6),
			newPod("default/b", "app=b", addrB+","+addrB6, withPort("web", "TCP", 8000), withPort("dns", "UDP", 53)),
			newPod("other/c", "app=c", addrC+","+addrC6, withPort("web", "TCP", 81)),
		},
	}
}

// startNode makes the net and starts an engine that knows what is in nodeState.
func startNode(t *testing.T) *rootNode {
	t.Helper()
	n := &rootNode{testNet: newTestNet(t), log: &safeBuffer{}}
	var objects []runtime.Object
	for _, o := range nodeState().Namespaces {
		objects = append(objects, o)
	}
	for _, o := range nodeState().Pods {
		objects = append(objects, o)
	}
	n.client = fake.NewClientset(objects...)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- n.try("node", func() error {
			nft, err := realTables()
			if err != nil {
				return err
			}
			e, err := New(Options{Node: testNode, Client: n.client, NFT: nft, Log: slog.New(slog.NewTextHandler(n.log, nil))})
			if err != nil {
				return err
			}
			return e.Run(ctx)
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != context.Canceled { //nolint:errorlint // it is returned as it is
			t.Errorf("the engine ended with %v", err)
		}
		if s := n.log.String(); t.Failed() || strings.Contains(s, "level=ERROR") || strings.Contains(s, "level=WARN") {
			t.Errorf("the engine's log:\n%s", s)
		}
	})
	waitUntil(t, func() bool { return strings.Contains(n.log.String(), "policies applied") }, n.log.String)
	return n
}

// realTables are those of the network namespace that the thread is in.
func realTables() (nft [2]knftables.Interface, err error) {
	for i, name := range Tables() {
		if nft[i], err = knftables.New(knftables.InetFamily, name); err != nil {
			return nft, err
		}
	}
	return nft, nil
}

// policies makes these the only ones.
func (n *rootNode) policies(t *testing.T, text string) {
	t.Helper()
	ctx := t.Context()
	wanted := newPolicies(t, text)
	have, err := n.client.NetworkingV1().NetworkPolicies("").List(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range wanted {
		i := slices.IndexFunc(have.Items, func(h networkingv1.NetworkPolicy) bool { return h.Namespace == p.Namespace && h.Name == p.Name })
		if i < 0 {
			_, err = n.client.NetworkingV1().NetworkPolicies(p.Namespace).Create(ctx, p, metav1.CreateOptions{})
		} else {
			have.Items = slices.Delete(have.Items, i, i+1)
			_, err = n.client.NetworkingV1().NetworkPolicies(p.Namespace).Update(ctx, p, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range have.Items {
		if err := n.client.NetworkingV1().NetworkPolicies(p.Namespace).Delete(ctx, p.Name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// nft runs a script on the node.
func (n *rootNode) nft(t *testing.T, script string) {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", n.ns("node"), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s\n%s", err, out, script)
	}
}

const denyB = "name: default/deny\nspec: {podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress, Egress]}"

func TestPoliciesInTheKernel(t *testing.T) {
	n := startNode(t)
	tests := []struct {
		name, policies  string
		allowed, denied []string
	}{
		{
			name: "no policy",
			allowed: []string{"a > tcp 10.244.0.3 80", "a > udp 10.244.0.3 53", "a > tcp fd44::3 80", "a > udp fd44::3 53", "out > tcp 10.244.0.3 80",
				"b > tcp 172.17.1.2 80", "c > tcp fd17:1::2 80"},
		},
		{
			name: "deny", policies: denyB,
			allowed: []string{"a > tcp 10.244.0.4 80", "a > tcp fd44::4 80", "b > tcp 10.244.0.3 80", "node > tcp 10.244.0.3 80", "node > udp fd44::3 53"},
			denied: []string{"a > tcp 10.244.0.3 80", "a > udp 10.244.0.3 53", "a > tcp fd44::3 80", "a > udp fd44::3 53", "out > tcp 10.244.0.3 80",
				"b > tcp 172.17.1.2 80", "b > udp fd17:1::2 53", "b > tcp 10.244.0.4 80"},
		},
		{
			name: "a range of ports",
			policies: `
name: default/p
spec: {podSelector: {matchLabels: {app: b}}, ingress: [{ports: [{port: 8000, endPort: 8010}, {port: 53, protocol: UDP}]}]}`,
			allowed: []string{"a > tcp 10.244.0.3 8000", "a > tcp fd44::3 8010", "out > tcp 10.244.0.3 8010", "a > udp fd44::3 53", "b > tcp 10.244.0.4 80"},
			denied:  []string{"a > tcp 10.244.0.3 8011", "a > tcp fd44::3 81", "a > udp 10.244.0.3 8000", "a > tcp 10.244.0.3 53"},
		},
		{
			name: "the policy of before with other ports",
			policies: `
name: default/p
spec: {podSelector: {matchLabels: {app: b}}, ingress: [{ports: [{port: 8011}]}]}`,
			allowed: []string{"a > tcp 10.244.0.3 8011", "a > tcp fd44::3 8011"},
			denied:  []string{"a > tcp 10.244.0.3 8000", "a > tcp fd44::3 8010", "a > udp fd44::3 53"},
		},
		{
			name: "blocks with exceptions",
			policies: `
name: default/p
spec:
  podSelector: {matchLabels: {app: b}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, except: [10.244.0.4/32]}}, {ipBlock: {cidr: "fd44::/64", except: ["fd44::4/128"]}}]}]
  egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [172.17.2.0/24, 10.0.0.0/8]}}, {ipBlock: {cidr: "::/0", except: ["fd17:2::/64", "fd44::/16"]}}]}]`,
			allowed: []string{"a > tcp 10.244.0.3 80", "a > udp fd44::3 53", "b > tcp 172.17.1.2 80", "b > tcp fd17:1::2 80"},
			denied: []string{"c > tcp 10.244.0.3 80", "c > udp fd44::3 53", "out > tcp 10.244.0.3 80", "b > tcp 172.17.2.2 80",
				"b > tcp fd17:2::2 80", "b > tcp 10.244.0.2 80"},
		},
		{
			name: "named ports",
			policies: `
name: default/in
spec: {podSelector: {matchLabels: {app: b}}, ingress: [{ports: [{port: web}, {port: dns, protocol: UDP}]}]}
---
name: default/out
spec: {podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}`,
			allowed: []string{"a > tcp 10.244.0.3 8000", "a > tcp fd44::4 81", "c > udp 10.244.0.3 53", "c > tcp fd44::3 8000"},
			denied:  []string{"a > tcp 10.244.0.3 81", "a > tcp fd44::4 8000", "a > tcp 172.17.1.2 81", "c > tcp 10.244.0.3 81", "c > tcp fd44::3 53"},
		},
		{
			name: "selectors of pods and namespaces",
			policies: `
name: default/p
spec: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}}]}]}
---
name: other/p
spec: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: mine}}, podSelector: {matchLabels: {app: b}}}]}]}`,
			allowed: []string{"a > tcp 10.244.0.3 80", "b > udp fd44::4 53", "c > tcp fd17:1::2 80"},
			denied:  []string{"c > tcp 10.244.0.3 80", "b > tcp fd44::2 80", "a > tcp 10.244.0.4 80", "out > tcp fd44::4 80"},
		},
		{
			name: "all policies removed",
			allowed: []string{"a > tcp 10.244.0.3 80", "c > tcp 10.244.0.3 80", "b > tcp fd44::2 80", "a > tcp 10.244.0.4 80", "out > tcp fd44::4 80",
				"b > tcp 172.17.2.2 80"},
		},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			n.policies(t, tc.policies)
			n.expect(t, tc.allowed, tc.denied)
		})
	}
}

// TestServices: policies see through the address translation of services.
func TestServices(t *testing.T) {
	n := startNode(t)
	n.nft(t, `table ip services {
		chain prerouting { type nat hook prerouting priority dstnat;
			ip daddr 10.96.0.1 tcp dport 80 dnat to 10.244.0.3:8000
			ip daddr 10.96.0.2 tcp dport 80 dnat to 10.244.0.3:8010
		}
		chain postrouting { type nat hook postrouting priority srcnat;
			ip saddr 10.244.0.3 ip daddr 10.244.0.3 masquerade
		}
	}`)
	n.expect(t, []string{"a > tcp 10.96.0.1 80", "a > tcp 10.96.0.2 80", "b > tcp 10.96.0.1 80"}, nil)
	n.policies(t, `
name: default/in
spec: {podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}}], ports: [{port: 8000}]}]}
---
name: default/out
spec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: b}}}], ports: [{port: 8000}]}]}`)
	n.expect(t, []string{"a > tcp 10.96.0.1 80", "b > tcp 10.96.0.1 80"}, []string{"a > tcp 10.96.0.2 80", "c > tcp 10.96.0.1 80"})
	// A pod reaches itself, also by a service, whatever policies say.
	n.policies(t, denyB)
	n.expect(t, []string{"b > tcp 10.96.0.1 80", "b > tcp 10.96.0.2 80"}, []string{"a > tcp 10.96.0.1 80"})
}

// TestOpenConnections: those that are no longer allowed end in both directions, and go on when they are allowed again.
func TestOpenConnections(t *testing.T) {
	n := startNode(t)
	for _, target := range []string{"tcp 10.244.0.3 80", "udp 10.244.0.3 53", "tcp fd44::3 80", "udp fd44::3 53"} {
		t.Run(target, func(t *testing.T) {
			n.policies(t, "")
			n.expect(t, []string{"a > " + target}, nil)
			var c net.Conn
			n.in(t, "a", func() (err error) {
				c, err = dial(target)
				return err
			})
			defer c.Close()
			if err := exchange(c, "before", 10*time.Second); err != nil {
				t.Fatal(err)
			}
			n.policies(t, denyB)
			n.expect(t, nil, []string{"a > " + target})
			if err := exchange(c, "denied", dropTime); err == nil {
				t.Error("the connection goes on although it is denied")
			}
			if strings.HasPrefix(target, "udp") {
				return
			}
			n.policies(t, "")
			// TCP sends again what was dropped.
			if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, len("denied"))
			if _, err := c.Read(buf); err != nil || string(buf) != "denied" {
				t.Errorf("when allowed again the connection gives %q, %v", buf, err)
			}
		})
	}
}

// TestAnswersOfIsolated: what a server sends to one who asked it once is dropped too when it is isolated.
func TestAnswersOfIsolated(t *testing.T) {
	n := startNode(t)
	n.expect(t, []string{"a > udp 10.244.0.3 53"}, nil)
	var server net.PacketConn
	var client net.Conn
	n.in(t, "b", func() (err error) {
		server, err = net.ListenPacket("udp4", ":9999")
		return err
	})
	defer server.Close()
	n.in(t, "a", func() (err error) {
		client, err = dial("udp 10.244.0.3 9999")
		return err
	})
	defer client.Close()
	if _, err := client.Write([]byte("question")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	_, from, err := server.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	answered := func() bool {
		if _, err := server.WriteTo([]byte("answer"), from); err != nil {
			return false
		}
		if err := client.SetDeadline(time.Now().Add(dropTime)); err != nil {
			t.Fatal(err)
		}
		_, err := client.Read(buf)
		return err == nil
	}
	waitUntil(t, answered, func() string { return "no answer before there is a policy" })
	n.policies(t, denyB)
	n.expect(t, nil, []string{"a > udp 10.244.0.3 53"})
	if answered() {
		t.Error("an isolated server's answers pass")
	}
}

// TestNeverOpen: to a pod that is isolated all the time not one packet passes, while its rules change and while tables are replaced.
func TestNeverOpen(t *testing.T) {
	n := startNode(t)
	n.policies(t, denyB)
	n.expect(t, nil, []string{"a > udp 10.244.0.3 80"})
	var server net.PacketConn
	n.in(t, "b", func() (err error) {
		server, err = net.ListenPacket("udp4", ":9999")
		return err
	})
	defer server.Close()
	var received, sent atomic.Int64
	go func() {
		buf := make([]byte, 100)
		for {
			if _, _, err := server.ReadFrom(buf); err != nil {
				return
			}
			received.Add(1)
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	flood := make(chan error, 1)
	go func() {
		flood <- n.try("a", func() error {
			for ctx.Err() == nil {
				c, err := dial("udp 10.244.0.3 9999") // a connection of its own, for conntrack
				if err != nil {
					return err
				}
				if _, err := c.Write([]byte("x")); err == nil {
					sent.Add(1)
				}
				c.Close()
			}
			return nil
		})
	}()
	rules := func(i int) string {
		return fmt.Sprintf(`%s
---
name: default/p%d
spec: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: c}}}], ports: [{port: %d}]}]}`, denyB, i%3, 1000+i)
	}
	for i := range 30 {
		n.policies(t, rules(i))
		waitUntil(t, func() bool {
			out, err := exec.Command("ip", "netns", "exec", n.ns("node"), "nft", "list", "ruleset").CombinedOutput()
			return err == nil && strings.Contains(string(out), fmt.Sprint(1000+i))
		}, func() string { return "the change didn't come" })
	}
	n.in(t, "node", func() error {
		nft, err := realTables()
		if err != nil {
			return err
		}
		s := nodeState()
		s.Policies = newPolicies(t, rules(29))
		for range 30 {
			e := &Engine{o: Options{NFT: nft, Log: slog.New(slog.DiscardHandler)}}
			if _, err := e.apply(t.Context(), Compile(s).table()); err != nil {
				return err
			}
		}
		return nil
	})
	cancel()
	if err := <-flood; err != nil {
		t.Fatal(err)
	}
	if got := received.Load(); got > 0 || sent.Load() < 100 {
		t.Errorf("%d of %d packets passed", got, sent.Load())
	}
}

// TestStartingPod: a pod that is isolated can do nothing before its address is known.
func TestStartingPod(t *testing.T) {
	n := startNode(t)
	ctx := t.Context()
	if err := n.client.CoreV1().Pods("other").Delete(ctx, "c", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	n.policies(t, "name: other/p\nspec: {podSelector: {}, policyTypes: [Ingress, Egress], egress: [{ports: [{port: 80}]}]}")
	// Nobody isolated is about to start.
	n.expect(t, []string{"c > tcp 172.17.1.2 80", "c > tcp 172.17.1.2 81", "a > tcp fd44::4 80"}, nil)
	pod := newPod("other/c", "", "")
	if _, err := n.client.CoreV1().Pods("other").Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	n.expect(t, []string{"a > tcp 10.244.0.3 80", "a > tcp fd17:1::2 80", "node > tcp 10.244.0.4 80"},
		[]string{"c > tcp 172.17.1.2 80", "c > tcp fd17:1::2 81", "a > tcp fd44::4 80", "out > tcp 10.244.0.4 80"})
	pod = pod.DeepCopy()
	pod.Status.PodIPs = []corev1.PodIP{{IP: addrC}, {IP: addrC6}}
	if _, err := n.client.CoreV1().Pods("other").UpdateStatus(ctx, pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	n.expect(t, []string{"c > tcp 172.17.1.2 80", "c > tcp fd17:1::2 80"}, []string{"c > tcp 172.17.1.2 81", "a > tcp fd44::4 80"})
}

// TestForgedSource: a pod gets nowhere with the address of another.
func TestForgedSource(t *testing.T) {
	n := startNode(t)
	n.expect(t, []string{"a > udp 10.244.0.3 53"}, nil)
	n.policies(t, "name: default/p\nspec: {podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}}]}]}")
	n.expect(t, []string{"a > udp 10.244.0.3 53"}, []string{"c > udp 10.244.0.3 53"})
	var server net.PacketConn
	n.in(t, "b", func() (err error) {
		server, err = net.ListenPacket("udp", ":9999")
		return err
	})
	defer server.Close()
	for _, tc := range []struct{ address, target string }{{addrA, "10.244.0.3:9999"}, {addrA6, "[fd44::3]:9999"}} {
		bits := 32
		if strings.Contains(tc.address, ":") {
			bits = 128
		}
		n.ip(t, fmt.Sprintf("-n %s addr add %s/%d dev lo nodad", n.ns("c"), tc.address, bits))
		send := func(host, text string) {
			n.in(t, host, func() error {
				c, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(tc.address)}}).Dial("udp", tc.target)
				if err != nil {
					return err
				}
				defer c.Close()
				_, err = c.Write([]byte(text))
				return err
			})
		}
		send("c", "forged")
		time.Sleep(dropTime)
		send("a", "true")
		buf := make([]byte, 100)
		if err := server.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		k, from, err := server.ReadFrom(buf)
		if err != nil || string(buf[:k]) != "true" {
			t.Errorf("the first packet from %s (%v) is %q, %v", tc.address, from, buf[:k], err)
		}
	}
}

// TestUpdateInTheKernel is TestUpdate with the real nftables.
func TestUpdateInTheKernel(t *testing.T) {
	n := newTestNet(t)
	n.in(t, "node", func() error {
		nft, err := realTables()
		if err != nil {
			return err
		}
		log := &safeBuffer{}
		e := &Engine{o: Options{NFT: nft, Log: slog.New(slog.NewTextHandler(log, nil))}}
		for seed := range uint64(100) {
			s := randomState(rand.New(rand.NewPCG(seed/20, 0)))
			rng := rand.New(rand.NewPCG(seed, 1))
			s.Pods = slices.DeleteFunc(s.Pods, func(*corev1.Pod) bool { return rng.IntN(4) == 0 })
			s.Policies = slices.DeleteFunc(s.Policies, func(*networkingv1.NetworkPolicy) bool { return rng.IntN(4) == 0 })
			wanted := Compile(s).table()
			if _, err := e.apply(t.Context(), wanted); err != nil {
				return fmt.Errorf("seed %d: %w", seed, err)
			}
			if seed%5 == 0 {
				sweep := nft[e.current].NewTransaction()
				e.applied = e.applied.sweep(sweep, wanted)
				if _, err := e.run(t.Context(), nft[e.current], sweep); err != nil {
					return fmt.Errorf("seed %d: %w", seed, err)
				}
			}
			for name, m := range wanted.maps {
				if err := sameElements(t.Context(), nft[e.current], "map", name, m); err != nil {
					return fmt.Errorf("seed %d: %w", seed, err)
				}
			}
			for name, m := range wanted.sets {
				if m.interval {
					continue // nft spells ranges in its own way
				}
				if err := sameElements(t.Context(), nft[e.current], "set", name, m); err != nil {
					return fmt.Errorf("seed %d: %w", seed, err)
				}
			}
		}
		if log.String() != "" {
			return fmt.Errorf("a change went wrong:\n%s", log)
		}
		return nil
	})
}

func sameElements(ctx context.Context, nft knftables.Interface, kind, name string, want *set) error {
	elements, err := nft.ListElements(ctx, kind, name)
	if err != nil {
		return fmt.Errorf("listing %s: %w", name, err)
	}
	got := map[string]string{}
	for _, e := range elements {
		got[strings.Join(e.Key, " . ")] = strings.Join(e.Value, " ")
	}
	if diff := cmp.Diff(want.elements, got); diff != "" {
		return fmt.Errorf("%s (-want +got):\n%s", name, diff)
	}
	return nil
}
