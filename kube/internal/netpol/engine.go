package netpol

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/knftables"
)

const (
	// debounce is how long a change waits for others that come with it.
	debounce = 50 * time.Millisecond
	// minInterval is the least time from one sync to the next.
	minInterval = 100 * time.Millisecond
	// minRetry and maxRetry bound the wait after a sync that went wrong; it doubles.
	minRetry = time.Second
	maxRetry = 30 * time.Second
	// spareObjects is how many sets and chains may be out of use in any table, however small, before they are swept away.
	spareObjects = 100
	// checkInterval is how often the engine looks whether its table is still there.
	checkInterval = 30 * time.Second
)

// Options say what an [Engine] works on. All but StandIns are needed.
type Options struct {
	// Node is the name of the node whose network namespace the engine runs in.
	Node   string
	Client kubernetes.Interface
	// NFT work on the tables inet [Tables].
	NFT [2]knftables.Interface
	Log *slog.Logger
	// StandIns are pods that the API doesn't know.
	StandIns []*corev1.Pod
}

// Engine keeps a node's table as the API's objects want it.
type Engine struct {
	o       Options
	watched *watched
	kick    chan struct{}

	// What follows belongs to the goroutine of Run.
	current  int      // which of the tables is in use, if applied is known
	applied  *table   // what the kernel has in it; nil if that isn't known
	wanted   *table   // the part of it that the last sync wanted
	problems []string // those that have been logged
}

// New makes an engine that [Engine.Run] starts.
func New(o Options) (*Engine, error) {
	e := &Engine{o: o, kick: make(chan struct{}, 1)}
	w, err := watch(o.Client, e.changed)
	if err != nil {
		return nil, err
	}
	e.watched = w
	return e, nil
}

func (e *Engine) changed() {
	select {
	case e.kick <- struct{}{}:
	default: // a change is waiting already
	}
}

// Run works until ctx ends, and leaves the table in place. It touches the table for the first time when the informers
// have listed everything. A sync that goes wrong is logged and tried again.
func (e *Engine) Run(ctx context.Context) error {
	if !e.watched.start(ctx) {
		return ctx.Err()
	}
	check := time.NewTicker(checkInterval)
	defer check.Stop()
	due := time.After(0)
	retry := minRetry
	var last time.Time
	waiting := true // for due
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-check.C:
			e.check(ctx)
		case <-e.kick:
			if !waiting {
				due, waiting = time.After(max(debounce, minInterval-time.Since(last))), true
			}
		case <-due:
			waiting = false
			last = time.Now()
			if err := e.sync(ctx); err != nil && ctx.Err() == nil {
				e.o.Log.Error("sync went wrong", "error", err, "retry", retry)
				due, waiting = time.After(retry), true
				retry = min(2*retry, maxRetry)
			} else {
				retry = minRetry
			}
		}
	}
}

// sync makes the table what it should be.
func (e *Engine) sync(ctx context.Context) error {
	begin := time.Now()
	state, err := e.watched.state(e.o.Node, e.o.StandIns)
	if err != nil {
		return err
	}
	rules := Compile(state)
	e.logProblems(rules.Problems)
	operations, err := e.apply(ctx, rules.table())
	if err != nil {
		return fmt.Errorf("writing the nftables table: %w", err)
	}
	level, message := slog.LevelDebug, "policies in place already"
	if operations > 0 {
		level, message = slog.LevelInfo, "policies applied"
	}
	c := rules.Counts
	e.o.Log.Log(ctx, level, message, "policies", c.Policies, "pods", c.Pods, "local", c.LocalPods, "isolated", c.Isolated,
		"starting", rules.Pending != (Directions{}), "operations", operations, "took", time.Since(begin).Round(time.Millisecond))
	return nil
}

// apply makes the kernel's table what is wanted and returns how many operations that took: none, if it was so already. If the
// kernel's table isn't known, a new one takes its place.
//
// It takes several transactions, since one is not as atomic as it seems. A packet takes its rules from the generation that was current
// when it entered the chain of the hook, and the elements of sets and maps from the one that is current when it comes to each. One that is
// on its way while a transaction ends can thus follow a new element to a new chain that is still empty for it. So what a transaction
// leads packets to was made by an earlier one.
func (e *Engine) apply(ctx context.Context, wanted *table) (int, error) {
	if e.applied != nil {
		n, err := e.update(ctx, wanted)
		if err == nil || ctx.Err() != nil {
			return n, err
		}
		e.o.Log.Warn("the nftables table could not be changed and will be replaced", "error", err)
	}
	return e.replace(ctx, wanted)
}

// update makes what is wanted of the current table, which is known.
func (e *Engine) update(ctx context.Context, wanted *table) (int, error) {
	nft, last := e.o.NFT[e.current], e.wanted
	prepare, change := nft.NewTransaction(), nft.NewTransaction()
	after := wanted.change(change, wanted.prepare(prepare, e.applied, last))
	n, err := e.run(ctx, nft, prepare, change)
	if err != nil {
		return 0, err
	}
	if after.objects() > 2*wanted.objects()+spareObjects {
		// What the last table had may be where a packet is, of which there has been no more than a moment to go on.
		sweep := nft.NewTransaction()
		after = after.sweep(sweep, wanted, last)
		if _, err := e.run(ctx, nft, sweep); err != nil {
			return 0, err
		}
	}
	e.applied, e.wanted = after, wanted
	return n, nil
}

// replace makes a new table beside what there is, and removes that when the new one holds. Until then both do.
func (e *Engine) replace(ctx context.Context, wanted *table) (int, error) {
	// If both are there an engine ended in between, and one is enough.
	next := 1
	if there, err := attached(ctx, e.o.NFT[0]); err != nil {
		return 0, err
	} else if !there {
		next = 0
	}
	create, attach, rest := e.o.NFT[next].NewTransaction(), e.o.NFT[next].NewTransaction(), e.o.NFT[1-next].NewTransaction()
	wanted.create(create)
	wanted.attach(attach)
	remove(rest)
	n, err := e.run(ctx, e.o.NFT[next], create, attach)
	if err != nil {
		return 0, err
	}
	if _, err := e.run(ctx, e.o.NFT[1-next], rest); err != nil {
		return 0, err
	}
	e.current, e.applied, e.wanted = next, wanted, wanted
	return n, nil
}

// attached tells whether the kernel calls the table.
func attached(ctx context.Context, nft knftables.Interface) (bool, error) {
	chains, err := nft.List(ctx, "chain")
	if knftables.IsNotFound(err) {
		return false, nil
	}
	return slices.Contains(chains, forwardChain), err
}

// run runs the transactions that have operations and returns how many these are. After an error what the kernel has isn't known.
func (e *Engine) run(ctx context.Context, nft knftables.Interface, transactions ...*knftables.Transaction) (int, error) {
	n := 0
	for _, tx := range transactions {
		if tx.NumOperations() == 0 {
			continue
		}
		if err := nft.Run(ctx, tx); err != nil {
			e.applied = nil
			return 0, err
		}
		n += tx.NumOperations()
	}
	return n, nil
}

// logProblems logs those that are new.
func (e *Engine) logProblems(problems []string) {
	for _, p := range problems {
		if !slices.Contains(e.problems, p) {
			e.o.Log.Warn("part of a policy can't be understood and allows nothing", "problem", p)
		}
	}
	e.problems = problems
}

// check has the table made again if someone has removed it.
func (e *Engine) check(ctx context.Context) {
	if e.applied == nil {
		return // a sync is due anyway
	}
	there, err := attached(ctx, e.o.NFT[e.current])
	if err != nil {
		e.o.Log.Warn("looking at the nftables table", "error", err)
		return
	}
	if there {
		return
	}
	e.o.Log.Warn("the nftables table is gone and will be made again")
	e.applied = nil
	e.changed()
}
