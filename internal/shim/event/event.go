// Package event brings a shim's events to containerd, in the order in which they happened.
//
//	task services ── Publish ──► queue (bounded) ── one goroutine ──► Forwarder ──► containerd
//
// Publish never waits: a service that reports an exit must not be held up by a containerd that is being restarted. One
// goroutine forwards the queue's head until that has succeeded, or has failed for so long that containerd can't want it any
// more, and only then the next: so nothing overtakes. After a restart containerd asks for the state of every task anyway;
// events are what makes it quick, not what makes it right.
//
// There are two forwarders: [Socket] speaks to containerd's ttrpc events service, [Binary] starts containerd's own binary with
// "publish" for each event, as shims did before there was that service.
package event

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// queueSize bounds what waits for containerd. A pod makes a handful of events in its life; execs of probes make more.
	queueSize = 1024
	// forwardTimeout bounds one attempt.
	forwardTimeout = 5 * time.Second
)

// Forwarder brings one event to containerd.
type Forwarder interface {
	// Forward returns when containerd has the event. An ErrInvalidArgument is final; after any other error the caller
	// may try again with the same event.
	Forward(ctx context.Context, envelope *types.Envelope) error
	// Close lets go of the connection. Forward must not be called afterwards.
	Close() error
}

// Publisher is a queue in front of a Forwarder. Its methods may be called from several goroutines.
type Publisher struct {
	namespace string
	forwarder Forwarder
	log       *slog.Logger
	patience  time.Duration // how long one event is tried for
	pause     time.Duration // before the second attempt; doubled for each further one

	mu     sync.Mutex
	queue  chan *types.Envelope // closed with the publisher
	closed bool

	stop context.CancelFunc
	done chan struct{}
}

// NewPublisher returns a publisher of events of a containerd namespace. It owns the forwarder.
func NewPublisher(namespace string, forwarder Forwarder, log *slog.Logger) *Publisher {
	return newPublisher(namespace, forwarder, log, time.Minute, 100*time.Millisecond)
}

func newPublisher(namespace string, forwarder Forwarder, log *slog.Logger, patience, pause time.Duration) *Publisher {
	ctx, stop := context.WithCancel(context.Background())
	p := &Publisher{
		namespace: namespace,
		forwarder: forwarder,
		log:       log,
		patience:  patience,
		pause:     pause,
		queue:     make(chan *types.Envelope, queueSize),
		stop:      stop,
		done:      make(chan struct{}),
	}
	go p.run(ctx)
	return p
}

// Publish queues an event, one of containerd's containerd.events.Task messages, and returns at once. When the queue is full
// or the publisher closed, the event is logged and dropped.
func (p *Publisher) Publish(event proto.Message) {
	envelope, err := p.envelope(event)
	if err != nil {
		p.log.Error("event dropped", "error", err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		p.log.Warn("event dropped", "topic", envelope.Topic, "error", "the publisher is closed")
		return
	}
	select {
	case p.queue <- envelope:
	default:
		p.log.Error("event dropped", "topic", envelope.Topic, "error", "the queue to containerd is full")
	}
}

// Close forwards what is queued, until ctx ends, and then closes the forwarder. It is idempotent.
func (p *Publisher) Close(ctx context.Context) error {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		close(p.queue)
	}
	p.mu.Unlock()
	select {
	case <-p.done:
		p.stop()
		return nil
	case <-ctx.Done():
		p.stop()
		<-p.done
		return fmt.Errorf("forward the last events to containerd: %w", ctx.Err())
	}
}

func (p *Publisher) run(ctx context.Context) {
	defer close(p.done)
	defer p.forwarder.Close()
	for envelope := range p.queue {
		if err := p.forward(ctx, envelope); err != nil {
			p.log.Error("event dropped", "topic", envelope.Topic, "error", err)
		}
	}
}

// forward tries until the event is forwarded, refused for good, or too old.
func (p *Publisher) forward(ctx context.Context, envelope *types.Envelope) error {
	giveUp := time.Now().Add(p.patience)
	for pause := p.pause; ; pause = min(2*pause, 5*time.Second) {
		attempt, cancel := context.WithTimeout(ctx, forwardTimeout)
		err := p.forwarder.Forward(attempt, envelope)
		cancel()
		if err == nil || errdefs.IsInvalidArgument(err) {
			return err
		}
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), err)
		}
		if time.Now().Add(pause).After(giveUp) {
			return fmt.Errorf("tried for %v: %w", p.patience, err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

func (p *Publisher) envelope(event proto.Message) (*types.Envelope, error) {
	topic, ok := Topic(event)
	if !ok {
		return nil, fmt.Errorf("an event of type %T has no topic: %w", event, errdefs.ErrInvalidArgument)
	}
	value, err := proto.Marshal(event)
	if err != nil {
		return nil, fmt.Errorf("marshal %T: %w", event, err)
	}
	return &types.Envelope{
		Timestamp: timestamppb.Now(),
		Namespace: p.namespace,
		Topic:     topic,
		// containerd's types have no host in their URL.
		Event: &anypb.Any{TypeUrl: string(event.ProtoReflect().Descriptor().FullName()), Value: value},
	}, nil
}

// Topic returns the topic that containerd has for an event.
func Topic(event proto.Message) (string, bool) {
	switch event.(type) {
	case *events.TaskCreate:
		return "/tasks/create", true
	case *events.TaskStart:
		return "/tasks/start", true
	case *events.TaskOOM:
		return "/tasks/oom", true
	case *events.TaskExit:
		return "/tasks/exit", true
	case *events.TaskDelete:
		return "/tasks/delete", true
	case *events.TaskExecAdded:
		return "/tasks/exec-added", true
	case *events.TaskExecStarted:
		return "/tasks/exec-started", true
	case *events.TaskPaused:
		return "/tasks/paused", true
	case *events.TaskResumed:
		return "/tasks/resumed", true
	}
	return "", false
}
