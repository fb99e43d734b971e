package guest

import "errors"

// undo is a stack of what takes back the steps done so far. A step that failed is not on it.
type undo []func() error

func (u *undo) add(f func() error) { *u = append(*u, f) }

// run takes back all steps, the last first, and goes on when one can't be taken back. Those that could are forgotten, so
// that a second run tries the others again.
func (u *undo) run() error {
	var errs []error
	var left undo
	for i := len(*u) - 1; i >= 0; i-- {
		if err := (*u)[i](); err != nil {
			errs = append(errs, err)
			left = append(undo{(*u)[i]}, left...)
		}
	}
	*u = left
	return errors.Join(errs...)
}
