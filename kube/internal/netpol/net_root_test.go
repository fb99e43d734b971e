//go:build root

package netpol

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// testNet is a node with three pods, as the CNI plugin ptp would have made it, and a host outside:
//
//	a 10.244.0.2 fd44::2 ─┐
//	b 10.244.0.3 fd44::3 ─┼─ node ── out 172.17.1.2 172.17.2.2 fd17:1::2 fd17:2::2
//	c 10.244.0.4 fd44::4 ─┘
//
// Each host echoes what it gets on the ports of serverPorts, by TCP and UDP.
type testNet struct {
	prefix string
}

const (
	addrA, addrB, addrC    = "10.244.0.2", "10.244.0.3", "10.244.0.4"
	addrA6, addrB6, addrC6 = "fd44::2", "fd44::3", "fd44::4"
)

func serverPorts() []int { return []int{53, 80, 81, 8000, 8010, 8011} }

func newTestNet(t *testing.T) *testNet {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("the tests of the root tier need root")
	}
	for _, program := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Fatalf("the test needs %s: %v", program, err)
		}
	}
	n := &testNet{prefix: fmt.Sprintf("np%d-", os.Getpid())}
	for _, host := range []string{"node", "a", "b", "c", "out"} {
		n.ip(t, "netns add "+n.ns(host))
		t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", n.ns(host)).Run() })
		n.ip(t, "-n "+n.ns(host)+" link set lo up")
	}
	n.in(t, "node", func() error {
		for _, family := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/net/"+family, []byte("1"), 0o644); err != nil {
				return fmt.Errorf("turning on forwarding: %w", err)
			}
		}
		return nil
	})
	n.link(t, "a", "veth-a", addrA, addrA6)
	n.link(t, "b", "veth-b", addrB, addrB6)
	n.link(t, "c", "veth-c", addrC, addrC6)
	n.link(t, "out", "eth0", "172.17.1.2", "172.17.2.2", "fd17:1::2", "fd17:2::2")
	for _, host := range []string{"a", "b", "c", "out"} {
		for _, port := range serverPorts() {
			n.serve(t, host, port)
		}
	}
	return n
}

func (n *testNet) ns(host string) string { return n.prefix + host }

func (n *testNet) ip(t *testing.T, args string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", args, err, out)
	}
}

// link connects a host with the node, where the link's end is called name.
func (n *testNet) link(t *testing.T, host, name string, addrs ...string) {
	t.Helper()
	node, ns := n.ns("node"), n.ns(host)
	n.ip(t, fmt.Sprintf("link add %s netns %s type veth peer name eth0 netns %s", name, node, ns))
	n.ip(t, fmt.Sprintf("-n %s link set %s up", node, name))
	n.ip(t, fmt.Sprintf("-n %s link set eth0 up", ns))
	for _, a := range []string{"169.254.1.1/32", "fd69::1/128"} {
		n.ip(t, fmt.Sprintf("-n %s addr add %s dev %s nodad", node, a, name))
	}
	for _, a := range addrs {
		bits := netip.MustParseAddr(a).BitLen()
		n.ip(t, fmt.Sprintf("-n %s addr add %s/%d dev eth0 nodad", ns, a, bits))
		n.ip(t, fmt.Sprintf("-n %s route add %s/%d dev %s", node, a, bits, name))
	}
	for _, gateway := range []string{"169.254.1.1", "fd69::1"} {
		n.ip(t, fmt.Sprintf("-n %s route add %s dev eth0", ns, gateway))
		n.ip(t, fmt.Sprintf("-n %s route add default via %s dev eth0", ns, gateway))
	}
}

// in runs f on a thread in the host's network namespace.
func (n *testNet) in(t *testing.T, host string, f func() error) {
	t.Helper()
	if err := n.try(host, f); err != nil {
		t.Fatal(err)
	}
}

func (n *testNet) try(host string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		// The thread ends with the goroutine, since it is never unlocked.
		runtime.LockOSThread()
		done <- n.enter(host, f)
	}()
	return <-done
}

func (n *testNet) enter(host string, f func() error) error {
	ns, err := os.Open("/run/netns/" + n.ns(host))
	if err != nil {
		return fmt.Errorf("opening the namespace of %s: %w", host, err)
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the namespace of %s: %w", host, err)
	}
	return f()
}

// serve echoes on a port of a host until the test ends.
func (n *testNet) serve(t *testing.T, host string, port int) {
	t.Helper()
	n.in(t, host, func() error {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					_, _ = io.Copy(c, c)
				}()
			}
		}()
		// Two sockets, so that the answer's source is the address that was asked, as both have only one each.
		for _, network := range []string{"udp4", "udp6"} {
			u, err := net.ListenPacket(network, fmt.Sprintf(":%d", port))
			if err != nil {
				return err
			}
			t.Cleanup(func() { u.Close() })
			go echo(u)
		}
		return nil
	})
}

func echo(u net.PacketConn) {
	buf := make([]byte, 1500)
	for {
		k, from, err := u.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = u.WriteTo(buf[:k], from)
		}
	}
}

// dropTime is how long a probe waits for an answer before it counts as dropped.
const dropTime = 400 * time.Millisecond

// reaches tells whether a host gets an answer: target is "protocol address port".
func (n *testNet) reaches(host, target string) bool {
	return n.try(host, func() error {
		c, err := dial(target)
		if err != nil {
			return err
		}
		defer c.Close()
		return exchange(c, "hello", dropTime)
	}) == nil
}

// dial connects; for UDP that sends nothing. It must run in the thread of its caller: one address, no name.
func dial(target string) (net.Conn, error) {
	var network, addr string
	var port int
	if _, err := fmt.Sscanf(target, "%s %s %d", &network, &addr, &port); err != nil {
		return nil, fmt.Errorf("target %q: %w", target, err)
	}
	ap := netip.AddrPortFrom(netip.MustParseAddr(addr), uint16(port))
	ctx, cancel := context.WithTimeout(context.Background(), dropTime)
	defer cancel()
	var d net.Dialer
	return d.DialContext(ctx, network, ap.String())
}

// exchange sends text and reads it back.
func exchange(c net.Conn, text string, timeout time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	buf := make([]byte, len(text))
	if _, err := io.ReadFull(c, buf); err != nil {
		return err
	}
	if string(buf) != text {
		return fmt.Errorf("sent %q, got %q", text, buf)
	}
	return nil
}

// expect waits until the probes, which are "host > protocol address port", have the results that are wanted: those in allowed get an
// answer and those in denied don't.
func (n *testNet) expect(t *testing.T, allowed, denied []string) {
	t.Helper()
	var wrong []string
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		if wrong = n.wrong(allowed, denied); len(wrong) == 0 {
			return
		}
	}
	t.Errorf("after 30 seconds still wrong:\n%s", strings.Join(wrong, "\n"))
}

func (n *testNet) wrong(allowed, denied []string) []string {
	var mu sync.Mutex
	var wrong []string
	var probes sync.WaitGroup
	probe := func(p string, want bool) {
		probes.Go(func() {
			host, target, _ := strings.Cut(p, " > ")
			if got := n.reaches(host, target); got != want {
				mu.Lock()
				defer mu.Unlock()
				wrong = append(wrong, fmt.Sprintf("%s: answered: %v, want %v", p, got, want))
			}
		})
	}
	for _, p := range allowed {
		probe(p, true)
	}
	for _, p := range denied {
		probe(p, false)
	}
	probes.Wait()
	return wrong
}
