package guest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// console is the socket on which the OCI runtime hands over the master side of a terminal.
type console struct {
	path     string
	listener *net.UnixListener
}

// consoleTimeout bounds the wait for the runtime to hand over the terminal, which it does before it exits.
const consoleTimeout = 10 * time.Second

var consoles atomic.Uint64 // numbers the sockets

func newConsole(dir string) (*console, error) {
	path := filepath.Join(dir, "tty"+strconv.FormatUint(consoles.Add(1), 10))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("making a console socket: %w", err)
	}
	return &console{path: path, listener: l}, nil
}

// receive returns the terminal's master side.
func (c *console) receive() (*os.File, error) {
	deadline := time.Now().Add(consoleTimeout)
	err := c.listener.SetDeadline(deadline)
	if err != nil {
		return nil, fmt.Errorf("waiting for the terminal: %w", err)
	}
	conn, err := c.listener.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("waiting for the terminal: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, fmt.Errorf("receiving the terminal: %w", err)
	}
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*4))
	_, n, _, _, err := conn.ReadMsgUnix(name, oob)
	if err != nil {
		return nil, fmt.Errorf("receiving the terminal: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return nil, fmt.Errorf("receiving the terminal: %w", err)
	}
	var fds []int
	for _, m := range msgs {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			return nil, fmt.Errorf("receiving the terminal: %w", err)
		}
		fds = append(fds, got...)
	}
	if len(fds) != 1 {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("receiving the terminal: got %d descriptors", len(fds))
	}
	unix.CloseOnExec(fds[0])
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		return nil, fmt.Errorf("receiving the terminal: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

func (c *console) close() { c.listener.Close() } // removes the socket, too
