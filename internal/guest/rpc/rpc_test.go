package rpc

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	spb "google.golang.org/genproto/googleapis/rpc/status"

	guestapi "bulkhead.dev/bulkhead/api/guest"
)

// stub answers Hello, and Wait with an error of each class; everything else panics.
type stub struct {
	guestapi.AgentService
	release chan struct{}
}

func (s *stub) Hello(context.Context, *guestapi.HelloRequest) (*guestapi.HelloResponse, error) {
	return &guestapi.HelloResponse{Protocol: 1, KernelRelease: "6.1"}, nil
}

func (s *stub) Wait(ctx context.Context, r *guestapi.ProcessRequest) (*guestapi.WaitResponse, error) {
	select {
	case <-s.release:
		return &guestapi.WaitResponse{Status: 7}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *stub) Start(context.Context, *guestapi.ProcessRequest) (*guestapi.StartResponse, error) {
	return nil, fmt.Errorf("starting x\x1b[2J: %w", errdefs.ErrNotFound)
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// connect returns both ends of a session and a stub that serves.
func connect(t *testing.T) (*Host, *Guest, *stub) {
	t.Helper()
	hostConn, guestConn := net.Pipe()
	host, err := NewHost(hostConn)
	if err != nil {
		t.Fatal(err)
	}
	guest, err := NewGuest(guestConn)
	if err != nil {
		t.Fatal(err)
	}
	s := &stub{release: make(chan struct{})}
	served := make(chan struct{})
	go func() {
		defer close(served)
		guest.Serve(context.Background(), s)
	}()
	t.Cleanup(func() {
		host.Close()
		<-served
	})
	return host, guest, s
}

func TestCalls(t *testing.T) {
	ctx := testContext(t)
	host, _, s := connect(t)
	hello, err := host.Agent().Hello(ctx, &guestapi.HelloRequest{Protocol: 1})
	if err != nil || hello.KernelRelease != "6.1" {
		t.Fatalf("Hello = %v, %v", hello, err)
	}
	// A call that waits doesn't hold up others.
	waited := make(chan uint32, 1)
	go func() {
		resp, _ := host.Agent().Wait(ctx, &guestapi.ProcessRequest{})
		waited <- resp.GetStatus()
	}()
	_, err = host.Agent().Start(ctx, &guestapi.ProcessRequest{})
	if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "starting x") || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("Start = %q, want a printable NotFound", err)
	}
	close(s.release)
	if got := <-waited; got != 7 {
		t.Errorf("Wait = %d, want 7", got)
	}
}

func TestHelloWaitsForBoot(t *testing.T) {
	ctx := testContext(t)
	hostConn, guestConn := net.Pipe()
	host, err := NewHost(hostConn)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := host.Agent().Hello(short, &guestapi.HelloRequest{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Hello without a guest = %v", err)
	}
	answered := make(chan error, 1)
	go func() {
		_, err := host.Agent().Hello(ctx, &guestapi.HelloRequest{})
		answered <- err
	}()
	guest, err := NewGuest(guestConn)
	if err != nil {
		t.Fatal(err)
	}
	go guest.Serve(ctx, &stub{})
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
}

func TestDataBothWays(t *testing.T) {
	ctx := testContext(t)
	host, guest, _ := connect(t)
	const size = 20 << 20
	data := make([]byte, size)
	rand.Read(data)

	// As cat would: the guest sends back what it gets.
	go func() {
		in, err := guest.Take(ctx, 1)
		if err != nil {
			t.Error(err)
			return
		}
		out, err := guest.Take(ctx, 2)
		if err != nil {
			t.Error(err)
			return
		}
		io.Copy(out, in)
		out.Close()
		in.Close()
	}()
	in, err := host.Open(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	out, err := host.Open(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		in.Write(data)
		in.Close()
	}()
	sum := sha256.New()
	n, err := io.Copy(sum, out)
	if err != nil || n != size {
		t.Fatalf("read %d bytes, %v", n, err)
	}
	if want := sha256.Sum256(data); !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Error("data differs")
	}
	out.Close()
}

func TestSlowReaderStallsNobodyElse(t *testing.T) {
	ctx := testContext(t)
	host, guest, _ := connect(t)
	slow, err := host.Open(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	slowGuest, err := guest.Take(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	// Both directions of stream 1 are full and nobody reads.
	go slow.Write(make([]byte, 10*window))
	go slowGuest.Write(make([]byte, 10*window))

	fast, err := host.Open(ctx, 2)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		s, err := guest.Take(ctx, 2)
		if err != nil {
			return
		}
		s.Write(make([]byte, 8*window))
		s.Close()
	}()
	if n, err := io.Copy(io.Discard, fast); err != nil || n != 8*window {
		t.Fatalf("fast stream: %d bytes, %v", n, err)
	}
	if _, err := host.Agent().Hello(ctx, &guestapi.HelloRequest{}); err != nil {
		t.Fatal(err)
	}
}

func TestTake(t *testing.T) {
	ctx := testContext(t)
	host, guest, _ := connect(t)

	// The call that names a stream may come first.
	taken := make(chan net.Conn, 1)
	go func() {
		s, _ := guest.Take(ctx, 5)
		taken <- s
	}()
	if _, err := host.Open(ctx, 5); err != nil {
		t.Fatal(err)
	}
	if <-taken == nil {
		t.Error("stream 5 was not handed over")
	}
	if _, err := guest.Take(ctx, 0); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Take(0) = %v", err)
	}
	if _, err := host.Open(ctx, 0); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Open(0) = %v", err)
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := guest.Take(short, 6); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Take of a stream that never comes = %v", err)
	}
	host.Close()
	if _, err := guest.Take(ctx, 7); !errdefs.IsUnavailable(err) {
		t.Errorf("Take after the end = %v", err)
	}
	if _, err := host.Open(ctx, 8); !errdefs.IsUnavailable(err) {
		t.Errorf("Open after the end = %v", err)
	}
	if _, err := host.Agent().Hello(ctx, &guestapi.HelloRequest{}); !errdefs.IsUnavailable(err) {
		t.Errorf("Hello after the end = %v", err)
	}
	if err := host.Err(); err != nil {
		t.Errorf("Err after Close = %v", err)
	}
}

// TestDroppedStreams: a stream that nobody wants stalls nobody and is not kept, whenever it comes.
func TestDroppedStreams(t *testing.T) {
	ctx := testContext(t)
	host, guest, _ := connect(t)
	check := func(name string, s net.Conn) {
		t.Helper()
		if _, err := s.Write(make([]byte, 4*window)); err != nil {
			t.Errorf("%s: Write: %v", name, err)
		}
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("%s: Read = %v, want EOF", name, err)
		}
		s.Close()
	}
	open := func(id uint64) net.Conn {
		t.Helper()
		s, err := host.Open(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	guest.Drop(1)
	check("dropped before it came", open(1))

	late := open(2)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		guest.mu.Lock()
		came := guest.untaken[2] != nil
		guest.mu.Unlock()
		if came {
			break
		}
	}
	guest.Drop(2)
	check("dropped after it came", late)

	gone, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := guest.Take(gone, 3); !errors.Is(err, context.Canceled) {
		t.Errorf("Take = %v", err)
	}
	check("given up", open(3))

	for id := uint64(100); id < 100+3*maxDropped; id++ {
		guest.Drop(id)
	}
	guest.mu.Lock()
	defer guest.mu.Unlock()
	if len(guest.dropped) > maxDropped || len(guest.order) > maxDropped || len(guest.untaken) != 0 {
		t.Errorf("%d and %d dropped, %d untaken streams are kept", len(guest.dropped), len(guest.order), len(guest.untaken))
	}
}

func TestUntakenStreamsAreBounded(t *testing.T) {
	ctx := testContext(t)
	host, guest, _ := connect(t)
	var last net.Conn
	for id := uint64(1); id <= maxUntaken+1; id++ {
		for id > maxUntaken { // the guest sorts streams at once, so the last one need not come last
			guest.mu.Lock()
			n := len(guest.untaken)
			guest.mu.Unlock()
			if n == maxUntaken {
				break
			}
			time.Sleep(time.Millisecond)
		}
		s, err := host.Open(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		last = s
	}
	if _, err := last.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("one stream too many: Read = %v, want EOF", err)
	}
	if _, err := guest.Take(ctx, maxUntaken); err != nil {
		t.Error(err)
	}
}

func TestManyStreamsInTurnLeaveNothing(t *testing.T) {
	ctx := testContext(t)
	host, guest, _ := connect(t)
	for id := uint64(1); id <= 2000; id++ {
		s, err := host.Open(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		g, err := guest.Take(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			io.Copy(g, g)
			g.Close()
		}()
		s.Write([]byte("x"))
		s.Close()
		if b, err := io.ReadAll(s); err != nil || string(b) != "x" {
			t.Fatalf("stream %d: %q, %v", id, b, err)
		}
	}
	host.guard.mu.Lock()
	defer host.guard.mu.Unlock()
	if n := len(host.guard.streams); n > 2 {
		t.Errorf("%d streams are still known", n)
	}
}

func frame(kind byte, flags uint16, stream, length uint32) []byte {
	b := []byte{0, kind}
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint32(b, stream)
	return binary.BigEndian.AppendUint32(b, length)
}

func message(length, call uint32, kind byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, length)
	b = binary.BigEndian.AppendUint32(b, call)
	return append(b, kind, 0)
}

func onCalls(b []byte) []byte {
	return append(frame(frameData, flagACK, 1, uint32(len(b))), b...)
}

// endless repeats the same bytes for ever.
type endless struct {
	b   []byte
	off int
}

func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.b[e.off:])
	e.off = (e.off + n) % len(e.b)
	return n, nil
}

// TestHostileGuest plays a guest that has got one call (stream 1) and answers with something else, once or for ever. The
// session must end with an error of class ErrInvalidArgument, or, where the frames are such as an honest guest could
// send, stall; in no case does the host's memory grow.
func TestHostileGuest(t *testing.T) {
	for name, bytes := range map[string][]byte{
		"garbage":                 []byte("\xff\xfe GET / HTTP/1.1\r\n\r\n"),
		"text":                    []byte("Linux version 6.1.0"),
		"own stream":              frame(frameWindow, flagSYN, 2, 0),
		"own stream, host's id":   frame(frameWindow, flagSYN, 3, 0),
		"ping":                    frame(2, flagSYN, 0, 1),
		"pong":                    frame(2, flagACK, 0, 1),
		"go away":                 frame(3, 0, 0, 0),
		"unopened stream":         frame(frameData, 0, 99, 10),
		"stream 0":                frame(frameWindow, 0, 0, 10),
		"4 GiB frame":             frame(frameData, flagACK, 1, 1<<32-1),
		"frame above the window":  frame(frameData, flagACK, 1, window+1),
		"window out of nothing":   frame(frameWindow, flagACK, 1, 1<<31),
		"empty updates":           frame(frameWindow, 0, 1, 0),
		"empty data":              frame(frameData, 0, 1, 0),
		"acknowledged twice":      append(frame(frameWindow, flagACK, 1, 0), frame(frameWindow, flagACK, 1, 0)...),
		"ended twice":             append(frame(frameWindow, flagFIN, 1, 0), frame(frameWindow, flagFIN, 1, 0)...),
		"data after the end":      append(frame(frameWindow, flagFIN, 1, 0), frame(frameData, 0, 1, 1)...),
		"answer to no call":       onCalls(message(0, 77, messageResponse)),
		"4 GiB message":           onCalls(message(1<<32-1, 1, messageResponse)),
		"message above the limit": onCalls(message(maxMessage+1, 1, messageResponse)),
		"request":                 onCalls(message(0, 1, messageRequest)),
		"answered twice":          onCalls(append(message(0, 1, messageResponse), message(0, 1, messageResponse)...)),
	} {
		t.Run(name, func(t *testing.T) {
			ctx := testContext(t)
			hostConn, guestConn := net.Pipe()
			defer guestConn.Close()
			host, err := NewHost(hostConn)
			if err != nil {
				t.Fatal(err)
			}
			defer host.Close()
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			go io.Copy(io.Discard, guestConn)
			called := make(chan struct{})
			go func() {
				defer close(called)
				host.Agent().Hello(ctx, &guestapi.HelloRequest{})
			}()
			waitUntilCalled(t, host)
			go io.Copy(guestConn, &endless{b: bytes})
			select {
			case <-host.Done():
			case <-ctx.Done():
				t.Fatal("session goes on")
			}
			<-called
			if err := host.Err(); !errdefs.IsInvalidArgument(err) {
				t.Errorf("Err = %v, want ErrInvalidArgument", err)
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 2<<20 {
				t.Errorf("heap has grown by %d bytes", grown)
			}
		})
	}
}

// waitUntilCalled returns when the calls stream is open and its request is under way.
func waitUntilCalled(t *testing.T, h *Host) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		h.guard.mu.Lock()
		s := h.guard.streams[1]
		ready := s != nil && s.sent > headerLen
		h.guard.mu.Unlock()
		if ready {
			return
		}
	}
	t.Fatal("no call was sent")
}

func TestGuestThatNeverReads(t *testing.T) {
	hostConn, guestConn := net.Pipe()
	defer guestConn.Close()
	host, err := NewHost(hostConn)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	var wg sync.WaitGroup
	for id := range uint64(20) {
		wg.Go(func() { host.Open(ctx, id+1) })
	}
	wg.Wait() // Open returns when its context ends
	done := make(chan struct{})
	go func() {
		host.Close()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("Close waits for the guest")
	}
}

// Streams that the guest never ends, and never acknowledges, must not pile up on the host.
func TestStreamsOfAGuestThatEndsNoneAreBounded(t *testing.T) {
	ctx := testContext(t)
	host, guest, _ := connect(t)
	for id := uint64(1); ; id++ {
		s, err := host.Open(ctx, id)
		if errdefs.IsResourceExhausted(err) {
			break
		}
		if err != nil || id > maxStreams {
			t.Fatalf("stream %d: %v, want ErrResourceExhausted after %d", id, err, maxStreams)
		}
		if _, err := guest.Take(ctx, id); err != nil {
			t.Fatal(err)
		}
		s.Close()
	}
	if _, err := host.Agent().Hello(ctx, &guestapi.HelloRequest{}); err != nil {
		t.Errorf("calls don't work any more: %v", err)
	}
}

func TestAttemptsOfAGuestThatNeverReadsAreBounded(t *testing.T) {
	hostConn, guestConn := net.Pipe()
	defer guestConn.Close()
	host, err := NewHost(hostConn)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	before := runtime.NumGoroutine()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for id := range uint64(2000) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Microsecond)
		host.Open(ctx, id+1)
		cancel()
	}
	if n := runtime.NumGoroutine() - before; n > 3*maxOpening {
		t.Errorf("%d goroutines try to open streams", n)
	}
	for range 2 * maxAbandoned {
		host.Agent().Hello(gone, &guestapi.HelloRequest{})
	}
	select {
	case <-host.Done():
	case <-time.After(time.Minute):
		t.Fatal("the session goes on")
	}
	if err := host.Err(); err == nil || !strings.Contains(err.Error(), "has not read") {
		t.Errorf("Err = %v", err)
	}
}

func TestGuestDies(t *testing.T) {
	ctx := testContext(t)
	host, guest, _ := connect(t)
	if _, err := host.Agent().Hello(ctx, &guestapi.HelloRequest{}); err != nil {
		t.Fatal(err)
	}
	guest.Close()
	<-host.Done()
	if _, err := host.Agent().Hello(ctx, &guestapi.HelloRequest{}); !errdefs.IsUnavailable(err) {
		t.Errorf("Hello = %v, want ErrUnavailable", err)
	}
	if err := host.Err(); err == nil {
		t.Error("Err = nil, want why the session ended")
	}
}

func TestHeader(t *testing.T) {
	for name, tc := range map[string]struct {
		kind kind
		id   uint64
		ok   bool
	}{
		"calls":         {kindCalls, 0, true},
		"data":          {kindData, 1 << 63, true},
		"calls with id": {kindCalls, 1, false},
		"data without":  {kindData, 0, false},
		"unknown kind":  {3, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			k, id, err := parseHeader([headerLen]byte(appendHeader(nil, tc.kind, tc.id)))
			if (err == nil) != tc.ok {
				t.Fatalf("parseHeader: %v", err)
			}
			if tc.ok && (k != tc.kind || id != tc.id) {
				t.Errorf("got %d %d", k, id)
			}
		})
	}
}

func TestErrorClasses(t *testing.T) {
	for _, c := range classes {
		st := &spb.Status{Code: int32(c.code), Message: "m"}
		if err := fromStatus(st); !errors.Is(err, c.err) {
			t.Errorf("code %v becomes %v", c.code, err)
		}
	}
	if err := fromStatus(&spb.Status{Code: 99, Message: strings.Repeat("x", 1<<20)}); len(err.Error()) > maxErrorText+10 || !errdefs.IsUnknown(err) {
		t.Errorf("long error of unknown code: %d bytes, class %T", len(err.Error()), err)
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(appendHeader(nil, kindCalls, 0))
	f.Add(appendHeader(nil, kindData, 42))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerLen {
			return
		}
		k, id, err := parseHeader([headerLen]byte(b))
		if err == nil && !bytes.Equal(appendHeader(nil, k, id), b[:headerLen]) {
			t.Errorf("%x is read as %d %d", b[:headerLen], k, id)
		}
	})
}

// FuzzHost feeds the host whatever a guest might send after a first call, and wants it to end and to leave nothing.
func FuzzHost(f *testing.F) {
	f.Add(onCalls(message(0, 1, messageResponse)))
	f.Add(append(frame(frameWindow, flagACK, 1, 0), frame(frameData, flagFIN, 1, 3)...))
	f.Add(append(frame(frameWindow, flagACK|flagRST, 1, 0), frame(frameData, flagFIN, 3, 3)...))
	f.Add([]byte("garbage that is longer than a header"))
	f.Fuzz(func(t *testing.T, b []byte) {
		hostConn, guestConn := net.Pipe()
		host, err := NewHost(hostConn)
		if err != nil {
			t.Fatal(err)
		}
		go io.Copy(io.Discard, guestConn)
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		called := make(chan struct{})
		go func() {
			defer close(called)
			host.Agent().Hello(ctx, &guestapi.HelloRequest{})
		}()
		waitUntilCalled(t, host)
		guestConn.Write(b)
		guestConn.Close()
		<-called
		<-host.Done()
		host.Close()
		if ctx.Err() != nil {
			t.Fatal("the call outlived the connection")
		}
	})
}

// FuzzMessages checks that the scanner finds the same headers however the bytes are cut.
func FuzzMessages(f *testing.F) {
	f.Add(append(message(3, 1, 2), "abc"...), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		var whole, pieces []string
		note := func(to *[]string) func(l, c uint32, k byte) error {
			return func(l, c uint32, k byte) error {
				*to = append(*to, fmt.Sprint(l, c, k))
				return nil
			}
		}
		var one, many messageScanner
		one.scan(b, note(&whole))
		for rest := b; len(rest) > 0; {
			n := min(len(rest), int(step)+1)
			many.scan(rest[:n], note(&pieces))
			rest = rest[n:]
		}
		if fmt.Sprint(whole) != fmt.Sprint(pieces) {
			t.Errorf("whole %v, in pieces %v", whole, pieces)
		}
	})
}
