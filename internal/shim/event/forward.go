package event

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"sync"

	eventsapi "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
)

// Socket forwards to containerd's ttrpc events service. It connects when it is first used, and again after containerd was
// restarted.
type Socket struct {
	path string

	mu     sync.Mutex
	client *ttrpc.Client // nil: not connected
}

// NewSocket returns a forwarder to the unix socket of an address, with or without "unix://".
func NewSocket(address string) *Socket {
	return &Socket{path: strings.TrimPrefix(address, "unix://")}
}

// Forward implements [Forwarder].
func (s *Socket) Forward(ctx context.Context, envelope *types.Envelope) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", s.path)
		if err != nil {
			return fmt.Errorf("connect to containerd's events service: %w", err)
		}
		s.client = ttrpc.NewClient(conn)
	}
	_, err := eventsapi.NewTTRPCEventsClient(s.client).Forward(ctx, &eventsapi.ForwardRequest{Envelope: envelope})
	if err != nil {
		// Whatever it was, a new connection is the way to a known state.
		s.client.Close()
		s.client = nil
		return fmt.Errorf("forward %s to containerd: %w", envelope.Topic, errgrpc.ToNative(err))
	}
	return nil
}

// Close implements [Forwarder].
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		return nil
	}
	err := s.client.Close()
	s.client = nil
	return err
}

// Binary forwards by starting containerd's binary: "containerd --address A publish --topic T --namespace N", with the event
// as a protobuf Any on its standard input.
type Binary struct{ path, address string }

// NewBinary returns a forwarder that starts the binary at path, which connects to containerd's gRPC address.
func NewBinary(path, address string) *Binary { return &Binary{path: path, address: address} }

// Forward implements [Forwarder].
func (b *Binary) Forward(ctx context.Context, envelope *types.Envelope) error {
	event, err := proto.Marshal(envelope.Event)
	if err != nil {
		return fmt.Errorf("marshal event of %s: %w", envelope.Topic, err)
	}
	cmd := exec.CommandContext(ctx, b.path, "--address", b.address, "publish", "--topic", envelope.Topic, "--namespace", envelope.Namespace)
	cmd.Stdin = bytes.NewReader(event)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("publish %s with %s: %w: %.1000q", envelope.Topic, b.path, err, out)
	}
	return nil
}

// Close implements [Forwarder].
func (b *Binary) Close() error { return nil }

// Discard forwards to nowhere: for a shim that was told no address.
type Discard struct{}

// Forward implements [Forwarder].
func (Discard) Forward(context.Context, *types.Envelope) error { return nil }

// Close implements [Forwarder].
func (Discard) Close() error { return nil }
