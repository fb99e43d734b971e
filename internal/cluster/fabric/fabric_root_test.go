//go:build root

package fabric

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const inside = "BULKHEAD_TEST_FABRIC"

// TestMain runs the tests in network and mount namespaces of their own, with an empty /run: the host of the tests is not
// the machine.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "needs root")
		os.Exit(1)
	}
	if os.Getenv(inside) == "" {
		os.Exit(enter())
	}
	if err := furnish(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func enter() int {
	runtime.LockOSThread() // the death signal is tied to it
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "in new namespaces:", err)
		return 1
	}
	return 0
}

func furnish() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return err
	}
	return loopbackUp()
}

// snapshot is what must be the same before Up and after Down.
func snapshot(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, command := range []string{"ip -o -br link", "ip -o -br addr", "ip route show table all", "ip -6 route show table all", "nft list ruleset"} {
		args := strings.Fields(command)
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
		b.WriteString("$ " + command + "\n" + string(out))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	b.Write(mounts)
	err = filepath.WalkDir("/run", func(path string, _ fs.DirEntry, err error) error {
		b.WriteString(path + "\n")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// start checks at the end of the test that Down leaves nothing.
func start(t *testing.T, subnet int) Network {
	t.Helper()
	n := Network{ID: fmt.Sprintf("%08x", 0xabc00000+subnet<<8), Subnet: subnet, IPv6: HostIPv6()}
	if !n.IPv6 {
		t.Fatal("the host has no IPv6: half of this can't be tested")
	}
	before := snapshot(t)
	t.Cleanup(func() {
		if err := Down(Network{ID: n.ID}); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(before, snapshot(t)); diff != "" {
			t.Errorf("after Down:\n%s", diff)
		}
	})
	return n
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// port is where serve answers, and call asks.
const port = 7777

// serve answers each connection to the address, in a network namespace ("": the tests' host's), with its peer's address.
func serve(t *testing.T, netns, addr string) { t.Helper(); serveAt(t, netns, addr, port) }

func serveAt(t *testing.T, netns, addr string, port int) {
	t.Helper()
	var l net.Listener
	ok(t, within(netns, func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(addr, strconv.Itoa(port)))
		return err
	}))
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			fmt.Fprint(c, host)
			c.Close()
		}
	}()
}

// call connects from a network namespace, and from an address if it isn't "", and returns the address that the server saw.
func call(netns, from, to string) (string, error) {
	return callAt(netns, from, to, port, 5*time.Second)
}

func callAt(netns, from, to string, port int, patience time.Duration) (string, error) {
	var seen []byte
	err := within(netns, func() error {
		d := net.Dialer{Timeout: patience}
		if from != "" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		}
		c, err := d.Dial("tcp", net.JoinHostPort(to, strconv.Itoa(port)))
		if err != nil {
			return err
		}
		defer c.Close()
		seen, err = io.ReadAll(c)
		return err
	})
	return string(seen), err
}

func within(netns string, f func() error) error {
	if netns == "" {
		return f()
	}
	return In(netns, f)
}

// sees checks that a connection arrives, with the address that it should have.
func sees(t *testing.T, netns, from, to, want string) {
	t.Helper()
	if got, err := call(netns, from, to); err != nil || got != want {
		t.Errorf("from %s %s to %s: the server saw %q, %v; want %q", netns, from, to, got, err, want)
	}
}

// pod puts an address of a node's pods on its loopback.
func pod(t *testing.T, n Network, i int, addr string) {
	t.Helper()
	ok(t, In(n.NodeNetNS(i), func() error {
		lo, err := must("lo")
		if err != nil {
			return err
		}
		a := netip.MustParseAddr(addr)
		return netlink.AddrReplace(lo, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen())), Flags: unix.IFA_F_NODAD})
	}))
}

func whole(t *testing.T, n Network) {
	t.Helper()
	ok(t, Up(t.Context(), n))
	ok(t, NodeUp(t.Context(), n, 0, []int{1}))
	ok(t, NodeUp(t.Context(), n, 1, []int{0}))
	ok(t, Routes(n, []int{0, 1}))
}

// checkTraffic goes every way there is.
func checkTraffic(t *testing.T, n Network) {
	t.Helper()
	n0, n1, cp := n.NodeNetNS(0), n.NodeNetNS(1), n.ControlPlaneNetNS()
	pods0, pods1 := []string{"10.244.0.5", "fd44::5"}, []string{"10.244.1.5", "fd44:0:0:1::5"}
	for k := range n.HostAddrs() {
		host, control := n.HostAddrs()[k].String(), n.ControlPlaneAddrs()[k].String()
		node0, node1 := n.NodeAddrs(0)[k].String(), n.NodeAddrs(1)[k].String()
		pod(t, n, 0, pods0[k])
		pod(t, n, 1, pods1[k])
		for netns, addrs := range map[string][]string{"": {host}, cp: {control}, n0: {node0, pods0[k]}, n1: {node1, pods1[k]}} {
			for _, addr := range addrs {
				serve(t, netns, addr)
			}
		}
		sees(t, n0, "", node1, node0)
		sees(t, n1, "", node0, node1)
		sees(t, n0, "", control, node0)
		sees(t, cp, "", node1, control)
		sees(t, "", "", node0, host)
		sees(t, n0, "", host, node0)
		sees(t, n0, pods0[k], pods1[k], pods0[k]) // pods see each other's own addresses,
		sees(t, n0, pods0[k], control, pods0[k])  // and so does the control plane,
		sees(t, cp, "", pods1[k], control)
		sees(t, n0, pods0[k], node1, pods0[k])
		sees(t, n1, pods1[k], host, node1) // but the host has no route back
	}
}

func TestWholeNetwork(t *testing.T) {
	n := start(t, 1)
	whole(t, n)
	checkTraffic(t, n)
}

func TestAgainChangesNothing(t *testing.T) {
	n := start(t, 2)
	whole(t, n)
	state := func() string {
		var b strings.Builder
		b.WriteString(snapshot(t))
		for _, netns := range []string{n.NodeNetNS(0), n.NodeNetNS(1), n.ControlPlaneNetNS()} {
			ok(t, In(netns, func() error {
				b.WriteString(snapshot(t))
				return nil
			}))
		}
		return b.String()
	}
	before := state()
	whole(t, n)
	if diff := cmp.Diff(before, state()); diff != "" {
		t.Error(diff)
	}
}

// TestMasqueradeToTheWorld has a host beyond the host, which knows only the latter.
func TestMasqueradeToTheWorld(t *testing.T) {
	n := start(t, 3)
	whole(t, n)
	world := netnsDir + "/bh-" + n.ID + "-world" // Down removes it: the name is one of the network's
	ok(t, makeNetNS(world))
	t.Cleanup(func() { exec.Command("ip", "link", "del", "world0").Run() })
	for _, command := range []string{
		"ip link add world0 type veth peer name world1 netns bh-" + n.ID + "-world",
		"ip link set world0 up",
		"ip addr add 198.51.100.1/24 dev world0",
		"ip addr add fd99::1/64 dev world0 nodad",
		"ip -n bh-" + n.ID + "-world link set world1 up",
		"ip -n bh-" + n.ID + "-world addr add 198.51.100.2/24 dev world1",
		"ip -n bh-" + n.ID + "-world addr add fd99::2/64 dev world1 nodad",
	} {
		args := strings.Fields(command)
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
	hostForwards(t)
	pods := []string{"10.244.0.5", "fd44::5"}
	for k, there := range []string{"198.51.100.2", "fd99::2"} {
		here := []string{"198.51.100.1", "fd99::1"}[k]
		serve(t, world, there)
		pod(t, n, 0, pods[k])
		sees(t, n.NodeNetNS(0), "", there, here)
		sees(t, n.NodeNetNS(0), pods[k], there, here)
		sees(t, n.ControlPlaneNetNS(), "", there, here)
	}
}

// hostForwards has the tests' host forward packets.
func hostForwards(t *testing.T) {
	t.Helper()
	for _, file := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		file = "/proc/sys/net/" + file
		old, err := os.ReadFile(file)
		ok(t, err)
		ok(t, os.WriteFile(file, []byte("1"), 0))
		t.Cleanup(func() { ok(t, os.WriteFile(file, old, 0)) })
	}
}

// Masquerading gives the pods of another cluster the host's address, which is trusted at HostPort.
func TestHostPortIsTheHosts(t *testing.T) {
	n, other := start(t, 15), start(t, 16)
	whole(t, n)
	whole(t, other)
	hostForwards(t)
	pods := []string{"10.244.0.5", "fd44::5"}
	for k, addr := range n.ControlPlaneAddrs() {
		control, host := addr.String(), n.HostAddrs()[k].String()
		serve(t, n.ControlPlaneNetNS(), control)
		serveAt(t, n.ControlPlaneNetNS(), control, HostPort)
		pod(t, n, 0, pods[k])
		pod(t, other, 0, pods[k])
		for _, c := range []struct{ netns, from, sees string }{
			{"", "", host}, {n.NodeNetNS(0), "", n.NodeAddrs(0)[k].String()}, {n.NodeNetNS(0), pods[k], pods[k]},
		} {
			if got, err := callAt(c.netns, c.from, control, HostPort, 5*time.Second); err != nil || got != c.sees {
				t.Errorf("from %q %s to %s: the server saw %q, %v; want %q", c.netns, c.from, control, got, err, c.sees)
			}
		}
		sees(t, other.NodeNetNS(0), pods[k], control, host) // at another port
		if got, err := callAt(other.NodeNetNS(0), pods[k], control, HostPort, time.Second); err == nil {
			t.Errorf("a pod of another cluster reached %s as %q", control, got)
		}
	}
	ok(t, Down(n)) // before the other one's end is compared with its beginning
}

func TestPartition(t *testing.T) {
	n := start(t, 4)
	if err := Partition(n, 1, true); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("partition of a node that isn't there: %v", err)
	}
	whole(t, n)
	for k, addr := range n.NodeAddrs(1) {
		serve(t, n.NodeNetNS(1), addr.String())
		sees(t, n.NodeNetNS(0), "", addr.String(), n.NodeAddrs(0)[k].String())
	}
	ok(t, Partition(n, 1, true))
	ok(t, Partition(n, 1, true))
	for _, addr := range n.NodeAddrs(1) {
		if got, err := call(n.NodeNetNS(0), "", addr.String()); err == nil {
			t.Errorf("node 0 reached node 1 at %s through a partition: %s", addr, got)
		}
	}
	ok(t, Partition(n, 1, false))
	for k, addr := range n.NodeAddrs(1) {
		await(t, func() error {
			got, err := call(n.NodeNetNS(0), "", addr.String())
			if err == nil && got != n.NodeAddrs(0)[k].String() {
				err = fmt.Errorf("the server saw %s", got)
			}
			return err
		})
	}
}

func await(t *testing.T, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// TestInterrupted stops after each of the steps: Down must remove what there is, and doing all again complete it.
func TestInterrupted(t *testing.T) {
	steps := func(n Network) []step {
		return append(n.upSteps(t.Context()), n.nodeSteps(t.Context(), 0, []int{1})...)
	}
	for k := range steps(Network{ID: "00000000"}) {
		t.Run(fmt.Sprintf("%d steps", k), func(t *testing.T) {
			t.Run("down", func(t *testing.T) {
				n := start(t, 5)
				ok(t, run(t.Context(), "test", steps(n)[:k]))
			})
			t.Run("up", func(t *testing.T) {
				n := start(t, 6)
				ok(t, run(t.Context(), "test", steps(n)[:k]))
				whole(t, n)
				serve(t, n.NodeNetNS(1), n.NodeAddrs(1)[0].String())
				sees(t, n.NodeNetNS(0), "", n.NodeAddrs(1)[0].String(), n.NodeAddrs(0)[0].String())
			})
		})
	}
}

// TestRepair damages a whole network in ways that an interruption between two system calls, or a person, would.
func TestRepair(t *testing.T) {
	command := func(line string) func(*testing.T, Network) {
		return func(t *testing.T, n Network) {
			args := strings.Fields(strings.NewReplacer("NETNS0", filepath.Base(n.NodeNetNS(0)), "VETH0", n.nodeVeth(0), "VETHCP", n.controlPlaneVeth(),
				"BRIDGE", n.Bridge(), "TABLE", n.hostTable()).Replace(line))
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v\n%s", args, err, out)
			}
		}
	}
	cases := map[string]func(*testing.T, Network){
		"bridge gone":              command("ip link del BRIDGE"),
		"bridge down":              command("ip link set BRIDGE down"),
		"bridge without addresses": command("ip addr flush dev BRIDGE"),
		"bridge with another":      command("ip addr add 10.88.99.1/24 dev BRIDGE"),
		"host table gone":          command("nft delete table inet TABLE"),
		"node table emptied":       command("ip netns exec NETNS0 nft flush ruleset"),
		"veth gone":                command("ip link del VETH0"),
		"control plane veth gone":  command("ip link del VETHCP"),
		"veth not joined":          command("ip link set VETH0 nomaster"),
		"eth0 down":                command("ip -n NETNS0 link set eth0 down"),
		"eth0 renamed": func(t *testing.T, n Network) {
			command("ip -n NETNS0 link set eth0 down")(t, n)
			command("ip -n NETNS0 link set eth0 name eth7")(t, n)
		},
		"an eth0 of another kind": func(t *testing.T, n Network) {
			command("ip link del VETH0")(t, n)
			command("ip netns exec NETNS0 ip tuntap add eth0 mode tap")(t, n)
		},
		"routes gone":    command("ip -n NETNS0 route flush proto 88"),
		"default gone":   command("ip -n NETNS0 route del default"),
		"forwarding off": command("ip netns exec NETNS0 sysctl -q -w net.ipv4.ip_forward=0"),
		"loopback down":  command("ip -n NETNS0 link set lo down"),
		"namespace's mount gone, its veth there": func(t *testing.T, n Network) {
			f, err := openNetNS(n.NodeNetNS(0))
			ok(t, err)
			t.Cleanup(func() { f.Close() }) // as a process in it would
			ok(t, unix.Unmount(n.NodeNetNS(0), unix.MNT_DETACH))
		},
		"namespace mounted twice": func(t *testing.T, n Network) {
			ok(t, unix.Mount(n.NodeNetNS(0), n.NodeNetNS(0), "", unix.MS_BIND, ""))
		},
	}
	for name, damage := range cases {
		t.Run(name, func(t *testing.T) {
			for _, then := range []string{"down", "up"} {
				t.Run(then, func(t *testing.T) {
					n := start(t, 7)
					whole(t, n)
					damage(t, n)
					if then == "up" {
						whole(t, n)
						checkTraffic(t, n)
						checkForwarding(t, n)
					}
				})
			}
		})
	}
}

func checkForwarding(t *testing.T, n Network) {
	t.Helper()
	ok(t, In(n.NodeNetNS(0), func() error {
		value, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		if err == nil && strings.TrimSpace(string(value)) != "1" {
			t.Errorf("ip_forward is %s", value)
		}
		return err
	}))
}

func TestRoutesFollowTheNodes(t *testing.T) {
	n := start(t, 8)
	whole(t, n)
	ok(t, NodeUp(t.Context(), n, 2, []int{0, 1}))
	ok(t, Routes(n, []int{0, 1, 2}))
	podRoutesOf := func(netns string) string {
		var out []byte
		ok(t, In(netns, func() (err error) {
			out, err = exec.Command("sh", "-c", "ip -o route show proto 88; ip -6 -o route show proto 88").CombinedOutput()
			return err
		}))
		var got []string
		for line := range strings.Lines(string(out)) {
			f := strings.Fields(line)
			got = append(got, f[0]+" "+f[2])
		}
		return strings.Join(got, ", ")
	}
	v6 := strings.TrimSuffix(n.Subnets()[1].String(), "/64")
	want := map[string]string{
		n.ControlPlaneNetNS(): "10.244.0.0/24 10.88.8.10, 10.244.1.0/24 10.88.8.11, 10.244.2.0/24 10.88.8.12, " +
			"fd44::/64 " + v6 + "10, fd44:0:0:1::/64 " + v6 + "11, fd44:0:0:2::/64 " + v6 + "12",
		n.NodeNetNS(1): "10.244.0.0/24 10.88.8.10, 10.244.2.0/24 10.88.8.12, fd44::/64 " + v6 + "10, fd44:0:0:2::/64 " + v6 + "12",
	}
	for netns, routes := range want {
		if got := podRoutesOf(netns); got != routes {
			t.Errorf("%s: pod routes are %s\nwant %s", netns, got, routes)
		}
	}

	ok(t, NodeDown(n, 2))
	ok(t, NodeDown(n, 2))
	if err := Routes(n, []int{0, 1, 2}); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("Routes with a node that isn't there: %v", err)
	}
	ok(t, Routes(n, []int{0, 1}))
	if got, want := podRoutesOf(n.NodeNetNS(1)), "10.244.0.0/24 10.88.8.10, fd44::/64 "+v6+"10"; got != want {
		t.Errorf("after node 2 has gone, pod routes are %s; want %s", got, want)
	}
	serve(t, n.NodeNetNS(1), n.NodeAddrs(1)[0].String())
	sees(t, n.NodeNetNS(0), "", n.NodeAddrs(1)[0].String(), n.NodeAddrs(0)[0].String())
}

// TestForeign has links of others with this network's names: they are named in an error, and never touched.
func TestForeign(t *testing.T) {
	add := func(t *testing.T, name, kind string, more ...string) {
		t.Helper()
		out, err := exec.Command("ip", append([]string{"link", "add", name, "type", kind}, more...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Cleanup(func() { exec.Command("ip", "link", "del", name).Run() })
	}
	n := Network{ID: "abcdef12", Subnet: 9}
	t.Run("bridge", func(t *testing.T) {
		add(t, n.Bridge(), "veth", "peer", "name", "foreign")
		for what, err := range map[string]error{"Up": Up(t.Context(), n), "Down": Down(n)} {
			if !errors.Is(err, errdefs.ErrAlreadyExists) || !strings.Contains(err.Error(), n.Bridge()+" is a veth") {
				t.Errorf("%s: %v", what, err)
			}
		}
		if link, err := find(n.Bridge()); err != nil || link == nil {
			t.Errorf("the other's link is gone: %v", err)
		}
	})
	t.Run("veth", func(t *testing.T) {
		add(t, n.nodeVeth(0), "bridge")
		ok(t, Up(t.Context(), n))
		for what, err := range map[string]error{"NodeUp": NodeUp(t.Context(), n, 0, nil), "NodeDown": NodeDown(n, 0)} {
			if !errors.Is(err, errdefs.ErrAlreadyExists) {
				t.Errorf("%s: %v", what, err)
			}
		}
		ok(t, Down(n))
		if link, err := find(n.nodeVeth(0)); err != nil || link == nil {
			t.Errorf("the other's link is gone: %v", err)
		}
	})
	t.Run("network whose ID begins alike", func(t *testing.T) {
		other := Network{ID: "abcdef99", Subnet: 10}
		ok(t, Up(t.Context(), other))
		ok(t, NodeUp(t.Context(), other, 0, nil))
		if err := Up(t.Context(), n); !errors.Is(err, errdefs.ErrAlreadyExists) {
			t.Errorf("Up: %v", err)
		}
		ok(t, Down(n))
		serve(t, other.NodeNetNS(0), other.NodeAddrs(0)[0].String())
		sees(t, "", "", other.NodeAddrs(0)[0].String(), other.HostAddrs()[0].String())
		ok(t, Down(other))
	})
}

func TestTwoNetworks(t *testing.T) {
	a, b := start(t, 11), start(t, 12)
	whole(t, a)
	if taken, err := FreeSubnet(nil); err != nil || taken == 11 {
		t.Errorf("FreeSubnet: %d, %v, which network %s has", taken, err, a.ID)
	}
	whole(t, b)
	for _, n := range []Network{a, b} {
		serve(t, n.NodeNetNS(1), n.NodeAddrs(1)[0].String())
		sees(t, n.NodeNetNS(0), "", n.NodeAddrs(1)[0].String(), n.NodeAddrs(0)[0].String())
	}
	ok(t, Down(a))
	sees(t, b.NodeNetNS(0), "", b.NodeAddrs(1)[0].String(), b.NodeAddrs(0)[0].String())
}

// The subnet of a cluster that is stopped isn't to be seen on the host, and another one may have taken it.
func TestSubnetIsTakenMeanwhile(t *testing.T) {
	n := start(t, 17)
	other := Network{ID: "abcfffff", Subnet: n.Subnet}
	ok(t, Up(t.Context(), other))
	if err := Up(t.Context(), n); !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "10.88.17.0/24") {
		t.Errorf("with the subnet of network %s: %v", other.ID, err)
	}
	if link, err := find(n.Bridge()); err != nil || link != nil {
		t.Errorf("bridge %s was made: %v", n.Bridge(), err)
	}
	ok(t, Down(other))
	ok(t, Up(t.Context(), n))
	ok(t, Up(t.Context(), n))
	// One that has it already is left to work as well as it can.
	ok(t, addLink(t, "meanwhile0", "10.88.17.128/25"))
	ok(t, Up(t.Context(), n))
}

// addLink makes a link with an address, until the end of the test.
func addLink(t *testing.T, name, addr string) error {
	t.Helper()
	t.Cleanup(func() { exec.Command("ip", "link", "del", name).Run() })
	for _, args := range [][]string{{"link", "add", name, "type", "bridge"}, {"addr", "add", addr, "dev", name}, {"link", "set", name, "up"}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
		}
	}
	return nil
}

// A cluster that goes removes the directory for network namespaces as soon as nobody uses it, also while another one comes.
func TestComeAndGoAtOnce(t *testing.T) {
	a, b := start(t, 18), start(t, 19)
	var group sync.WaitGroup
	for _, n := range []Network{a, b} {
		group.Go(func() {
			for range 50 {
				if err := makeNetNS(n.ControlPlaneNetNS()); err != nil {
					t.Error(err)
				}
				if err := errors.Join(removeNetNS(n.ControlPlaneNetNS()), removeNetNSDir()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	for _, path := range []string{netnsDir, madeNetNSDir} {
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
}

func TestDirectoryOfOthersStays(t *testing.T) {
	ok(t, os.Mkdir(netnsDir, 0o755))
	t.Cleanup(func() { os.Remove(netnsDir) })
	n := start(t, 13)
	whole(t, n)
}

func TestNetNSThatIsNone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	ok(t, os.WriteFile(file, nil, 0o600))
	for path, class := range map[string]error{"/run/netns/none": errdefs.ErrNotFound, file: errdefs.ErrNotFound, "/proc/self/ns/uts": errdefs.ErrInvalidArgument} {
		if err := In(path, func() error { return nil }); !errors.Is(err, class) {
			t.Errorf("%s: %v, want %v", path, err, class)
		}
	}
	mistake := errors.New("mistake")
	if err := In("/proc/self/ns/net", func() error { return mistake }); !errors.Is(err, mistake) {
		t.Errorf("the function's error is lost: %v", err)
	}
}

func TestWithoutNft(t *testing.T) {
	n := start(t, 14)
	// Nothing to look programs up in: PATH is empty and the system's directories are hidden.
	t.Setenv("PATH", "")
	empty := t.TempDir()
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		dir, err := filepath.EvalSymlinks(dir)
		ok(t, err)
		ok(t, unix.Mount(empty, dir, "", unix.MS_BIND, ""))
		defer unix.Unmount(dir, unix.MNT_DETACH)
	}
	err := Up(t.Context(), n)
	if !errors.Is(err, errdefs.ErrFailedPrecondition) || !strings.Contains(err.Error(), "nftables") {
		t.Errorf("Up without nft: %v", err)
	}
	if err := Down(n); err != nil {
		t.Errorf("Down of nothing without nft: %v", err)
	}
}
