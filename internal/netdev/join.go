package netdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/vmm"
)

const (
	// tapPrefix begins the names of our taps, in the pod's namespace only.
	tapPrefix = "bhtap"
	// filterPriority marks our filters. Nothing else says whose they are once the tap they lead to has gone.
	filterPriority = 0xb44d
)

// ingress is the handle of an interface's ingress qdisc, which is also its filters' parent.
var ingress = netlink.MakeHandle(0xffff, 0)

// join makes a tap of that name and exchanges its traffic with the device's. A failure leaves behind what detach removes.
func join(h *netlink.Handle, d device, name string) (vmm.NIC, error) {
	if err := claim(h, d.link); err != nil {
		return vmm.NIC{}, err
	}
	file, err := openTap(name)
	if err != nil {
		return vmm.NIC{}, err
	}
	nic := vmm.NIC{Tap: file, MAC: d.config.MAC, MTU: d.config.MTU}
	if err := prepareTap(h, d, name); err != nil {
		return vmm.NIC{}, errors.Join(err, file.Close())
	}
	return nic, nil
}

// claim makes the device's ingress qdisc. There can be one only, so this also finds a second VM and foreign filters.
func claim(h *netlink.Handle, link netlink.Link) error {
	owner, err := ingressOf(h, link)
	if err != nil {
		return err
	}
	switch owner {
	case joined:
		return fmt.Errorf("it is redirected to a VM already: %w", errdefs.ErrAlreadyExists)
	case foreign:
		return fmt.Errorf("it has an ingress qdisc of somebody else: %w", errdefs.ErrFailedPrecondition)
	case idle:
		return nil
	}
	return addIngress(h, link)
}

func addIngress(h *netlink.Handle, link netlink.Link) error {
	if err := h.QdiscAdd(ingressQdisc(link)); err != nil {
		return fmt.Errorf("add an ingress qdisc to %s: %w", link.Attrs().Name, err)
	}
	return nil
}

// openTap makes a tap in the thread's network namespace. The descriptor stays blocking and so out of Go's poller: nobody
// reads it here, and a poller would wake up for every packet to the guest.
func openTap(name string) (*os.File, error) {
	const device = "/dev/net/tun"
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", device, err)
	}
	request, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("name tap %s: %w", name, err)
	}
	request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make tap %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), device+":"+name), nil
}

// prepareTap connects the tap while it is down, so that no packet goes a wrong way in between.
func prepareTap(h *netlink.Handle, d device, name string) error {
	tap, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find tap %s: %w", name, err)
	}
	if err := silence(h, tap); err != nil {
		return err
	}
	if err := h.LinkSetMTU(tap, d.config.MTU); err != nil {
		return fmt.Errorf("set the MTU of %s to %d: %w", name, d.config.MTU, err)
	}
	if err := addIngress(h, tap); err != nil {
		return err
	}
	if err := redirect(h, tap, d.link); err != nil {
		return err
	}
	if err := redirect(h, d.link, tap); err != nil {
		return err
	}
	if err := h.LinkSetUp(tap); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

// silence keeps the namespace's own stack from sending neighbour discovery and the like into the guest. The sysctl
// alone would do, but may be read-only; a kernel without IPv6 has neither.
func silence(h *netlink.Handle, tap netlink.Link) error {
	name := tap.Attrs().Name
	path := "/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6"
	err := os.WriteFile(path, []byte("1"), 0)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	const addrGenModeNone = 1 // IN6_ADDR_GEN_MODE_NONE
	if genErr := h.LinkSetIP6AddrGenMode(tap, addrGenModeNone); genErr != nil {
		return fmt.Errorf("turn IPv6 off on %s: %w", name, errors.Join(err, genErr))
	}
	return nil
}

// redirect sends every packet that comes in on one interface out of the other. The packet is stolen: the stack of the
// namespace never sees it.
func redirect(h *netlink.Handle, from, to netlink.Link) error {
	filter := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: from.Attrs().Index, Parent: ingress, Priority: filterPriority, Protocol: unix.ETH_P_ALL,
		},
		Actions: []netlink.Action{&netlink.MirredAction{
			ActionAttrs:  netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN},
			MirredAction: netlink.TCA_EGRESS_REDIR,
			Ifindex:      to.Attrs().Index,
		}},
	}
	if err := h.FilterAdd(filter); err != nil {
		return fmt.Errorf("redirect %s to %s (needs the kernel's sch_ingress, cls_u32 and act_mirred): %w",
			from.Attrs().Name, to.Attrs().Name, err)
	}
	return nil
}

// owner says whose an interface's ingress hook is.
type owner int

const (
	free    owner = iota // there is no qdisc
	idle                 // there is one without filters, as a join that ended half-way leaves it
	joined               // our filter
	foreign              // somebody else's
)

func ingressOf(h *netlink.Handle, link netlink.Link) (owner, error) {
	qdiscs, err := h.QdiscList(link)
	if err != nil {
		return free, fmt.Errorf("list its qdiscs: %w", err)
	}
	for _, q := range qdiscs {
		switch q.(type) {
		case *netlink.Clsact:
			return foreign, nil
		case *netlink.Ingress:
			return filterOwner(h, link)
		}
	}
	return free, nil
}

func filterOwner(h *netlink.Handle, link netlink.Link) (owner, error) {
	filters, err := h.FilterList(link, ingress)
	if err != nil {
		return foreign, fmt.Errorf("list its filters: %w", err)
	}
	result := idle
	for _, f := range filters {
		if f.Attrs().Priority != filterPriority {
			return foreign, nil
		}
		result = joined
	}
	return result, nil
}

// detach removes all that joins of any earlier time left in the thread's network namespace.
func detach(h *netlink.Handle) error {
	links, err := h.LinkList()
	if err != nil {
		return fmt.Errorf("list its interfaces: %w", err)
	}
	var errs []error
	for _, link := range links {
		if strings.HasPrefix(link.Attrs().Name, tapPrefix) && link.Type() == "tuntap" {
			err = h.LinkDel(link)
		} else {
			err = release(h, link)
		}
		// The interface may have gone meanwhile: a tap whose VMM ends.
		if err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("clean interface %s: %w", link.Attrs().Name, err))
		}
	}
	return errors.Join(append(errs, closeLoopback())...)
}

// release removes our ingress qdisc, and with it the filter.
func release(h *netlink.Handle, link netlink.Link) error {
	owner, err := ingressOf(h, link)
	if err != nil || owner == free || owner == foreign {
		return err
	}
	if err := h.QdiscDel(ingressQdisc(link)); err != nil {
		return fmt.Errorf("remove its ingress qdisc: %w", err)
	}
	return nil
}

func ingressQdisc(link netlink.Link) *netlink.Ingress {
	return &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Handle: ingress, Parent: netlink.HANDLE_INGRESS,
	}}
}
