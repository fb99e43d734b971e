package sandbox

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"

	"github.com/containerd/errdefs"

	guestapi "bulkhead.dev/bulkhead/api/guest"
	"bulkhead.dev/bulkhead/internal/cgroup"
	"bulkhead.dev/bulkhead/internal/netdev"
	"bulkhead.dev/bulkhead/internal/rootfs"
	"bulkhead.dev/bulkhead/internal/vmm"
)

// host is what a sandbox does to the host besides running a VM. Most of it needs root; tests without it have another.
type host struct {
	// cgroupPath turns an OCI cgroupsPath into a path relative to the hierarchies' roots.
	cgroupPath func(spec string) (string, error)
	// makeCgroup returns what ends everything in the cgroup and removes it, with the parents that had to be made.
	makeCgroup func(path string) (remove func() error, err error)
	// removeCgroup does so after a crash, but for the parents: by then they may be somebody else's. It is nothing to do when
	// there is no such cgroup.
	removeCgroup func(path string) error

	attach func(netns string) (*network, error)
	// detach does after a crash what network.close does.
	detach func(netns string) error

	prepare       func(ctx context.Context, mounts []rootfs.Mount) (*rootfs.RootFS, error)
	createScratch func(ctx context.Context, path string, size int64) (*os.File, error)

	// collect removes image layers that nothing uses until the rest is within the limits.
	collect func(ctx context.Context, limits rootfs.Limits) (rootfs.Collected, error)

	// after is called after each step of a construction. An error from it fails the step.
	after func(step string) error
}

// network is what the pod's network namespace was found to have, as the guest is told it.
type network struct {
	nics       []vmm.NIC
	interfaces []*guestapi.Interface
	routes     []*guestapi.Route
	neighbours []*guestapi.Neighbour
	// loopback gets connections that are meant for the guest's ports; nil: none, for the reason noLoopback.
	loopback   *net.TCPListener
	noLoopback error
	// port says which port such a connection was made to.
	port  func(*net.TCPConn) (uint16, error)
	close func() error
}

func realHost(deps Deps) host {
	return host{
		cgroupPath: cgroup.Path,
		makeCgroup: func(path string) (func() error, error) {
			c, err := cgroup.Create(path)
			if err != nil {
				return nil, err
			}
			return func() error { return errors.Join(c.Kill(), c.Remove()) }, nil
		},
		removeCgroup:  removeCgroup,
		attach:        attach,
		detach:        netdev.Detach,
		prepare:       deps.Cache.Prepare,
		createScratch: rootfs.CreateScratch,
		collect:       deps.Cache.Collect,
		after:         func(string) error { return nil },
	}
}

func removeCgroup(path string) error {
	c, err := cgroup.Load(path)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(c.Kill(), c.Remove())
}

func attach(netns string) (*network, error) {
	link, err := netdev.Attach(netns)
	if err != nil {
		return nil, err
	}
	n := &network{nics: link.NICs, loopback: link.Loopback, noLoopback: link.LoopbackError, port: netdev.OriginalPort, close: link.Close}
	for _, i := range link.Interfaces {
		made := &guestapi.Interface{Name: i.Name, Mac: i.MAC.String(), Mtu: uint32(i.MTU)}
		for _, a := range i.Addresses {
			made.Addresses = append(made.Addresses, a.String())
		}
		n.interfaces = append(n.interfaces, made)
	}
	for _, r := range link.Routes {
		n.routes = append(n.routes, &guestapi.Route{
			Destination: destination(r.Destination), Gateway: address(r.Gateway), Source: address(r.Source), Interface: r.Interface,
			Scope: uint32(r.Scope), Ipv6: r.Destination.Addr().Is6(), Onlink: r.OnLink, Metric: r.Metric,
		})
	}
	for _, e := range link.Neighbours {
		n.neighbours = append(n.neighbours, &guestapi.Neighbour{Address: e.Address.String(), Mac: e.MAC.String(), Interface: e.Interface})
	}
	return n, nil
}

// destination is empty for a default route, as the guest has it.
func destination(p netip.Prefix) string {
	if p.Bits() == 0 {
		return ""
	}
	return p.String()
}

// address is empty for none.
func address(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
