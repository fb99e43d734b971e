// Package cgroup2 is a container's cgroup (version 2) as the agent sees it: which processes are in it, their end, freezing, limits,
// statistics, and kills for want of memory.
//
// The OCI runtime makes the cgroup, with the limits that it starts with; this package does everything after that, by the
// kernel's files. A container may have made cgroups below its own, as many as it likes: walks over them are bounded.
package cgroup2

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	guestapi "bulkhead.dev/bulkhead/api/guest"
)

// Group is the path of a container's cgroup.
type Group string

const (
	// maxCgroups bounds how many cgroups below a container's own are looked at.
	maxCgroups = 4096
	// maxProcesses bounds how many processes of a container are listed.
	maxProcesses = 32768
)

// read returns a file's content; a file that is missing is empty.
func (c Group) read(name string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(string(c), name))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	return b, err
}

func (c Group) write(name, value string) error {
	if err := os.WriteFile(filepath.Join(string(c), name), []byte(value), 0); err != nil {
		return fmt.Errorf("writing %q to %s: %w", value, name, err)
	}
	return nil
}

// walk visits the cgroup and those below it, a parent before its children.
func (c Group) walk(visit func(Group) error) error {
	n := 0
	return filepath.WalkDir(string(c), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if !d.IsDir() {
			return nil
		}
		if n++; n > maxCgroups {
			return fmt.Errorf("cgroup %s has more than %d below it: %w", c, maxCgroups, errdefs.ErrResourceExhausted)
		}
		return visit(Group(path))
	})
}

// Processes lists the processes in the cgroup and below it.
func (c Group) Processes() ([]int, error) {
	var pids []int
	err := c.walk(func(c Group) error {
		b, err := c.read("cgroup.procs")
		if errors.Is(err, unix.EOPNOTSUPP) { // a threaded cgroup: the processes are listed above it
			return nil
		}
		if err != nil {
			return err
		}
		for line := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(line); err == nil && pid > 0 && len(pids) < maxProcesses {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids, err
}

// Kill sends SIGKILL to everything in the cgroup and below it.
func (c Group) Kill() error {
	err := c.write("cgroup.kill", "1")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Signal sends a signal to everything in the cgroup and below it. Processes that fork at that moment may be missed, as
// with every runtime.
func (c Group) Signal(sig unix.Signal) error {
	if sig == unix.SIGKILL {
		return c.Kill()
	}
	pids, err := c.Processes()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
			return fmt.Errorf("signalling process %d: %w", pid, err)
		}
	}
	return nil
}

const (
	freezeTimeout = 10 * time.Second
	// emptyTimeout is how long killed processes may take to go: one may be in the middle of writing to a disk.
	emptyTimeout = 20 * time.Second
)

// Freeze stops everything in the cgroup or lets it go on, and returns when that is so.
func (c Group) Freeze(frozen bool) error {
	value := "0"
	if frozen {
		value = "1"
	}
	if err := c.write("cgroup.freeze", value); err != nil {
		return err
	}
	return c.awaitEvent("frozen", value, freezeTimeout)
}

// awaitEvent waits until a line of cgroup.events has a value. The kernel tells of changes by POLLPRI.
func (c Group) awaitEvent(key, value string, timeout time.Duration) error {
	f, err := os.Open(filepath.Join(string(c), "cgroup.events"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	deadline := time.Now().Add(timeout)
	for {
		b := make([]byte, 256)
		n, err := f.ReadAt(b, 0)
		if errors.Is(err, unix.ENODEV) {
			return nil // it was removed
		}
		if v, ok := parseFlat(b[:n])[key]; ok && strconv.FormatUint(v, 10) == value {
			return nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("cgroup %s: %s did not become %s in %v: %w", c, key, value, timeout, context.DeadlineExceeded)
		}
		fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
			return fmt.Errorf("waiting for a change of cgroup %s: %w", c, err)
		}
	}
}

// Remove kills what is in the cgroup and removes it with all below it.
func (c Group) Remove() error {
	if _, err := os.Stat(string(c)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := c.Kill(); err != nil {
		return err
	}
	// A frozen process dies as well, but let nothing depend on it.
	if err := c.write("cgroup.freeze", "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := c.awaitEvent("populated", "0", emptyTimeout); err != nil {
		return err
	}
	var all []Group
	if err := c.walk(func(c Group) error { all = append(all, c); return nil }); err != nil {
		return err
	}
	for i := len(all) - 1; i >= 0; i-- {
		for deadline := time.Now().Add(time.Second); ; time.Sleep(time.Millisecond) {
			err := unix.Rmdir(string(all[i]))
			if err == nil || err == unix.ENOENT {
				break
			}
			if err != unix.EBUSY || time.Now().After(deadline) {
				return fmt.Errorf("removing cgroup %s: %w", all[i], err)
			}
		}
	}
	return nil
}

// Stats reads the cgroup's figures.
func (c Group) Stats() (*guestapi.StatsResponse, error) {
	if _, err := os.Stat(string(c)); err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", c, err)
	}
	files := make(map[string][]byte)
	for _, name := range []string{
		"cpu.stat", "memory.current", "memory.max", "memory.stat", "memory.events", "memory.peak", "memory.swap.current",
		"memory.swap.max", "pids.current", "pids.max", "io.stat",
	} {
		b, err := c.read(name)
		if err != nil {
			return nil, fmt.Errorf("reading %s of cgroup %s: %w", name, c, err)
		}
		files[name] = b
	}
	return parseStats(files), nil
}

// parseStats turns the files of a cgroup into figures. What is missing or unreadable is zero.
func parseStats(files map[string][]byte) *guestapi.StatsResponse {
	cpu, memory, events := parseFlat(files["cpu.stat"]), parseFlat(files["memory.stat"]), parseFlat(files["memory.events"])
	s := &guestapi.StatsResponse{
		CpuUsageUsec: cpu["usage_usec"], CpuUserUsec: cpu["user_usec"], CpuSystemUsec: cpu["system_usec"],
		CpuNrPeriods: cpu["nr_periods"], CpuNrThrottled: cpu["nr_throttled"], CpuThrottledUsec: cpu["throttled_usec"],
		MemoryUsage: parseValue(files["memory.current"]), MemoryLimit: parseValue(files["memory.max"]), MemoryPeak: parseValue(files["memory.peak"]),
		MemoryAnon: memory["anon"], MemoryFile: memory["file"],
		MemoryInactiveFile: memory["inactive_file"], MemoryActiveFile: memory["active_file"],
		MemoryPgfault: memory["pgfault"], MemoryPgmajfault: memory["pgmajfault"],
		MemoryKernelStack: memory["kernel_stack"], MemorySlab: memory["slab"],
		SwapUsage: parseValue(files["memory.swap.current"]), SwapLimit: parseValue(files["memory.swap.max"]),
		OomEvents: events["oom"], OomKills: events["oom_kill"],
		PidsCurrent: parseValue(files["pids.current"]), PidsLimit: parseValue(files["pids.max"]),
	}
	// One line a device: "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0".
	for line := range strings.Lines(string(files["io.stat"])) {
		for field := range strings.FieldsSeq(line) {
			key, value, _ := strings.Cut(field, "=")
			n, _ := strconv.ParseUint(value, 10, 64)
			switch key {
			case "rbytes":
				s.IoReadBytes += n
			case "wbytes":
				s.IoWriteBytes += n
			case "rios":
				s.IoReads += n
			case "wios":
				s.IoWrites += n
			}
		}
	}
	return s
}

// parseFlat reads lines of a key and a number.
func parseFlat(b []byte) map[string]uint64 {
	m := make(map[string]uint64)
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		key, value, ok := strings.Cut(lines.Text(), " ")
		if n, err := strconv.ParseUint(value, 10, 64); ok && err == nil {
			m[key] = n
		}
	}
	return m
}

// parseValue reads a file of one number. "max" is the highest.
func parseValue(b []byte) uint64 {
	s := strings.TrimSpace(string(b))
	if s == "max" {
		return math.MaxUint64
	}
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}
