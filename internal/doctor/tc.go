package doctor

import (
	"context"
	"fmt"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tryTrafficControl does in a network namespace of its own what a pod's network needs: a tap, an ingress queue on another
// interface, and a filter that redirects all that comes in to the tap. The namespace ends with the thread that is in it.
func tryTrafficControl(ctx context.Context) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread must not be used again
		result <- redirectInNewNamespace()
	}()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func redirectInNewNamespace() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	handle, err := netlink.NewHandle()
	if err != nil {
		return fmt.Errorf("open a netlink socket: %w", err)
	}
	defer handle.Close()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "doctor0"}, PeerName: "doctor1"}
	if err := handle.LinkAdd(veth); err != nil {
		return fmt.Errorf("make a veth pair: %w", err)
	}
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "doctor2"}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
	if err := handle.LinkAdd(tap); err != nil {
		return fmt.Errorf("make a tap: %w", err)
	}
	from, err := handle.LinkByName("doctor0")
	if err != nil {
		return fmt.Errorf("find the veth: %w", err)
	}
	to, err := handle.LinkByName("doctor2")
	if err != nil {
		return fmt.Errorf("find the tap: %w", err)
	}
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: from.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS,
	}}
	if err := handle.QdiscAdd(ingress); err != nil {
		return fmt.Errorf("add an ingress queue: %w", err)
	}
	filter := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from.Attrs().Index, Parent: netlink.MakeHandle(0xffff, 0), Protocol: unix.ETH_P_ALL},
		Actions:     []netlink.Action{netlink.NewMirredAction(to.Attrs().Index)},
	}
	if err := handle.FilterAdd(filter); err != nil {
		return fmt.Errorf("add a u32 filter that redirects (mirred): %w", err)
	}
	return nil
}
