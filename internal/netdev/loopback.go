package netdev

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// loopbackTable is the name of the nftables table, of family ip, that leads connections to the namespace's loopback address to
// the listener. In a pod's namespace there is nothing else whose connections that could be.
const loopbackTable = "bulkhead_loopback"

// listenLoopback makes, in the thread's network namespace, a listener that gets all TCP connections to 127.0.0.1, whatever
// their port. [OriginalPort] says which it was. A failure leaves behind what closeLoopback removes.
func listenLoopback() (*net.TCPListener, error) {
	listener, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		return nil, fmt.Errorf("listen on the loopback address: %w", err)
	}
	if err := redirectLoopback(listener.Addr().(*net.TCPAddr).Port); err != nil { //nolint:forcetypeassert // it is a TCP listener's
		return nil, errors.Join(fmt.Errorf("redirect connections to the loopback address (needs the kernel's nf_tables and nft_redir): %w", err), listener.Close())
	}
	return listener, nil
}

func redirectLoopback(port int) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: loopbackTable}
	conn.AddTable(table)
	// Alone: a kernel without nf_tables answers several messages at once, and the library would wait for the other answers.
	if err := conn.Flush(); err != nil {
		return err
	}
	conn.DelTable(table) // it may be of a VM that was here before
	conn.AddTable(table)
	chain := conn.AddChain(&nftables.Chain{
		Table: table, Name: "output", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	const register, addressOffset = 1, 16 // of the destination in an IPv4 header
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: addressOffset, Len: net.IPv4len, DestRegister: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{127, 0, 0, 1}},
		&expr.Immediate{Register: register, Data: binaryutil.BigEndian.PutUint16(uint16(port))},
		&expr.Redir{RegisterProtoMin: register},
	}})
	return conn.Flush()
}

// closeLoopback removes the table from the thread's network namespace.
func closeLoopback() error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open netfilter: %w", err)
	}
	conn.DelTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: loopbackTable})
	err = conn.Flush()
	// Without such a table, or without nf_tables, there is nothing to remove.
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return nil
	}
	return fmt.Errorf("remove the table %s: %w", loopbackTable, err)
}

// OriginalPort returns the port that a connection to a [Link]'s Loopback was made to.
func OriginalPort(conn *net.TCPConn) (uint16, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var address *unix.IPv6Mreq
	controlErr := raw.Control(func(fd uintptr) {
		// What it answers is a sockaddr_in, and fits.
		address, err = unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, unix.SO_ORIGINAL_DST)
	})
	if err := errors.Join(controlErr, err); err != nil {
		return 0, fmt.Errorf("ask where the connection was made to: %w", err)
	}
	return binary.BigEndian.Uint16(address.Multiaddr[2:4]), nil
}
