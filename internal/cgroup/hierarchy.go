package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// host is the hierarchies that are mounted, each once.
type host []hierarchy

// hierarchy is one tree of cgroups.
type hierarchy struct {
	mount       string
	v2          bool
	controllers []string // of v1: the mount's controllers, or its name ("name=systemd")
}

func discover() (host, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	defer f.Close()
	return parseMountinfo(f)
}

// parseMountinfo finds the hierarchies in the form of proc_pid_mountinfo(5):
//
//	36 35 0:31 / /sys/fs/cgroup/cpuset rw,relatime shared:9 - cgroup cgroup rw,cpuset
//	(0)(1)(2) (3) (4 mount point)      (5)         (6...)   (-) type  source super-options
//
// A hierarchy that is mounted more than once counts once; a mount of its root is preferred to one of a part.
func parseMountinfo(r io.Reader) (host, error) {
	var found host
	whole := make(map[string]bool) // by key: the chosen mount shows the root
	index := make(map[string]int)  // by key: where in found
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, 1<<20) // overlay mounts have long options
	for scanner.Scan() {
		before, after, ok := strings.Cut(scanner.Text(), " - ")
		fields, super := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(super) < 1 {
			continue
		}
		if super[0] != "cgroup" && super[0] != "cgroup2" {
			continue
		}
		h := hierarchy{mount: unescape(fields[4]), v2: super[0] == "cgroup2"}
		if !h.v2 && len(super) >= 3 {
			h.controllers = controllers(super[2])
		}
		key := super[0] + " " + strings.Join(h.controllers, ",")
		at, known := index[key]
		switch isRoot := fields[3] == "/"; {
		case !known:
			index[key], whole[key] = len(found), isRoot
			found = append(found, h)
		case isRoot && !whole[key]:
			found[at], whole[key] = h, true
		}
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no cgroup hierarchy is mounted: %w", errdefs.ErrFailedPrecondition)
	}
	return found, nil
}

// controllers picks the controllers, or the name, out of a v1 mount's super options.
func controllers(options string) []string {
	var names []string
	for option := range strings.SplitSeq(options, ",") {
		switch {
		case slices.Contains([]string{"rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "none", ""}, option):
		case strings.HasPrefix(option, "release_agent="):
		default:
			names = append(names, option)
		}
	}
	slices.Sort(names)
	return names
}

// unescape undoes mountinfo's octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// make makes the cgroup and its missing parents; it returns the directories it made, also with an error.
func (h hierarchy) make(at string) (made []string, err error) {
	parent := h.mount
	for name := range strings.SplitSeq(strings.TrimPrefix(at, "/"), "/") {
		if h.v2 {
			h.delegate(parent)
		}
		child := filepath.Join(parent, name)
		switch err := unix.Mkdir(child, 0o755); {
		case err == nil:
			made = append(made, child)
		case !errors.Is(err, unix.EEXIST):
			return made, &os.PathError{Op: "mkdir", Path: child, Err: err}
		}
		if slices.Contains(h.controllers, "cpuset") {
			if err := inheritCPUSet(parent, child); err != nil {
				return made, err
			}
		}
		parent = child
	}
	return made, nil
}

// delegate offers the parent's controllers to its children. It is best effort: a cgroup with processes of its own can't,
// and then its children are accounted as part of it.
func (h hierarchy) delegate(parent string) {
	have, err := os.ReadFile(filepath.Join(parent, "cgroup.controllers"))
	if err != nil {
		return
	}
	for _, controller := range strings.Fields(string(have)) {
		_ = write(filepath.Join(parent, "cgroup.subtree_control"), "+"+controller)
	}
}

// inheritCPUSet fills a new v1 cpuset from its parent: nothing can enter one that is empty.
func inheritCPUSet(parent, child string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := os.ReadFile(filepath.Join(child, file))
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(own)) != "" {
			continue
		}
		inherited, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil {
			return err
		}
		if err := write(filepath.Join(child, file), strings.TrimSpace(string(inherited))); err != nil {
			return err
		}
	}
	return nil
}
