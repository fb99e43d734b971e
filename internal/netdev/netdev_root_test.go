//go:build root

package netdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	podMAC  = "02:00:00:00:00:02"
	peerMAC = "02:00:00:00:00:01"
)

// pod is a pair of network namespaces joined by a veth, as a CNI plugin would make them: the pod's, and the peer's, which
// stands for the host and has a real IP stack. The test process's own namespace is untouched.
type pod struct {
	t         *testing.T
	pod, peer string // names, for ip netns
}

func newPod(t *testing.T, mtu int) *pod {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	name := fmt.Sprintf("bh-netdev-%d-%d", os.Getpid(), time.Now().UnixNano()%1e6)
	p := &pod{t: t, pod: name + "-pod", peer: name + "-peer"}
	for _, ns := range []string{p.pod, p.peer} {
		p.run("ip", "netns", "add", ns)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", ns).Run() })
	}
	p.ip(p.peer, "link add peer0 address "+peerMAC+" mtu "+strconv.Itoa(mtu)+" type veth peer name eth0 address "+podMAC+
		" mtu "+strconv.Itoa(mtu)+" netns "+p.pod)
	for _, ns := range []string{p.pod, p.peer} {
		p.ip(ns, "link set lo up")
	}
	p.ip(p.pod, "addr add 10.1.0.2/24 dev eth0")
	p.ip(p.pod, "addr add fd00::2/64 dev eth0 nodad")
	p.ip(p.peer, "addr add 10.1.0.1/24 dev peer0")
	p.ip(p.peer, "addr add fd00::1/64 dev peer0 nodad")
	p.ip(p.pod, "link set eth0 up")
	p.ip(p.peer, "link set peer0 up")
	return p
}

func (p *pod) path() string { return "/run/netns/" + p.pod }

func (p *pod) run(name string, args ...string) string {
	p.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		p.t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func (p *pod) ip(ns, command string) string {
	p.t.Helper()
	return p.run("ip", append([]string{"-n", ns}, strings.Fields(command)...)...)
}

// state is what must be the same before Attach and after Close.
func (p *pod) state() string {
	return p.run("tc", "-n", p.pod, "qdisc", "show") + p.run("tc", "-n", p.pod, "filter", "show", "dev", "eth0", "ingress") +
		p.ip(p.pod, "-o -br link") + p.ip(p.pod, "-o -br addr") + p.ip(p.pod, "route") + p.ip(p.pod, "-6 route") +
		p.run("ip", "netns", "exec", p.pod, "nft", "list", "ruleset")
}

func (p *pod) attach() (*Link, *guest) {
	p.t.Helper()
	link, err := Attach(p.path())
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { link.Close() })
	return link, newGuest(p.t, link)
}

// guest plays the VM: it reads and writes frames with their virtio header on a duplicate of the tap's descriptor.
type guest struct {
	t   *testing.T
	tap *os.File
}

const vnetHeader = 10 // struct virtio_net_hdr

func newGuest(t *testing.T, link *Link) *guest {
	t.Helper()
	fd, err := unix.FcntlInt(link.NICs[0].Tap.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, tap: os.NewFile(uintptr(fd), "tap")}
	t.Cleanup(func() { g.tap.Close() })
	return g
}

func (g *guest) send(header, frame []byte) {
	g.t.Helper()
	if header == nil {
		header = make([]byte, vnetHeader)
	}
	if _, err := g.tap.Write(slices.Concat(header, frame)); err != nil {
		g.t.Fatalf("write %d bytes to the tap: %v", len(frame), err)
	}
}

// receive returns the first frame that match accepts. It repeats again before each try.
func (g *guest) receive(what string, again func(), match func(frame []byte) bool) []byte {
	g.t.Helper()
	buffer := make([]byte, 70000)
	for range 30 {
		if again != nil {
			again()
		}
		g.tap.SetReadDeadline(time.Now().Add(time.Second))
		for {
			n, err := g.tap.Read(buffer)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				g.t.Fatal(err)
			}
			if frame := buffer[vnetHeader:n]; match(frame) {
				return slices.Clone(frame)
			}
		}
	}
	g.t.Fatalf("the guest never saw %s", what)
	return nil
}

// udpPeer is a socket in the peer's namespace.
func (p *pod) udpPeer(network, address string) net.PacketConn {
	p.t.Helper()
	var conn net.PacketConn
	inNamed(p.t, p.peer, func() error {
		var err error
		conn, err = net.ListenPacket(network, address)
		return err
	})
	p.t.Cleanup(func() { conn.Close() })
	return conn
}

func inNamed(t *testing.T, name string, f func() error) {
	t.Helper()
	if err := tryIn(name, f); err != nil {
		t.Fatal(err)
	}
}

func tryIn(name string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		done <- inNetNS("/run/netns/"+name, func(*netlink.Handle) error { return f() })
	}()
	return <-done
}

func ether(dst, src string, etherType uint16, payload []byte) []byte {
	d, _ := net.ParseMAC(dst)
	s, _ := net.ParseMAC(src)
	return slices.Concat(d, s, binary.BigEndian.AppendUint16(nil, etherType), payload)
}

func arp(op uint16, senderMAC, sender, targetMAC, target string) []byte {
	s, _ := net.ParseMAC(senderMAC)
	d, _ := net.ParseMAC(targetMAC)
	head := []byte{0, 1, 8, 0, 6, 4}
	return slices.Concat(head, binary.BigEndian.AppendUint16(nil, op), s, netip.MustParseAddr(sender).AsSlice(), d,
		netip.MustParseAddr(target).AsSlice())
}

func sum(data ...[]byte) uint16 {
	var s uint32
	all := bytes.Join(data, nil)
	if len(all)%2 == 1 {
		all = append(all, 0)
	}
	for i := 0; i < len(all); i += 2 {
		s += uint32(binary.BigEndian.Uint16(all[i:]))
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// udp makes an IP packet. With offload the checksum is only begun, as a guest with checksum offload leaves it.
func udp(src, dst netip.AddrPort, payload []byte, offload bool) []byte {
	length := uint16(8 + len(payload))
	var head, pseudo []byte
	if src.Addr().Is4() {
		head = []byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0}
		binary.BigEndian.PutUint16(head[2:], 20+length)
		head = slices.Concat(head, src.Addr().AsSlice(), dst.Addr().AsSlice())
		binary.BigEndian.PutUint16(head[10:], ^sum(head))
	} else {
		head = []byte{0x60, 0, 0, 0, 0, 0, 17, 64}
		binary.BigEndian.PutUint16(head[4:], length)
		head = slices.Concat(head, src.Addr().AsSlice(), dst.Addr().AsSlice())
	}
	pseudo = slices.Concat(src.Addr().AsSlice(), dst.Addr().AsSlice(), []byte{0, 17}, binary.BigEndian.AppendUint16(nil, length))
	u := make([]byte, 8)
	binary.BigEndian.PutUint16(u, src.Port())
	binary.BigEndian.PutUint16(u[2:], dst.Port())
	binary.BigEndian.PutUint16(u[4:], length)
	check := sum(pseudo)
	if !offload {
		check = ^sum(pseudo, u, payload)
	}
	binary.BigEndian.PutUint16(u[6:], check)
	return slices.Concat(head, u, payload)
}

func TestAttachDescribesTheNamespace(t *testing.T) {
	p := newPod(t, 1450)
	p.ip(p.pod, "link add br9 type bridge") // down: not for the guest
	p.ip(p.pod, "route add 169.254.1.1 dev eth0 scope link")
	p.ip(p.pod, "route add default via 169.254.1.1 dev eth0")
	p.ip(p.pod, "route add 172.20.0.0/16 via 192.0.2.1 dev eth0 onlink metric 77 src 10.1.0.2")
	p.ip(p.pod, "-6 route add default via fd00::1 dev eth0")
	p.ip(p.pod, "neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent")
	p.ip(p.pod, "neigh add fd00::1 lladdr ee:ee:ee:ee:ee:ef dev eth0 nud permanent")
	p.ip(p.pod, "neigh add 10.1.0.9 lladdr ee:ee:ee:ee:ee:e0 dev eth0 nud reachable")
	link, _ := p.attach()

	mac, _ := net.ParseMAC(podMAC)
	wantInterfaces := []Interface{{
		Name: "eth0", MAC: mac, MTU: 1450,
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.0.2/24"), netip.MustParsePrefix("fd00::2/64")},
	}}
	compare := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	compareAddr := cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	if diff := cmp.Diff(wantInterfaces, link.Interfaces, compare); diff != "" {
		t.Errorf("interfaces (-want +got):\n%s", diff)
	}
	wantRoutes := []Route{
		{Interface: "eth0", Destination: netip.MustParsePrefix("10.1.0.0/24"), Source: netip.MustParseAddr("10.1.0.2"), Scope: 253},
		{Interface: "eth0", Destination: netip.MustParsePrefix("169.254.1.1/32"), Scope: 253},
		{Interface: "eth0", Destination: netip.MustParsePrefix("fd00::/64"), Metric: 256},
		{Interface: "eth0", Destination: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("169.254.1.1")},
		{
			Interface: "eth0", Destination: netip.MustParsePrefix("172.20.0.0/16"), Gateway: netip.MustParseAddr("192.0.2.1"),
			Source: netip.MustParseAddr("10.1.0.2"), Metric: 77, OnLink: true,
		},
		{Interface: "eth0", Destination: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fd00::1"), Metric: 1024},
	}
	if diff := cmp.Diff(wantRoutes, link.Routes, compare, compareAddr); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	byAddress := map[string]string{}
	for _, n := range link.Neighbours {
		byAddress[n.Address.String()] = n.Interface + " " + n.MAC.String()
	}
	wantNeighbours := map[string]string{"169.254.1.1": "eth0 ee:ee:ee:ee:ee:ee", "fd00::1": "eth0 ee:ee:ee:ee:ee:ef"}
	if diff := cmp.Diff(wantNeighbours, byAddress); diff != "" {
		t.Errorf("neighbours (-want +got):\n%s", diff)
	}
	if nic := link.NICs[0]; nic.MAC.String() != podMAC || nic.MTU != 1450 || nic.Tap == nil {
		t.Errorf("NIC = %+v", nic)
	}
	if out := p.ip(p.pod, "link show bhtap0"); !strings.Contains(out, "mtu 1450") {
		t.Errorf("the tap: %s", out)
	}
}

func TestGuestSpeaksAndTheHostIsSilent(t *testing.T) {
	p := newPod(t, 1500)
	_, g := p.attach()

	// The peer asks who has the address; only the guest hears it. If the pod namespace's stack answered, the entry would
	// be reachable without the guest's answer.
	peer := p.udpPeer("udp4", "10.1.0.1:4000")
	guestAddr := &net.UDPAddr{IP: net.IPv4(10, 1, 0, 2), Port: 5000}
	question := ether("ff:ff:ff:ff:ff:ff", peerMAC, 0x0806, arp(1, peerMAC, "10.1.0.1", "00:00:00:00:00:00", "10.1.0.2"))
	send := func() { peer.WriteTo([]byte("to the guest"), guestAddr) }
	g.receive("an ARP question", send, func(f []byte) bool { return bytes.HasPrefix(f, question) })
	if out := p.ip(p.peer, "neigh show 10.1.0.2"); strings.Contains(out, podMAC) {
		t.Errorf("somebody answered ARP before the guest did: %s", out)
	}

	g.send(nil, ether(peerMAC, podMAC, 0x0806, arp(2, podMAC, "10.1.0.2", peerMAC, "10.1.0.1")))
	g.receive("a UDP packet", send, func(f []byte) bool { return bytes.Contains(f, []byte("to the guest")) })

	// And back, with an unfinished checksum, which the receiving stack must take as it is.
	src, dst := netip.MustParseAddrPort("10.1.0.2:5000"), netip.MustParseAddrPort("10.1.0.1:4000")
	header := make([]byte, vnetHeader)
	header[0] = 1                                 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	binary.NativeEndian.PutUint16(header[6:], 34) // where the checksummed part starts
	binary.NativeEndian.PutUint16(header[8:], 6)  // where in it the checksum is
	for _, offload := range []bool{false, true} {
		h := header
		if !offload {
			h = nil
		}
		g.send(h, ether(peerMAC, podMAC, 0x0800, udp(src, dst, []byte(fmt.Sprintf("offload %v", offload)), offload)))
		buffer := make([]byte, 2000)
		peer.SetReadDeadline(time.Now().Add(30 * time.Second))
		n, from, err := peer.ReadFrom(buffer)
		if err != nil {
			t.Fatalf("offload %v: %v", offload, err)
		}
		if got := string(buffer[:n]); got != fmt.Sprintf("offload %v", offload) || from.String() != src.String() {
			t.Errorf("the peer got %q from %v", got, from)
		}
	}
}

func TestTCPReachesNobodyButTheGuest(t *testing.T) {
	p := newPod(t, 1500)
	var listener net.Listener // in the pod's namespace, where a stray stack would accept
	inNamed(t, p.pod, func() error {
		var err error
		listener, err = net.Listen("tcp4", "10.1.0.2:80")
		return err
	})
	defer listener.Close()
	_, g := p.attach()
	p.ip(p.peer, "neigh add 10.1.0.2 lladdr "+podMAC+" dev peer0 nud permanent")

	connected := make(chan error, 1)
	go func() {
		connected <- tryIn(p.peer, func() error {
			conn, err := net.DialTimeout("tcp4", "10.1.0.2:80", time.Minute)
			if err == nil {
				conn.Close()
			}
			return err
		})
	}()
	syn := g.receive("a SYN", nil, func(f []byte) bool { return len(f) > 47 && f[12] == 8 && f[23] == 6 && f[47]&2 != 0 })

	// The guest refuses. Had the namespace's stack seen the SYN, the connection would be there.
	reply := slices.Clone(syn[34:54])
	copy(reply[0:2], syn[36:38])
	copy(reply[2:4], syn[34:36])
	binary.BigEndian.PutUint32(reply[4:], 0)
	binary.BigEndian.PutUint32(reply[8:], binary.BigEndian.Uint32(syn[38:42])+1)
	reply[12], reply[13] = 5<<4, 0x14 // RST, ACK
	reply[16], reply[17] = 0, 0
	pseudo := slices.Concat(syn[30:34], syn[26:30], []byte{0, 6, 0, 20})
	binary.BigEndian.PutUint16(reply[16:], ^sum(pseudo, reply))
	head := []byte{0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 10, 1, 0, 2, 10, 1, 0, 1}
	binary.BigEndian.PutUint16(head[10:], ^sum(head))
	g.send(nil, ether(peerMAC, podMAC, 0x0800, slices.Concat(head, reply)))
	if err := <-connected; !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dial = %v; want the guest's refusal", err)
	}
}

func TestIPv6(t *testing.T) {
	p := newPod(t, 1500)
	_, g := p.attach()
	peer := p.udpPeer("udp6", "[fd00::1]:4000")
	guestAddr := &net.UDPAddr{IP: net.ParseIP("fd00::2"), Port: 5000}
	send := func() { peer.WriteTo([]byte("to the guest"), guestAddr) }
	target := netip.MustParseAddr("fd00::2").AsSlice()
	g.receive("a neighbour solicitation", send, func(f []byte) bool {
		return len(f) >= 78 && f[12] == 0x86 && f[20] == 58 && f[54] == 135 && bytes.Equal(f[62:78], target)
	})
	if out := p.ip(p.peer, "neigh show fd00::2"); strings.Contains(out, podMAC) {
		t.Errorf("somebody answered before the guest did: %s", out)
	}
	p.ip(p.peer, "neigh replace fd00::2 lladdr "+podMAC+" dev peer0 nud permanent")
	g.receive("a UDP packet", send, func(f []byte) bool { return bytes.Contains(f, []byte("to the guest")) })
	g.send(nil, ether(peerMAC, podMAC, 0x86dd,
		udp(netip.MustParseAddrPort("[fd00::2]:5000"), netip.MustParseAddrPort("[fd00::1]:4000"), []byte("back"), false)))
	buffer := make([]byte, 100)
	peer.SetReadDeadline(time.Now().Add(30 * time.Second))
	if n, _, err := peer.ReadFrom(buffer); err != nil || string(buffer[:n]) != "back" {
		t.Errorf("the peer got %q, %v", buffer[:n], err)
	}
}

func TestTheStackSendsTheGuestNothing(t *testing.T) {
	p := newPod(t, 1500)
	_, g := p.attach()
	// What the namespace's own stack would say on a new interface it says in the first seconds: router solicitations,
	// duplicate address detection, multicast reports, all with the tap's own address as the source.
	var own string
	for _, field := range strings.Fields(p.ip(p.pod, "-o link show bhtap0")) {
		if mac, err := net.ParseMAC(field); err == nil && len(mac) == 6 && field != "ff:ff:ff:ff:ff:ff" {
			own = field
		}
	}
	want, err := net.ParseMAC(own)
	if err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 70000)
	g.tap.SetReadDeadline(time.Now().Add(2 * time.Second))
	for {
		n, err := g.tap.Read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if frame := buffer[vnetHeader:n]; bytes.Equal(frame[6:12], want) {
			t.Errorf("the namespace's stack sent %x", frame)
		}
	}
}

func TestLargeFrames(t *testing.T) {
	for _, mtu := range []int{1500, 9000} {
		t.Run(strconv.Itoa(mtu), func(t *testing.T) {
			p := newPod(t, mtu)
			_, g := p.attach()
			p.ip(p.peer, "neigh add 10.1.0.2 lladdr "+podMAC+" dev peer0 nud permanent")
			peer := p.udpPeer("udp4", "10.1.0.1:4000")
			payload := bytes.Repeat([]byte("x"), mtu-28)
			send := func() { peer.WriteTo(payload, &net.UDPAddr{IP: net.IPv4(10, 1, 0, 2), Port: 5000}) }
			g.receive("a full frame", send, func(f []byte) bool { return len(f) == 14+mtu && bytes.HasSuffix(f, payload) })

			src, dst := netip.MustParseAddrPort("10.1.0.2:5000"), netip.MustParseAddrPort("10.1.0.1:4000")
			g.send(nil, ether(peerMAC, podMAC, 0x0800, udp(src, dst, payload, false)))
			buffer := make([]byte, 10000)
			peer.SetReadDeadline(time.Now().Add(30 * time.Second))
			if n, _, err := peer.ReadFrom(buffer); err != nil || n != len(payload) {
				t.Errorf("the peer got %d bytes, %v; want %d", n, err, len(payload))
			}
		})
	}
}

func TestMacvlan(t *testing.T) {
	p := newPod(t, 1500)
	p.ip(p.pod, "addr flush dev eth0") // it only carries the macvlans' parent
	const mac = "02:00:00:00:00:33"
	p.ip(p.peer, "link add mv1 address 02:00:00:00:00:31 link peer0 type macvlan mode bridge")
	p.ip(p.peer, "link add mv0 address "+mac+" link peer0 netns "+p.pod+" type macvlan mode bridge")
	p.ip(p.peer, "addr add 10.3.0.1/24 dev mv1")
	p.ip(p.peer, "link set mv1 up")
	p.ip(p.pod, "addr add 10.3.0.2/24 dev mv0")
	p.ip(p.pod, "link set mv0 up")
	link, g := p.attach()
	if len(link.Interfaces) != 1 || link.Interfaces[0].Name != "mv0" || link.Interfaces[0].MAC.String() != mac {
		t.Fatalf("interfaces = %+v", link.Interfaces)
	}
	p.ip(p.peer, "neigh add 10.3.0.2 lladdr "+mac+" dev mv1 nud permanent")
	peer := p.udpPeer("udp4", "10.3.0.1:4000")
	send := func() { peer.WriteTo([]byte("to the guest"), &net.UDPAddr{IP: net.IPv4(10, 3, 0, 2), Port: 5000}) }
	g.receive("a UDP packet", send, func(f []byte) bool { return bytes.Contains(f, []byte("to the guest")) })
	g.send(nil, ether("02:00:00:00:00:31", mac, 0x0800,
		udp(netip.MustParseAddrPort("10.3.0.2:5000"), netip.MustParseAddrPort("10.3.0.1:4000"), []byte("back"), false)))
	buffer := make([]byte, 100)
	peer.SetReadDeadline(time.Now().Add(30 * time.Second))
	if n, _, err := peer.ReadFrom(buffer); err != nil || string(buffer[:n]) != "back" {
		t.Errorf("the peer got %q, %v", buffer[:n], err)
	}
}

func TestTwoInterfaces(t *testing.T) {
	p := newPod(t, 1500)
	p.ip(p.peer, "link add peer1 type veth peer name net1 netns "+p.pod)
	p.ip(p.pod, "addr add 10.2.0.2/24 dev net1")
	p.ip(p.pod, "link set net1 up")
	link, err := Attach(p.path())
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	var names []string
	for _, i := range link.Interfaces {
		names = append(names, i.Name)
	}
	if len(link.NICs) != 2 || !slices.Contains(names, "eth0") || !slices.Contains(names, "net1") {
		t.Errorf("%d NICs, interfaces %v", len(link.NICs), names)
	}
}

func TestAttachDetachAttach(t *testing.T) {
	p := newPod(t, 1500)
	before := p.state()

	link, _ := p.attach()
	if _, err := Attach(p.path()); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second Attach = %v; want AlreadyExists", err)
	}
	if err := link.Close(); err != nil {
		t.Fatal(err)
	}
	if err := link.Close(); err != nil {
		t.Errorf("a second Close = %v", err)
	}
	if diff := cmp.Diff(before, p.state()); diff != "" {
		t.Errorf("after Close (-before +after):\n%s", diff)
	}

	// A crash of the shim while the VMM lives on: its descriptor keeps the tap.
	link, g := p.attach()
	link.closeTaps()
	if _, err := g.tap.Stat(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Detach(p.path()); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(before, p.state()); diff != "" {
		t.Errorf("after Detach with the tap still open (-before +after):\n%s", diff)
	}

	// A crash of both: the tap went by itself and the redirect leads nowhere.
	link, g = p.attach()
	g.tap.Close()
	link.closeTaps()
	if _, err := Attach(p.path()); !errdefs.IsAlreadyExists(err) {
		t.Errorf("Attach over a dead join = %v; want AlreadyExists", err)
	}
	if err := Detach(p.path()); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, p.state()); diff != "" {
		t.Errorf("after Detach without the tap (-before +after):\n%s", diff)
	}
	link, _ = p.attach()
	if err := link.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOthersQdiscIsLeftAlone(t *testing.T) {
	for _, kind := range []string{"ingress", "clsact"} {
		t.Run(kind, func(t *testing.T) {
			p := newPod(t, 1500)
			p.run("tc", "-n", p.pod, "qdisc", "add", "dev", "eth0", kind)
			p.run("tc", "-n", p.pod, "filter", "add", "dev", "eth0", "ingress", "protocol", "all", "prio", "5", "u32", "match", "u32", "0", "0")
			before := p.state()
			if _, err := Attach(p.path()); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("Attach = %v; want FailedPrecondition", err)
			}
			if err := Detach(p.path()); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(before, p.state()); diff != "" {
				t.Errorf("(-before +after):\n%s", diff)
			}
		})
	}
}

func TestHalfAJoinIsUndone(t *testing.T) {
	p := newPod(t, 1500)
	before := p.state()
	// The second interface can't be joined, which is found out after the first one was.
	p.ip(p.peer, "link add peer1 type veth peer name net1 netns "+p.pod)
	p.ip(p.pod, "addr add 10.2.0.2/24 dev net1")
	p.ip(p.pod, "link set net1 up")
	p.run("tc", "-n", p.pod, "qdisc", "add", "dev", "net1", "clsact")
	if _, err := Attach(p.path()); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("Attach = %v; want FailedPrecondition", err)
	}
	p.ip(p.pod, "link del net1")
	if diff := cmp.Diff(before, p.state()); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}

	// A crash right after the qdisc was made.
	p.run("tc", "-n", p.pod, "qdisc", "add", "dev", "eth0", "ingress")
	link, _ := p.attach()
	if err := link.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, p.state()); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
}

func TestNamespacesThatCannotBe(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path string
		class      func(error) bool
		detach     bool // whether Detach takes it for done
	}{
		{"missing", gone, errdefs.IsNotFound, true},
		{"beneath a file", filepath.Join(file, "x"), errdefs.IsNotFound, true},
		{"regular file", file, errdefs.IsNotFound, true},
		{"another kind", "/proc/self/ns/uts", errdefs.IsInvalidArgument, false},
		{"the host's own", "/proc/self/ns/net", errdefs.IsInvalidArgument, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Attach(c.path)
			if !c.class(err) || !strings.Contains(err.Error(), c.path) {
				t.Errorf("Attach = %v", err)
			}
			if err := Detach(c.path); (err == nil) != c.detach {
				t.Errorf("Detach = %v", err)
			}
		})
	}
}

func TestInterfacesThatCannotBeHandedOver(t *testing.T) {
	p := newPod(t, 1500)
	p.ip(p.pod, "link add br9 type bridge")
	p.ip(p.pod, "addr add 10.9.0.1/24 dev br9")
	p.ip(p.pod, "link set br9 up")
	if _, err := Attach(p.path()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "br9") {
		t.Errorf("Attach = %v; want FailedPrecondition that names br9", err)
	}
	p.ip(p.pod, "link del br9")
	p.ip(p.pod, "route add 10.77.0.0/16 nexthop via 10.1.0.1 dev eth0 nexthop via 10.1.0.3 dev eth0")
	if _, err := Attach(p.path()); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "10.77.0.0/16") {
		t.Errorf("Attach = %v; want FailedPrecondition that names the route", err)
	}
}

func TestNoInterfaceIsNoNIC(t *testing.T) {
	p := newPod(t, 1500)
	p.ip(p.pod, "link set eth0 down")
	link, err := Attach(p.path())
	if err != nil || len(link.NICs) != 0 {
		t.Fatalf("Attach = %+v, %v; want no NICs", link, err)
	}
	if err := link.Close(); err != nil {
		t.Error(err)
	}
}

// Whoever connects to the loopback address in the namespace gets to us, whatever the port.
func TestLoopback(t *testing.T) {
	p := newPod(t, 1500)
	link, _ := p.attach()
	if link.Loopback == nil {
		t.Fatal(link.LoopbackError)
	}
	for _, port := range []uint16{1, 80, 65535, uint16(link.Loopback.Addr().(*net.TCPAddr).Port)} {
		inNamed(t, p.pod, func() error {
			conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				return err
			}
			return conn.Close()
		})
		conn, err := link.Loopback.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := OriginalPort(conn); err != nil || got != port {
			t.Errorf("a connection to port %d is to %d, %v", port, got, err)
		}
		conn.Close()
	}
	if err := link.Close(); err != nil {
		t.Fatal(err)
	}
	inNamed(t, p.pod, func() error {
		if _, err := net.Dial("tcp", "127.0.0.1:80"); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("after Close: %v", err)
		}
		return nil
	})
}

// The calling threads stay where they are, and no descriptor is left.
func TestNothingOfTheProcessIsLeft(t *testing.T) {
	p := newPod(t, 1500)
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	cycle := func() {
		link, err := Attach(p.path())
		if err != nil {
			t.Fatal(err)
		}
		if err := link.Close(); err != nil {
			t.Fatal(err)
		}
	}
	cycle()
	before := count()
	for range 20 {
		cycle()
	}
	if after := count(); after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
	tasks, _ := filepath.Glob("/proc/self/task/*/ns/net")
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if ns, err := os.Readlink(task); err == nil && ns != home {
			t.Errorf("%s is in %s, not at home in %s", task, ns, home)
		}
	}
}
