package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// portName is how the VMM calls the virtio-serial port of the agent.
const portName = "bulkhead.agent"

const (
	// channelTimeout is how long the port may take to appear once its driver is there.
	channelTimeout = 30 * time.Second
	// connectPoll is how often the agent looks whether the host has connected to the port. The driver tells it in no
	// other way. It matters only when the agent is there before the host.
	connectPoll = 10 * time.Millisecond
)

// OpenChannel finds and opens the port to the host.
func OpenChannel(devices *Devices) (io.ReadWriteCloser, error) {
	var f *os.File
	err := devices.wait(channelTimeout, func(time.Duration) (err error) {
		f, err = openPort("/sys/class/virtio-ports", "/dev")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("port %s: %w", portName, err)
	}
	return &port{f: f}, nil
}

// openPort is ErrNotFound as long as there is no such port.
func openPort(sys, dev string) (*os.File, error) {
	names, err := filepath.Glob(filepath.Join(sys, "*", "name"))
	if err != nil {
		return nil, err
	}
	for _, path := range names {
		b, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(b)) != portName {
			continue
		}
		node := filepath.Join(dev, filepath.Base(filepath.Dir(path)))
		f, err := os.OpenFile(node, os.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) {
			return nil, fmt.Errorf("%s is not there yet: %w", node, errdefs.ErrNotFound)
		}
		return f, err
	}
	return nil, fmt.Errorf("no such port: %w", errdefs.ErrNotFound)
}

// port is the virtio-serial port. As long as the host has not connected, reading from it is at the end of file; the first
// byte shows that it has, and from then on the end of file is the end.
type port struct {
	f         *os.File
	connected atomic.Bool
	closed    atomic.Bool
}

func (p *port) Read(b []byte) (int, error) {
	for {
		n, err := p.f.Read(b)
		if n > 0 {
			p.connected.Store(true)
		}
		if err != io.EOF || p.connected.Load() || p.closed.Load() {
			return n, err
		}
		time.Sleep(connectPoll)
	}
}

func (p *port) Write(b []byte) (int, error) { return p.f.Write(b) }

func (p *port) Close() error {
	p.closed.Store(true)
	return p.f.Close()
}
