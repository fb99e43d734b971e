package sandbox

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"bulkhead.dev/bulkhead/internal/guest/guesttest"
)

// forwarding starts a sandbox whose namespace has a loopback address, and returns a function that connects to it.
func forwarding(t *testing.T, port uint16) (*Sandbox, func() (net.Conn, error)) {
	t.Helper()
	w := newWorld(t)
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	w.loopback, w.port = listener, port
	s, err := start(t.Context(), w.deps, w.spec, w.host())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Stop(t.Context()) })
	return s, func() (net.Conn, error) {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			return nil, err
		}
		t.Cleanup(func() { conn.Close() })
		return conn, conn.SetDeadline(time.Now().Add(time.Minute))
	}
}

// echo makes a connection, which it leaves open, and sees whether anything comes back.
func echo(dial func() (net.Conn, error)) error {
	conn, err := dial()
	if err != nil {
		return err // a reset may come as early as that
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 1))
	return err
}

func TestPortsAreForwarded(t *testing.T) {
	_, dial := forwarding(t, 80)
	var all sync.WaitGroup
	for range 20 {
		conn, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			sent := make([]byte, 1<<20)
			rand.Read(sent)
			go func() {
				conn.Write(sent)
				conn.(*net.TCPConn).CloseWrite() // what the guest still answers must come
			}()
			got, err := io.ReadAll(conn)
			if err != nil || !bytes.Equal(sent, got) {
				t.Errorf("of %d bytes %d came back: %v", len(sent), len(got), err)
			}
		})
	}
	all.Wait()
}

func TestNobodyListens(t *testing.T) {
	_, dial := forwarding(t, guesttest.RefusedPort)
	if err := echo(dial); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%v; want a reset", err)
	}
}

// A client that goes away ends its connection in the guest, also if the program there never stops to send.
func TestClientGoesAway(t *testing.T) {
	_, dial := forwarding(t, guesttest.FloodPort)
	for range 2 * maxForwarded { // more than there are places
		conn, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
}

// A pod that ends takes its connections along, and there are never too many of them.
func TestForwardedConnectionsEnd(t *testing.T) {
	s, dial := forwarding(t, 80)
	first, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	var established []net.Conn
	kept := func() (net.Conn, error) {
		conn, err := dial()
		established = append(established, conn)
		return conn, err
	}
	for range maxForwarded - 1 {
		if err := echo(kept); err != nil {
			t.Fatal(err)
		}
	}
	waiting := make(chan error, 1)
	go func() { waiting <- echo(dial) }()
	select {
	case err := <-waiting:
		t.Errorf("one connection too many doesn't wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	first.Close()
	if err := <-waiting; err != nil {
		t.Errorf("a connection that ended leaves no room: %v", err)
	}
	go func() { waiting <- echo(dial) }()
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i, conn := range established {
		if n, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("after the pod's end connection %d reads %d bytes, %v", i, n, err)
		}
	}
	if err := <-waiting; err == nil {
		t.Error("a pod that has ended answers")
	}
}
