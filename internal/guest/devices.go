package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// deviceTimeout is how long a disk or network device may take to appear: a guest under emulation on a loaded host.
	deviceTimeout = 30 * time.Second
	// rescanAfter is when the agent stops trusting that the VMM's news of a disk has reached the kernel.
	rescanAfter = 300 * time.Millisecond
	// recheck is how often something awaited is looked at even without news of it.
	recheck = 100 * time.Millisecond
)

// Devices tells of devices that come. It reads the kernel's uevents, and doesn't look into them: waiters look at /sys.
type Devices struct {
	f *os.File

	mu   sync.Mutex
	news chan struct{} // guarded by mu; closed and replaced with each event
}

// WatchDevices begins to listen.
func WatchDevices() (*Devices, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("opening a socket for device events: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listening for device events: %w", err)
	}
	d := &Devices{f: os.NewFile(uintptr(fd), "uevents"), news: make(chan struct{})}
	go d.listen()
	return d, nil
}

func (d *Devices) listen() {
	buf := make([]byte, 8<<10)
	for {
		// ENOBUFS: events were lost, which is news as well.
		if _, err := d.f.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
		d.mu.Lock()
		close(d.news)
		d.news = make(chan struct{})
		d.mu.Unlock()
	}
}

// wait calls ready until it returns something else than ErrNotFound, and passes the time since the beginning.
func (d *Devices) wait(timeout time.Duration, ready func(since time.Duration) error) error {
	start := time.Now()
	for {
		d.mu.Lock()
		news := d.news
		d.mu.Unlock()
		since := time.Since(start)
		err := ready(since)
		if !errdefs.IsNotFound(err) || since > timeout {
			return err
		}
		select {
		case <-news:
		case <-time.After(recheck):
		}
	}
}

// next returns when there is news, and after a while without: for whoever looks at other things than /sys.
func (d *Devices) next(deadline time.Time) error {
	if time.Now().After(deadline) {
		return fmt.Errorf("it did not appear: %w", errdefs.ErrNotFound)
	}
	d.mu.Lock()
	news := d.news
	d.mu.Unlock()
	select {
	case <-news:
	case <-time.After(recheck):
	}
	return nil
}

// parseAddress reads a disk's address, "scsi:LUN".
func parseAddress(address string) (lun int, err error) {
	s, ok := strings.CutPrefix(address, "scsi:")
	lun, err = strconv.Atoi(s)
	if !ok || err != nil || lun < 0 || lun > 16383 || strconv.Itoa(lun) != s {
		return 0, fmt.Errorf("disk address %q is not of the form scsi:LUN: %w", address, errdefs.ErrInvalidArgument)
	}
	return lun, nil
}

// scsi is where the kernel shows SCSI devices.
type scsi struct{ sys, dev string }

// findDisk waits for the disk at an address and returns its node, which can be opened.
func (s scsi) findDisk(d *Devices, address string) (node string, err error) {
	lun, err := parseAddress(address)
	if err != nil {
		return "", err
	}
	scanned := false
	err = d.wait(deviceTimeout, func(since time.Duration) (err error) {
		node, err = s.node(lun)
		if errdefs.IsNotFound(err) && since > rescanAfter && !scanned {
			scanned = true
			s.scan(lun)
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("disk %s: %w", address, err)
	}
	return node, nil
}

// device returns the directory of a LUN in /sys.
func (s scsi) device(lun int) (string, error) {
	dirs, err := filepath.Glob(filepath.Join(s.sys, "bus/scsi/devices", "*:0:0:"+strconv.Itoa(lun)))
	if err != nil {
		return "", err
	}
	if len(dirs) > 0 {
		return dirs[0], nil
	}
	return "", fmt.Errorf("no device with LUN %d: %w", lun, errdefs.ErrNotFound)
}

func (s scsi) node(lun int) (string, error) {
	dir, err := s.device(lun)
	if err != nil {
		return "", err
	}
	blocks, err := filepath.Glob(filepath.Join(dir, "block", "*"))
	if err != nil {
		return "", err
	}
	if len(blocks) == 0 {
		return "", fmt.Errorf("no block device of LUN %d: %w", lun, errdefs.ErrNotFound)
	}
	node := filepath.Join(s.dev, filepath.Base(blocks[0]))
	// The node is there a moment before it can be opened.
	f, err := os.Open(node)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%s can't be opened yet: %w", node, errdefs.ErrNotFound)
	}
	if err != nil {
		return "", err
	}
	return node, f.Close()
}

// scan asks the kernel to look for a LUN. Errors don't matter: the wait for the disk goes on and ends with its own.
func (s scsi) scan(lun int) {
	hosts, _ := filepath.Glob(filepath.Join(s.sys, "class/scsi_host/host*/scan"))
	for _, h := range hosts {
		_ = os.WriteFile(h, fmt.Appendf(nil, "0 0 %d", lun), 0)
	}
}

// releaseTimeout is how long a file system may take to let go of its disk once it is unmounted everywhere.
const releaseTimeout = 10 * time.Second

// release makes the kernel forget a disk that is not mounted any more, so that the host can take it away, and another
// disk can come at the same address.
func (s scsi) release(address string) error {
	lun, err := parseAddress(address)
	if err != nil {
		return err
	}
	node, err := s.node(lun)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("disk %s: %w", address, err)
	}
	// A mounted file system holds its disk exclusively; the last of it may go a moment after the unmount.
	for deadline := time.Now().Add(releaseTimeout); ; time.Sleep(2 * time.Millisecond) {
		f, err := os.OpenFile(node, os.O_RDONLY|unix.O_EXCL, 0)
		if err == nil {
			f.Close()
			break
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("disk %s is still in use: %w", address, err)
		}
	}
	dir, err := s.device(lun)
	if err != nil {
		return nil // it went meanwhile
	}
	if err := os.WriteFile(filepath.Join(dir, "delete"), []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("releasing disk %s: %w", address, err)
	}
	return nil
}
