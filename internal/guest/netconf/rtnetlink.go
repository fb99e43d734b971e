package netconf

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// conn is a socket to the kernel's routing subsystem. One request is under way at a time.
type conn struct {
	fd  int
	seq uint32
}

func dial() (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	tv := unix.NsecToTimeval(receiveTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return &conn{fd: fd}, nil
}

func (c *conn) Close() error { return unix.Close(c.fd) }

// message builds a request: a fixed structure of the host's byte order, then attributes.
type message struct{ b []byte }

func newMessage(fixed ...any) *message {
	m := &message{}
	for _, v := range fixed {
		m.b, _ = binary.Append(m.b, binary.NativeEndian, v) // fails for values without a fixed size only
	}
	return m
}

func (m *message) attr(kind uint16, value []byte) {
	m.b = binary.NativeEndian.AppendUint16(m.b, uint16(unix.SizeofRtAttr+len(value)))
	m.b = binary.NativeEndian.AppendUint16(m.b, kind)
	m.b = append(m.b, value...)
	for len(m.b)%unix.NLMSG_ALIGNTO != 0 {
		m.b = append(m.b, 0)
	}
}

func (m *message) uint32(kind uint16, value uint32) {
	m.attr(kind, binary.NativeEndian.AppendUint32(nil, value))
}

// request sends a message and passes the payload of each answer to visit, until the kernel acknowledges it.
func (c *conn) request(kind, flags uint16, m *message, visit func([]byte)) error {
	c.seq++
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(m.b)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK|flags)
	b = binary.NativeEndian.AppendUint32(b, c.seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, m.b...)
	if err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(c.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return err
		}
		for _, msg := range msgs {
			if msg.Header.Seq != c.seq {
				continue
			}
			switch msg.Header.Type {
			case unix.NLMSG_ERROR:
				if len(msg.Data) < 4 {
					return unix.EBADMSG
				}
				if errno := int32(binary.NativeEndian.Uint32(msg.Data)); errno != 0 {
					return unix.Errno(-errno)
				}
				return nil
			case unix.NLMSG_DONE:
				return nil
			default:
				if visit != nil {
					visit(msg.Data)
				}
			}
		}
	}
}

// link is a network device.
type link struct {
	index int
	name  string
	mac   net.HardwareAddr
}

func (c *conn) links() ([]link, error) {
	var links []link
	err := c.request(unix.RTM_GETLINK, unix.NLM_F_DUMP, newMessage(unix.IfInfomsg{}), func(b []byte) {
		if l, ok := parseLink(b); ok {
			links = append(links, l)
		}
	})
	return links, err
}

func parseLink(b []byte) (link, bool) {
	if len(b) < unix.SizeofIfInfomsg {
		return link{}, false
	}
	l := link{index: int(int32(binary.NativeEndian.Uint32(b[4:])))}
	for b = b[unix.SizeofIfInfomsg:]; len(b) >= unix.SizeofRtAttr; {
		n, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if n < unix.SizeofRtAttr || n > len(b) {
			return link{}, false
		}
		value := b[unix.SizeofRtAttr:n]
		switch kind {
		case unix.IFLA_IFNAME:
			l.name = unix.ByteSliceToString(value)
		case unix.IFLA_ADDRESS:
			l.mac = append(net.HardwareAddr(nil), value...)
		}
		b = b[min(len(b), (n+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
	}
	return l, l.index > 0
}

type linkChange struct {
	up, down bool
	name     string
	mtu      int
}

func (c *conn) setLink(index int, change linkChange) error {
	info := unix.IfInfomsg{Index: int32(index)}
	if change.up || change.down {
		info.Change = unix.IFF_UP
	}
	if change.up {
		info.Flags = unix.IFF_UP
	}
	m := newMessage(info)
	if change.name != "" {
		m.attr(unix.IFLA_IFNAME, append([]byte(change.name), 0))
	}
	if change.mtu != 0 {
		m.uint32(unix.IFLA_MTU, uint32(change.mtu))
	}
	return c.request(unix.RTM_SETLINK, 0, m, nil)
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func (c *conn) address(index int, p netip.Prefix) error {
	a := p.Addr().Unmap()
	// Duplicate address detection has no sense here, and would hold up the address for a second.
	const flags = unix.IFA_F_NODAD | unix.IFA_F_PERMANENT
	m := newMessage(unix.IfAddrmsg{Family: family(a), Prefixlen: uint8(p.Bits()), Index: uint32(index), Flags: flags})
	// Routes to connected networks are among the host's; where one isn't, as with CNI's ptp, the network's other addresses are
	// reached by way of the gateway.
	m.uint32(unix.IFA_FLAGS, flags|unix.IFA_F_NOPREFIXROUTE)
	m.attr(unix.IFA_LOCAL, a.AsSlice())
	m.attr(unix.IFA_ADDRESS, a.AsSlice())
	if a.Is4() && p.Bits() < 31 {
		broadcast := a.As4()
		host := binary.BigEndian.Uint32(broadcast[:]) | uint32(1<<(32-p.Bits())-1)
		m.attr(unix.IFA_BROADCAST, binary.BigEndian.AppendUint32(nil, host))
	}
	return c.request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, m, nil)
}

func (c *conn) route(index int, r Route) error {
	dst := r.Destination.Masked()
	rt := unix.RtMsg{
		Family: family(dst.Addr()), Dst_len: uint8(dst.Bits()), Table: unix.RT_TABLE_MAIN,
		Protocol: unix.RTPROT_BOOT, Scope: r.Scope, Type: unix.RTN_UNICAST,
	}
	if r.Onlink {
		rt.Flags = unix.RTNH_F_ONLINK
	}
	m := newMessage(rt)
	if dst.Bits() > 0 {
		m.attr(unix.RTA_DST, dst.Addr().AsSlice())
	}
	if r.Gateway.IsValid() {
		m.attr(unix.RTA_GATEWAY, r.Gateway.AsSlice())
	}
	if r.Source.IsValid() {
		m.attr(unix.RTA_PREFSRC, r.Source.AsSlice())
	}
	if r.Metric != 0 {
		m.uint32(unix.RTA_PRIORITY, r.Metric)
	}
	m.uint32(unix.RTA_OIF, uint32(index))
	return c.request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, m, nil)
}

func (c *conn) neighbour(index int, n Neighbour) error {
	m := newMessage(unix.NdMsg{Family: family(n.Address), Ifindex: int32(index), State: unix.NUD_PERMANENT, Type: unix.RTN_UNICAST})
	m.attr(unix.NDA_DST, n.Address.AsSlice())
	m.attr(unix.NDA_LLADDR, n.MAC)
	return c.request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, m, nil)
}
