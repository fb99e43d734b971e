package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	guestapi "bulkhead.dev/bulkhead/api/guest"
	"bulkhead.dev/bulkhead/internal/guest/netconf"
)

// Configure implements the service. When it fails, it may be called again.
func (a *Agent) Configure(ctx context.Context, r *guestapi.ConfigureRequest) (*guestapi.Empty, error) {
	a.mu.Lock()
	if a.configuring || a.configured {
		a.mu.Unlock()
		return nil, fmt.Errorf("configuring the guest a second time: %w", errdefs.ErrFailedPrecondition)
	}
	a.configuring = true
	a.mu.Unlock()

	err := a.configure(ctx, r)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.configuring, a.configured = false, err == nil
	if err != nil {
		return nil, fmt.Errorf("configuring the guest: %w", err)
	}
	return &guestapi.Empty{}, nil
}

func (a *Agent) configure(ctx context.Context, r *guestapi.ConfigureRequest) error {
	network, err := networkConfig(r)
	if err != nil {
		return err
	}
	if err := setClock(r.UnixNanos); err != nil {
		return err
	}
	if err := addEntropy(r.Entropy); err != nil {
		return err
	}
	if err := setHostname(r.Hostname); err != nil {
		return err
	}
	if r.ShmBytes != 0 {
		if err := unix.Mount("", podShm, "", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, fmt.Sprintf("size=%d", r.ShmBytes)); err != nil {
			return fmt.Errorf("setting the size of %s to %d bytes: %w", podShm, r.ShmBytes, err)
		}
	}
	if err := a.awaitReady(ctx); err != nil {
		return err
	}
	deadline := time.Now().Add(deviceTimeout)
	if err := netconf.Apply(network, func() error { return a.devices.next(deadline) }); err != nil {
		return err
	}
	// After the network: the names of its devices are in sysctls' names.
	if err := setSysctls("/proc/sys", r.Sysctls); err != nil {
		return err
	}
	return a.attachVolumes(ctx, r.VolumesStream)
}

func (a *Agent) attachVolumes(ctx context.Context, stream uint64) error {
	if stream == 0 {
		return nil
	}
	conn, err := a.streams.Take(ctx, stream)
	if err != nil {
		return fmt.Errorf("volumes: %w", err)
	}
	if err := a.mountVolumes(a.dirs.volumes, conn); err != nil {
		conn.Close()
		return fmt.Errorf("mounting the volumes: %w", err)
	}
	return nil
}

func setClock(nanos int64) error {
	if nanos <= 0 {
		return nil
	}
	now := unix.NsecToTimespec(nanos)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		return fmt.Errorf("setting the clock: %w", err)
	}
	return nil
}

const maxEntropy = 4096

// addEntropy gives the kernel's random number generator fresh bytes that count, and has it use them at once.
func addEntropy(entropy []byte) error {
	if len(entropy) == 0 {
		return nil
	}
	if len(entropy) > maxEntropy {
		return fmt.Errorf("%d bytes of entropy: %w", len(entropy), errdefs.ErrInvalidArgument)
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("adding entropy: %w", err)
	}
	defer f.Close()
	// struct rand_pool_info: bits that count, size in bytes, the bytes.
	info := make([]byte, 8, 8+len(entropy))
	binary.NativeEndian.PutUint32(info, uint32(len(entropy)*8))
	binary.NativeEndian.PutUint32(info[4:], uint32(len(entropy)))
	info = append(info, entropy...)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info[0]))); errno != 0 {
		return fmt.Errorf("adding entropy: %w", errno)
	}
	// The kernel reseeds from time to time; a VM that was started from a template must not wait for that.
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.RNDRESEEDCRNG, 0); errno != 0 && errno != unix.EINVAL && errno != unix.ENODATA {
		return fmt.Errorf("reseeding from new entropy: %w", errno)
	}
	return nil
}

func setHostname(name string) error {
	if name == "" {
		return nil
	}
	if len(name) > 64 || strings.ContainsAny(name, "\x00\n/ ") {
		return fmt.Errorf("host name %q: %w", name, errdefs.ErrInvalidArgument)
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("setting the host name to %q: %w", name, err)
	}
	return nil
}

// setSysctls writes kernel parameters, in the order of their names. No name leads out of root.
func setSysctls(root string, sysctls map[string]string) error {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening %s: %w", root, err)
	}
	defer unix.Close(dir)
	names := make([]string, 0, len(sysctls))
	for name := range sysctls {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := setSysctl(dir, name, sysctls[name]); err != nil {
			return err
		}
	}
	return nil
}

func setSysctl(dir int, name, value string) error {
	path, err := sysctlPath(name)
	if err != nil {
		return err
	}
	fd, err := unix.Openat2(dir, path, &unix.OpenHow{
		Flags: unix.O_WRONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("sysctl %q: %w", name, errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("sysctl %q: %w", name, err)
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return fmt.Errorf("setting sysctl %q to %q: %w: %w", name, value, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// networkConfig reads the network part of a request.
func networkConfig(r *guestapi.ConfigureRequest) (netconf.Config, error) {
	var c netconf.Config
	for _, i := range r.Interfaces {
		mac, err := net.ParseMAC(i.Mac)
		if err != nil {
			return c, fmt.Errorf("interface %s: %w: %w", i.Name, err, errdefs.ErrInvalidArgument)
		}
		ni := netconf.Interface{Name: i.Name, MAC: mac, MTU: int(min(i.Mtu, 1<<20))}
		for _, s := range i.Addresses {
			p, err := netip.ParsePrefix(s)
			if err != nil {
				return c, fmt.Errorf("interface %s: %w: %w", i.Name, err, errdefs.ErrInvalidArgument)
			}
			ni.Addresses = append(ni.Addresses, p)
		}
		c.Interfaces = append(c.Interfaces, ni)
	}
	for _, r := range r.Routes {
		nr, err := routeConfig(r)
		if err != nil {
			return c, fmt.Errorf("route to %q by interface %s: %w: %w", r.Destination, r.Interface, err, errdefs.ErrInvalidArgument)
		}
		c.Routes = append(c.Routes, nr)
	}
	for _, n := range r.Neighbours {
		addr, err := netip.ParseAddr(n.Address)
		if err != nil {
			return c, fmt.Errorf("neighbour: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		mac, err := net.ParseMAC(n.Mac)
		if err != nil {
			return c, fmt.Errorf("neighbour %s: %w: %w", n.Address, err, errdefs.ErrInvalidArgument)
		}
		c.Neighbours = append(c.Neighbours, netconf.Neighbour{Address: addr, MAC: mac, Interface: n.Interface})
	}
	return c, c.Validate()
}

func routeConfig(r *guestapi.Route) (netconf.Route, error) {
	nr := netconf.Route{Interface: r.Interface, Onlink: r.Onlink, Metric: r.Metric, Scope: uint8(r.Scope)}
	if r.Scope > 255 {
		return nr, fmt.Errorf("scope %d", r.Scope)
	}
	var err error
	if r.Gateway != "" {
		if nr.Gateway, err = netip.ParseAddr(r.Gateway); err != nil {
			return nr, err
		}
	}
	if r.Source != "" {
		if nr.Source, err = netip.ParseAddr(r.Source); err != nil {
			return nr, err
		}
	}
	switch {
	case r.Destination != "":
		nr.Destination, err = netip.ParsePrefix(r.Destination)
	case r.Ipv6 || nr.Gateway.Is6():
		nr.Destination = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	default:
		nr.Destination = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return nr, err
}
