// Package leak tells what a test has left on the machine: it lists what there is of each kind of thing that a runtime can
// leave behind, before and after, and names what is in the second list only.
//
// It relies on package cell, in whose namespaces everything that isn't the test's own is the runtime's. Things vanish a
// moment after the call that ends them has answered (a snapshot's directory, a zombie that waits for process 1), so a check
// waits for them before it complains.
package leak

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"bulkhead.dev/bulkhead/test/cell"
)

// Patience is how long a thing may take to vanish.
const Patience = 30 * time.Second

// Scope says where to look.
type Scope struct {
	// Dirs are directories in which every file counts.
	Dirs []string
	// Flat are directories of which only the immediate entries count.
	Flat []string
	// Ignore are files and whole directories that may come and go: paths, or patterns of path.Match.
	Ignore []string
	// Permanent are directories that may come to be and stay, in the same form. What is in them counts.
	Permanent []string
	// Links are names of network devices that may come to be and stay.
	Links []string
	// Tables: nftables' count too. It needs the program nft.
	Tables bool
}

// Things is a set of names such as "mount /run/x", each said so that a person can find the thing.
type Things map[string]struct{}

// Check notes what there is now, and again when the test has ended, after the cleanups that the test has still to register.
// The test fails for each thing that is there then and wasn't before.
func Check(t testing.TB, scope Scope) {
	t.Helper()
	before, err := Take(scope)
	if err != nil {
		t.Fatalf("list what there is before the test: %v", err)
	}
	t.Cleanup(func() {
		t.Helper()
		left, err := Wait(before, scope)
		if err != nil {
			t.Errorf("list what there is after the test: %v", err)
		}
		for _, thing := range left {
			t.Errorf("left behind: %s", thing)
		}
	})
}

// Wait returns the things that are more than before, once there are none or they have had time enough to vanish.
func Wait(before Things, scope Scope) ([]string, error) {
	deadline := time.Now().Add(Patience)
	for {
		after, err := Take(scope)
		if err != nil {
			return nil, err
		}
		more := before.Missing(after)
		if len(more) == 0 || time.Now().After(deadline) {
			return more, nil
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Missing returns, sorted, what other has and t hasn't.
func (t Things) Missing(other Things) []string {
	var more []string
	for thing := range other {
		if _, ok := t[thing]; !ok {
			more = append(more, thing)
		}
	}
	slices.Sort(more)
	return more
}

// Take lists everything there is.
func Take(scope Scope) (Things, error) {
	things := Things{}
	for _, list := range []func(Things) error{
		processes, mounts, namespaces, sockets, cgroups,
		func(t Things) error { return links(t, scope) },
		func(t Things) error { return tables(t, scope) },
		func(t Things) error { return files(t, scope) },
	} {
		if err := list(things); err != nil {
			return nil, err
		}
	}
	return things, nil
}

func (t Things) add(format string, values ...any) { t[fmt.Sprintf(format, values...)] = struct{}{} }

// processes lists all but process 1 and this one's own short-lived children, by start time, so that a number used twice is
// two processes. Threads of the kernel are not in the cell's namespace.
func processes(things Things) error {
	all, err := Processes()
	if err != nil {
		return err
	}
	for _, p := range all {
		if p.PID != 1 && p.PID != os.Getpid() {
			things.add("process %d (started at tick %s): %s", p.PID, p.Started, p.Command)
		}
	}
	return nil
}

// Process is one that is in the cell.
type Process struct {
	PID, Parent int
	// Started is in clock ticks since boot.
	Started string
	// Name is the kernel's: at most 15 bytes.
	Name string
	// Command is the arguments, or the name and state where there are none.
	Command string
}

// Processes lists the processes of the cell.
func Processes() ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var all []Process
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if p, ok := process(pid); ok {
			all = append(all, p)
		}
	}
	return all, nil
}

func process(pid int) (Process, bool) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return Process{}, false
	}
	open, shut := strings.IndexByte(string(stat), '('), strings.LastIndexByte(string(stat), ')')
	if open < 0 || shut < open {
		return Process{}, false
	}
	fields := strings.Fields(string(stat[shut+1:]))
	if len(fields) < 20 {
		return Process{}, false
	}
	p := Process{PID: pid, Name: string(stat[open+1 : shut]), Started: fields[19]}
	p.Parent, _ = strconv.Atoi(fields[1])
	arguments, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
	p.Command = strings.TrimSpace(strings.ReplaceAll(string(arguments), "\x00", " "))
	if p.Command == "" {
		p.Command = fmt.Sprintf("(%s), state %s", p.Name, fields[0])
	}
	if len(p.Command) > 300 {
		p.Command = p.Command[:300] + "…"
	}
	return p, true
}

// mounts lists mount points. Names are not enough: a thing mounted twice on one place is two leaks.
func mounts(things Things) error {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > 4 {
			things.add("mount %s on %s (mount id %s)", fields[3], fields[4], fields[0])
		}
	}
	return nil
}

// links lists the devices of the cell's own network namespace.
func links(things Things, scope Scope) error {
	all, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, link := range all {
		if slices.Contains(scope.Links, link.Attrs().Name) {
			continue
		}
		things.add("link %s (%s)", link.Attrs().Name, link.Type())
	}
	return nil
}

// namespaces lists the network namespaces that processes are in. Those held by a mount only are among the mounts.
func namespaces(things Things) error {
	paths, err := filepath.Glob("/proc/[0-9]*/ns/net")
	if err != nil {
		return err
	}
	for _, path := range paths {
		if name, err := os.Readlink(path); err == nil {
			things.add("network namespace %s", name)
		}
	}
	return nil
}

// sockets lists unix sockets that have a name; the cell's network namespace has only the runtime's. A connected end carries
// the listener's name, so the same name is one thing however often it occurs.
func sockets(things Things) error {
	data, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return fmt.Errorf("list sockets: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) == 8 && fields[0] != "Num" {
			things.add("socket %s", fields[7])
		}
	}
	return nil
}

// tables lists nftables of the cell's own network namespace.
func tables(things Things, scope Scope) error {
	if !scope.Tables {
		return nil
	}
	out, err := exec.Command("nft", "list", "tables").Output()
	if err != nil {
		return fmt.Errorf("list nftables: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		things.add("nft %s", strings.TrimSpace(line))
	}
	return nil
}

func cgroups(things Things) error {
	for _, word := range cell.Words() {
		found, err := cell.Cgroups(word)
		if err != nil {
			return err
		}
		for _, path := range found {
			if filepath.Base(path) == cell.Token() {
				continue // the parent of all of this run's
			}
			things.add("control group %s", path)
		}
	}
	return nil
}

func files(things Things, scope Scope) error {
	for _, dir := range scope.Dirs {
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if ignored(path, scope.Ignore) {
				if entry != nil && entry.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // gone while we looked, or never made
			}
			if err != nil {
				return fmt.Errorf("list files in %s: %w", dir, err)
			}
			if path != dir && !ignored(path, scope.Permanent) {
				things.add("file %s", path)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, dir := range scope.Flat {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("list files in %s: %w", dir, err)
		}
		for _, entry := range entries {
			if path := filepath.Join(dir, entry.Name()); !ignored(path, scope.Ignore) {
				things.add("file %s", path)
			}
		}
	}
	return nil
}

func ignored(path string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		match, err := filepath.Match(pattern, path)
		return err == nil && match
	})
}
