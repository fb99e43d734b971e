package supervise

import "time"

// State is what a supervisor's processes do.
type State struct {
	// Supervisor is the supervisor's process, or 0 if none runs.
	Supervisor int
	// Processes are in the Spec's order.
	Processes []ProcessStatus
}

// Phase is where a process is between not started and stopped.
type Phase string

// The phases of a process.
const (
	Waiting Phase = "waiting" // for those that it comes after
	Running Phase = "running"
	Backoff Phase = "backoff" // it ended, and is started again after a pause
	Stopped Phase = "stopped"
)

// ProcessStatus is what one process does.
type ProcessStatus struct {
	Name  string `json:"name"`
	Phase Phase  `json:"phase"`
	// PID is 0 if it doesn't run.
	PID int `json:"pid,omitempty"`
	// Ready says that its probe succeeded last time. It is false if there is no supervisor to ask.
	Ready    bool `json:"ready"`
	Restarts int  `json:"restarts"`
	// Since is when it came into its phase.
	Since time.Time `json:"since"`
	// LastExit says how it ended last time.
	LastExit string `json:"lastExit,omitempty"`
}
