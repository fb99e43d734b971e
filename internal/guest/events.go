package guest

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"

	guestapi "bulkhead.dev/bulkhead/api/guest"
)

// eventQueue keeps events until the host asks for them. When it is full, the oldest goes.
type eventQueue struct {
	mu     sync.Mutex
	queue  []*guestapi.Event // guarded by mu
	arrive chan struct{}     // guarded by mu; closed and replaced when an event comes
	newer  chan struct{}     // guarded by mu; closed when a newer call waits
}

func newEventQueue() *eventQueue { return &eventQueue{arrive: make(chan struct{})} }

func (q *eventQueue) add(e *guestapi.Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.queue) >= maxEvents {
		q.queue = q.queue[1:]
	}
	q.queue = append(q.queue, e)
	close(q.arrive)
	q.arrive = make(chan struct{})
}

// next waits for an event. Calls on the channel can't be taken back, so an older call that still waits gives way: it
// would take an event that nobody reads.
func (q *eventQueue) next(ctx context.Context) (*guestapi.Event, error) {
	q.mu.Lock()
	if q.newer != nil {
		close(q.newer)
	}
	newer := make(chan struct{})
	q.newer = newer
	q.mu.Unlock()
	for {
		q.mu.Lock()
		if q.newer == newer && len(q.queue) > 0 {
			e := q.queue[0]
			q.queue = q.queue[1:]
			q.newer = nil
			q.mu.Unlock()
			return e, nil
		}
		arrive := q.arrive
		q.mu.Unlock()
		select {
		case <-arrive:
		case <-newer:
			return nil, fmt.Errorf("waiting for an event: a newer call does: %w", errdefs.ErrAborted)
		case <-ctx.Done():
			q.mu.Lock()
			if q.newer == newer {
				q.newer = nil
			}
			q.mu.Unlock()
			return nil, ctx.Err()
		}
	}
}
