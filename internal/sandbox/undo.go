package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// step is one side effect of a construction, and what takes it back.
type step struct {
	name string
	do   func(ctx context.Context) error
	undo func(ctx context.Context) error
	// last: undone only when every step after it is. It is so for the record of what there is to undo.
	last bool
}

// undoStack takes side effects back, last first. A step leaves the stack when its undo has succeeded, so that unwinding
// again tries again what is left.
type undoStack struct {
	mu    sync.Mutex
	steps []step
}

func (u *undoStack) push(s step) {
	if s.undo == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.steps = append(u.steps, s)
}

// unwind undoes every step. One that fails doesn't keep the ones before it from being undone.
func (u *undoStack) unwind(ctx context.Context) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	var errs []error
	var left []step
	for i := len(u.steps) - 1; i >= 0; i-- {
		if u.steps[i].last && len(left) > 0 {
			left = append([]step{u.steps[i]}, left...)
			continue
		}
		if err := u.steps[i].undo(ctx); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", u.steps[i].name, err))
			left = append([]step{u.steps[i]}, left...)
		}
	}
	u.steps = left
	return errors.Join(errs...)
}

// run does the steps in order. When one fails those before it are undone. after is asked after each step, for tests;
// an errCrash from it returns at once, as if the process had died there.
func (u *undoStack) run(ctx context.Context, after func(step string) error, steps []step) error {
	for _, s := range steps {
		err := ctx.Err()
		if err == nil {
			err = s.do(ctx)
		}
		if err == nil {
			u.push(s)
			err = after(s.name)
		}
		if errors.Is(err, errCrash) {
			return err
		}
		if err != nil {
			undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
			defer cancel()
			return errors.Join(fmt.Errorf("%s: %w", s.name, err), u.unwind(undoCtx))
		}
	}
	return nil
}

// errCrash is what a test's failpoint returns to end a construction without its undo.
var errCrash = errors.New("crash")
