package task

import (
	"fmt"
	"slices"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
)

// state is where a process is in its life.
//
//	created ──► running ◄──► paused
//	   │  │        │            │
//	   │  └───► stopped ◄───────┘
//	   ▼           ▼
//	    ─► deleted
type state int

const (
	created state = iota
	running
	paused
	stopped
	deleted
)

var stateNames = [...]string{created: "created", running: "running", paused: "paused", stopped: "stopped", deleted: "deleted"}

func (s state) String() string { return stateNames[s] }

// moves lists where each state leads.
var moves = [...][]state{
	created: {running, stopped, deleted},
	running: {paused, stopped},
	paused:  {running, stopped},
	stopped: {deleted},
	deleted: nil,
}

// check says whether a process may become next. What names the process, for the error.
func (s state) check(next state, what string) error {
	if slices.Contains(moves[s], next) {
		return nil
	}
	if s == deleted {
		return fmt.Errorf("%s is %s and can't become %s: %w", what, s, next, errdefs.ErrNotFound)
	}
	return fmt.Errorf("%s is %s and can't become %s: %w", what, s, next, errdefs.ErrFailedPrecondition)
}

// status is containerd's word for the state.
func (s state) status() tasktypes.Status {
	switch s {
	case created:
		return tasktypes.Status_CREATED
	case running:
		return tasktypes.Status_RUNNING
	case paused:
		return tasktypes.Status_PAUSED
	case stopped:
		return tasktypes.Status_STOPPED
	}
	return tasktypes.Status_UNKNOWN
}
