package guest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/guest/rpc"
)

// newPorts returns ports whose streams come from the host.
func newPorts(t *testing.T) (*ports, *rpc.Host) {
	t.Helper()
	host, guest := channel(t)
	return &ports{streams: guest, dialed: map[uint64]net.Conn{}}, host
}

// serving listens on an address and hands connections to serve. It returns the port.
func serving(t *testing.T, address string, serve func(*net.TCPConn)) uint32 {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go serve(conn.(*net.TCPConn))
		}
	}()
	return uint32(listener.Addr().(*net.TCPAddr).Port)
}

func (p *ports) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.dialed)
}

func awaitNone(t *testing.T, p *ports) {
	t.Helper()
	for end := time.Now().Add(time.Minute); p.count() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d connections are left", p.count())
		}
	}
}

func TestDial(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(address, func(t *testing.T) {
			p, host := newPorts(t)
			// It answers when it has read all: each direction ends by itself.
			port := serving(t, address, func(conn *net.TCPConn) {
				heard, _ := io.ReadAll(conn)
				fmt.Fprintf(conn, "heard %d bytes", len(heard))
				conn.Close()
			})
			stream := open(t, host, 7)
			if err := p.dial(t.Context(), port, 7); err != nil {
				t.Fatal(err)
			}
			if err := p.dial(t.Context(), port, 7); !errdefs.IsAlreadyExists(err) {
				t.Errorf("the same stream again: %v", err)
			}
			if _, err := stream.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
				t.Fatal(err)
			}
			stream.Close()
			if answer, err := io.ReadAll(stream); err != nil || string(answer) != "heard 1048576 bytes" {
				t.Errorf("the answer is %q, %v", answer, err)
			}
			awaitNone(t, p)
		})
	}
}

// A program that never stops to send is stopped when the host's client has gone.
func TestHangUp(t *testing.T) {
	p, host := newPorts(t)
	ended := make(chan error, 1)
	port := serving(t, "127.0.0.1:0", func(conn *net.TCPConn) {
		for {
			if _, err := conn.Write(make([]byte, 1<<16)); err != nil {
				ended <- err
				return
			}
		}
	})
	stream := open(t, host, 7)
	if err := p.dial(t.Context(), port, 7); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(stream, make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	stream.Close()
	p.hangUp(7)
	p.hangUp(8)
	<-ended
	if _, err := io.Copy(io.Discard, stream); err != nil {
		t.Errorf("the stream's end: %v", err)
	}
	awaitNone(t, p)
}

func TestDialRefuses(t *testing.T) {
	p, host := newPorts(t)
	free := serving(t, "127.0.0.1:0", func(conn *net.TCPConn) { conn.Close() })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := uint32(listener.Addr().(*net.TCPAddr).Port)
	listener.Close()
	for i, c := range []struct {
		port   uint32
		stream uint64
		is     func(error) bool
	}{
		{0, 100, errdefs.IsInvalidArgument},
		{65536, 101, errdefs.IsInvalidArgument},
		{free, 0, errdefs.IsInvalidArgument},
		{closed, 102, errdefs.IsNotFound},
	} {
		var stream net.Conn
		if c.stream != 0 {
			stream = open(t, host, c.stream)
		}
		if err := p.dial(t.Context(), c.port, c.stream); !c.is(err) {
			t.Errorf("%d: port %d, stream %d: %v", i, c.port, c.stream, err)
		}
		if stream != nil {
			if n, err := stream.Read(make([]byte, 1)); err != io.EOF { //nolint:errorlint // it is returned as it is
				t.Errorf("%d: the stream of a refused connection: %d bytes, %v", i, n, err)
			}
		}
	}
	if p.count() > 0 {
		t.Errorf("%d connections are left", p.count())
	}
	// A stream that never comes.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.dial(ctx, free, 103); err == nil || p.count() > 0 {
		t.Errorf("without a stream: %v, %d connections", err, p.count())
	}
	for i := range uint64(maxDialed) {
		p.dialed[1000+i] = nil
	}
	if err := p.dial(t.Context(), free, 104); !errdefs.IsResourceExhausted(err) {
		t.Errorf("one connection too many: %v", err)
	}
}
