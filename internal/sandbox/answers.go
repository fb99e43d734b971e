package sandbox

import (
	"context"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/containerd/errdefs"

	guestapi "bulkhead.dev/bulkhead/api/guest"
)

// What the guest answers is hostile. The functions below are where it is made small and plausible; package rpc has
// bounded the size of messages and the texts of errors already.

const (
	// maxPID is the kernel's own limit (include/linux/threads.h, PID_MAX_LIMIT).
	maxPID = 4 << 20
	// maxPids is how many processes of a container are passed on.
	maxPids = 64 << 10
	// maxText is how much of a text is passed on.
	maxText = 128
	// clockSkew is how far the guest's clock may be off before the host's is taken.
	clockSkew = time.Minute
	// maxEvents is how many events are kept for a reader.
	maxEvents = 64
	// eventPause is between two events, so that a guest that makes them up without end costs little, here and for
	// everybody whom the shim tells about them.
	eventPause = 50 * time.Millisecond
)

// bounded makes a text short and printable.
func bounded(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, text[:min(len(text), maxText)])
	return text
}

func checkPID(pid uint32) (uint32, error) {
	if pid == 0 || pid > maxPID {
		return 0, fmt.Errorf("the guest answers with process id %d: %w", pid, errdefs.ErrInternal)
	}
	return pid, nil
}

// checkPids leaves out ids that can't be, and the names of execs that the host doesn't know.
func (c *container) checkPids(answer []*guestapi.PidInfo) []Pid {
	c.mu.Lock()
	defer c.mu.Unlock()
	pids := make([]Pid, 0, min(len(answer), maxPids))
	for _, info := range answer {
		if len(pids) == maxPids {
			break
		}
		if _, err := checkPID(info.GetPid()); err != nil {
			continue
		}
		pid := Pid{PID: info.Pid}
		if c.execs[info.Exec] != nil {
			pid.Exec = info.Exec
		}
		pids = append(pids, pid)
	}
	return pids
}

// checkExit takes the guest's time of the exit where it can be: after the start and not in the future, give or take.
func (p *Process) checkExit(answer *guestapi.WaitResponse) Exit {
	p.mu.Lock()
	since := p.since
	p.mu.Unlock()
	exit := Exit{Status: min(answer.Status, 255), At: time.Unix(0, answer.ExitedNanos)}
	if now := time.Now(); exit.At.Before(since.Add(-clockSkew)) || exit.At.After(now.Add(clockSkew)) {
		exit.At = now
	}
	return exit
}

// Event is something that happened in the guest. Exactly one field is set.
type Event struct {
	OOM *OOM
}

// OOM tells that the guest's kernel killed a process of the container for want of memory.
type OOM struct {
	Container string
}

// Events delivers what happens in the guest, in order. The channel is closed when the sandbox has ended. When nobody
// reads, events wait in the guest.
func (s *Sandbox) Events() <-chan Event { return s.events }

// readEvents asks for one event after the other, until the VM ends.
func (s *Sandbox) readEvents() {
	defer close(s.events)
	for {
		var answer *guestapi.Event
		err := s.call(s.life, "wait for an event", func(ctx context.Context) (err error) {
			answer, err = s.agent.NextEvent(ctx, &guestapi.Empty{})
			return err
		})
		if err != nil {
			if s.ended() == nil && s.life.Err() == nil {
				s.deps.Logger.Warn("no more events from the guest", "sandbox", s.spec.ID, "error", err)
			}
			return
		}
		if event, ok := s.checkEvent(answer); ok {
			select {
			case s.events <- event:
			case <-s.life.Done():
				return
			}
		}
		select {
		case <-time.After(eventPause):
		case <-s.life.Done():
			return
		}
	}
}

// checkEvent is false for an event of an unknown kind or container.
func (s *Sandbox) checkEvent(answer *guestapi.Event) (Event, bool) {
	oom := answer.GetOom()
	if oom == nil {
		return Event{}, false
	}
	if _, err := s.find(oom.Container); err != nil {
		return Event{}, false
	}
	return Event{OOM: &OOM{Container: oom.Container}}, true
}
