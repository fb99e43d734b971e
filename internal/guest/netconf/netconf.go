// Package netconf makes the guest's network devices look as the host wants them, by rtnetlink.
//
// [Apply] takes plain data and goes through it in the order that works: devices are found by hardware address, renamed,
// given their MTU and addresses and set up; then come routes (a route whose gateway is not reachable yet is tried again
// after the others) and permanent neighbours. Everything is created or replaced, so that applying twice is harmless.
//
// It speaks rtnetlink itself, in about ten message types, since the agent must stay small.
package netconf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Interface is a device, found by its hardware address.
type Interface struct {
	Name      string // 1 to 15 characters
	MAC       net.HardwareAddr
	MTU       int // 0: as it is
	Addresses []netip.Prefix
}

// Route is an entry of the main table.
type Route struct {
	Destination netip.Prefix // zero bits of either family: the default route
	Gateway     netip.Addr   // invalid: on-link
	Source      netip.Addr   // invalid: the kernel's choice
	Interface   string
	Scope       uint8
	Onlink      bool
	Metric      uint32
}

// Neighbour is a permanent entry of the neighbour table.
type Neighbour struct {
	Address   netip.Addr
	MAC       net.HardwareAddr
	Interface string
}

// Config is all of it.
type Config struct {
	Interfaces []Interface
	Routes     []Route
	Neighbours []Neighbour
}

// Validate refuses what the kernel would misunderstand, with errors of class ErrInvalidArgument.
func (c Config) Validate() error {
	names := make(map[string]bool)
	for _, i := range c.Interfaces {
		if !validName(i.Name) || i.Name == loopback {
			return fmt.Errorf("interface name %q: %w", i.Name, errdefs.ErrInvalidArgument)
		}
		if names[i.Name] {
			return fmt.Errorf("interface name %q comes twice: %w", i.Name, errdefs.ErrInvalidArgument)
		}
		names[i.Name] = true
		if len(i.MAC) != 6 {
			return fmt.Errorf("interface %s: hardware address %q: %w", i.Name, i.MAC, errdefs.ErrInvalidArgument)
		}
		if i.MTU != 0 && (i.MTU < 68 || i.MTU > 65535) {
			return fmt.Errorf("interface %s: MTU %d: %w", i.Name, i.MTU, errdefs.ErrInvalidArgument)
		}
		for _, a := range i.Addresses {
			if !a.IsValid() {
				return fmt.Errorf("interface %s: invalid address: %w", i.Name, errdefs.ErrInvalidArgument)
			}
		}
	}
	for _, r := range c.Routes {
		if !r.Destination.IsValid() || (r.Interface != loopback && !names[r.Interface]) {
			return fmt.Errorf("route to %v by interface %q: %w", r.Destination, r.Interface, errdefs.ErrInvalidArgument)
		}
		// A gateway of the other family is not supported, and would be taken for garbage.
		for _, a := range []netip.Addr{r.Gateway, r.Source} {
			if a.IsValid() && a.Is4() != r.Destination.Addr().Is4() {
				return fmt.Errorf("route to %v: %v is of another family: %w", r.Destination, a, errdefs.ErrInvalidArgument)
			}
		}
	}
	for _, n := range c.Neighbours {
		if !n.Address.IsValid() || len(n.MAC) != 6 || !names[n.Interface] {
			return fmt.Errorf("neighbour %v (%v) of interface %q: %w", n.Address, n.MAC, n.Interface, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

const loopback = "lo"

func validName(name string) bool {
	if len(name) == 0 || len(name) >= unix.IFNAMSIZ || name == "." || name == ".." {
		return false
	}
	return !slices.ContainsFunc([]byte(name), func(c byte) bool { return c <= ' ' || c == '/' || c == ':' || c >= 0x7f })
}

// Apply configures the network namespace of the calling thread. Devices may still be coming: Apply asks wait, which
// returns when something may have changed, until all are there; an error from wait ends that.
func Apply(c Config, wait func() error) error {
	if err := c.Validate(); err != nil {
		return err
	}
	conn, err := dial()
	if err != nil {
		return fmt.Errorf("opening rtnetlink: %w", err)
	}
	defer conn.Close()

	indexes := make(map[string]int)
	if err := conn.bringUp(loopback, indexes); err != nil {
		return err
	}
	links, err := conn.find(c.Interfaces, wait)
	if err != nil {
		return err
	}
	if err := conn.rename(c.Interfaces, links); err != nil {
		return err
	}
	for i, want := range c.Interfaces {
		index := links[i].index
		indexes[want.Name] = index
		if err := conn.configure(index, want); err != nil {
			return fmt.Errorf("interface %s: %w", want.Name, err)
		}
	}
	if err := conn.routes(c.Routes, indexes); err != nil {
		return err
	}
	for _, n := range c.Neighbours {
		if err := conn.neighbour(indexes[n.Interface], n); err != nil {
			return fmt.Errorf("neighbour %v of interface %s: %w", n.Address, n.Interface, err)
		}
	}
	return nil
}

// bringUp sets the loopback device up.
func (c *conn) bringUp(name string, indexes map[string]int) error {
	links, err := c.links()
	if err != nil {
		return fmt.Errorf("listing network devices: %w", err)
	}
	for _, l := range links {
		if l.name == name {
			indexes[name] = l.index
			if err := c.setLink(l.index, linkChange{up: true}); err != nil {
				return fmt.Errorf("setting %s up: %w", name, err)
			}
			return nil
		}
	}
	return fmt.Errorf("network device %s: %w", name, errdefs.ErrNotFound)
}

// find returns the device of each interface.
func (c *conn) find(want []Interface, wait func() error) ([]link, error) {
	for {
		links, err := c.links()
		if err != nil {
			return nil, fmt.Errorf("listing network devices: %w", err)
		}
		found := make([]link, len(want))
		missing := ""
		for i, w := range want {
			at := slices.IndexFunc(links, func(l link) bool { return slices.Equal(l.mac, w.MAC) && l.name != loopback })
			if at < 0 {
				missing = w.MAC.String()
				break
			}
			found[i] = links[at]
		}
		if missing == "" {
			return found, nil
		}
		if err := wait(); err != nil {
			return nil, fmt.Errorf("waiting for the network device with address %s: %w", missing, err)
		}
	}
}

// rename gives every device its name, by way of temporary names: one may have the name that another is to get.
func (c *conn) rename(want []Interface, links []link) error {
	for i, w := range want {
		if links[i].name == w.Name {
			continue
		}
		if err := c.setLink(links[i].index, linkChange{down: true, name: fmt.Sprintf("bulkhead%d", i)}); err != nil {
			return fmt.Errorf("renaming network device %s: %w", links[i].name, err)
		}
	}
	for i, w := range want {
		if links[i].name == w.Name {
			continue
		}
		if err := c.setLink(links[i].index, linkChange{name: w.Name}); err != nil {
			return fmt.Errorf("renaming network device %s to %s: %w", links[i].name, w.Name, err)
		}
	}
	return nil
}

func (c *conn) configure(index int, want Interface) error {
	if want.MTU != 0 {
		if err := c.setLink(index, linkChange{mtu: want.MTU}); err != nil {
			return fmt.Errorf("setting MTU %d: %w", want.MTU, err)
		}
	}
	for _, a := range want.Addresses {
		if err := c.address(index, a); err != nil {
			return fmt.Errorf("adding address %v: %w", a, err)
		}
	}
	if err := c.setLink(index, linkChange{up: true}); err != nil {
		return fmt.Errorf("setting it up: %w", err)
	}
	return nil
}

// routes adds routes in rounds, as long as a round gets further: a gateway may be reachable by a route that comes later.
func (c *conn) routes(routes []Route, indexes map[string]int) error {
	for len(routes) > 0 {
		var left []Route
		var errs []error
		for _, r := range routes {
			if err := c.route(indexes[r.Interface], r); err != nil {
				left = append(left, r)
				errs = append(errs, fmt.Errorf("adding route to %v by %s: %w", r.Destination, r.Interface, err))
			}
		}
		if len(left) == len(routes) {
			return errors.Join(errs...)
		}
		routes = left
	}
	return nil
}

// receiveTimeout bounds the wait for the kernel's answer, which comes at once.
const receiveTimeout = 10 * time.Second
