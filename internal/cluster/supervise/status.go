package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

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
	// Problem says why it isn't ready.
	Problem string `json:"problem,omitempty"`
}

const (
	statusFile    = "status.json"
	recordVersion = 1
)

// record is the content of status.json.
type record struct {
	Version    int    `json:"version"`
	Boot       string `json:"boot"` // the kernel's boot_id: after a reboot numbers mean other processes
	Supervisor int    `json:"supervisor"`
	Spec       string `json:"spec"` // hash of the spec.json that it is about
	// Refused is the hash of a spec.json that couldn't be taken, Problem says why.
	Refused   string            `json:"refused,omitempty"`
	Problem   string            `json:"problem,omitempty"`
	Processes []recordedProcess `json:"processes"`
}

type recordedProcess struct {
	ProcessStatus
	Ticks uint64 `json:"ticks,omitempty"` // start time of PID
	Log   string `json:"log"`
	// Unstartable says that it couldn't be run last time; LastExit says why.
	Unstartable bool `json:"unstartable,omitempty"`
}

// bootID is empty where the kernel doesn't tell; then start times have to do.
func bootID() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}

// readRecord returns the zero record if there is none.
func readRecord(dir string) (record, error) {
	data, err := os.ReadFile(filepath.Join(dir, statusFile))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, nil
	}
	var r record
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err == nil && r.Version != recordVersion {
		err = fmt.Errorf("it has version %d, not %d: %w", r.Version, recordVersion, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return record{}, fmt.Errorf("read status in %s: %w", dir, err)
	}
	return r, nil
}

func (r record) write(dir string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	if err := replace(filepath.Join(dir, statusFile), data); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

// has says whether the process is one that was recorded.
func (r record) has(h handle) bool {
	p := r.process(h)
	return p.PID != 0
}

// process returns what was recorded of a process, or the zero value.
func (r record) process(h handle) recordedProcess {
	if r.Boot != bootID() {
		return recordedProcess{}
	}
	for _, p := range r.Processes {
		if p.PID == h.pid && p.Ticks == h.ticks {
			return p
		}
	}
	return recordedProcess{}
}

// Status says what the processes do. A directory without a supervisor, which never had one, has the zero State. What the
// file says of processes that have ended since is corrected.
func Status(dir string) (State, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return State{}, fmt.Errorf("find directory %s: %w", dir, err)
	}
	r, err := readRecord(dir)
	if err != nil {
		return State{}, err
	}
	supervisor, err := holder(dir)
	if err != nil {
		return State{}, err
	}
	s := State{Supervisor: supervisor}
	current := r.Boot == bootID()
	for _, p := range r.Processes {
		if p.PID != 0 && (!current || !alive(p.PID, p.Ticks)) {
			p.PID, p.Ready = 0, false
			if supervisor == 0 {
				p.Phase = Stopped
			}
		}
		if supervisor == 0 {
			p.Ready = false
			if p.PID == 0 {
				p.Phase = Stopped
			}
		}
		s.Processes = append(s.Processes, p.ProcessStatus)
	}
	return s, nil
}

// pollStatus is how often files are looked at while waiting.
const pollStatus = 20 * time.Millisecond

// WaitReady returns when the named processes are ready, or all if no name is given. When the context ends first, or the
// supervisor does, the error says which process isn't ready and why, and has the end of its log.
func WaitReady(ctx context.Context, dir string, names ...string) error {
	tick := time.NewTicker(pollStatus)
	defer tick.Stop()
	for {
		s, err := Status(dir)
		if err != nil {
			return err
		}
		if s.Supervisor == 0 {
			return fmt.Errorf("no supervisor runs in %s; its log ends with:\n%s: %w", dir, tail(filepath.Join(dir, logFile)), errdefs.ErrUnavailable)
		}
		late, err := s.notReady(names)
		if err != nil || len(late) == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return lateness(ctx, dir, late)
		case <-tick.C:
		}
	}
}

func (s State) notReady(names []string) ([]ProcessStatus, error) {
	for _, name := range names {
		if !slices.ContainsFunc(s.Processes, func(p ProcessStatus) bool { return p.Name == name }) {
			return nil, fmt.Errorf("process %s is not supervised: %w", name, errdefs.ErrNotFound)
		}
	}
	return slices.DeleteFunc(slices.Clone(s.Processes), func(p ProcessStatus) bool {
		return p.Ready || len(names) > 0 && !slices.Contains(names, p.Name)
	}), nil
}

// lateness describes the first process that isn't ready because of itself, and names the others.
func lateness(ctx context.Context, dir string, late []ProcessStatus) error {
	first := late[max(0, slices.IndexFunc(late, func(p ProcessStatus) bool { return p.Phase != Waiting }))]
	var others []string
	for _, p := range late {
		if p.Name != first.Name {
			others = append(others, p.Name)
		}
	}
	text := fmt.Sprintf("process %s is not ready (%s, %d restarts)", first.Name, first.Phase, first.Restarts)
	if first.Problem != "" {
		text += ": " + first.Problem
	}
	if first.LastExit != "" {
		text += ": it ended last with " + first.LastExit
	}
	if len(others) > 0 {
		text += "; neither are " + strings.Join(others, ", ")
	}
	r, err := readRecord(dir)
	if err == nil {
		if i := slices.IndexFunc(r.Processes, func(p recordedProcess) bool { return p.Name == first.Name }); i >= 0 {
			text += "; its log ends with:\n" + tail(r.Processes[i].Log)
		}
	}
	return fmt.Errorf("%w: %s", ctx.Err(), text)
}
