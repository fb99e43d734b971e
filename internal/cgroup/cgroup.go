// Package cgroup makes, enters, empties and removes control groups, on cgroup v1, v2 and hosts that mount both.
//
// A cgroup is named by one path relative to the root of every hierarchy ("/kubepods/pod1/vm"), as in an OCI spec's
// cgroupsPath; [Path] turns the systemd spelling ("slice:prefix:name") into such a path. Which hierarchies there are is
// read from /proc/self/mountinfo:
//
//	v1 or hybrid   every mount of type cgroup, named ones (name=systemd) included, and cgroup2 if it is mounted too
//	v2             the mount of type cgroup2
//
// [Create] makes the directory in each of them, [Load] finds the ones that exist, for cleaning up after a crash. Directories
// are made directly, without asking systemd: a leaf below a slice or a pod's cgroup that somebody else manages is all that
// is needed here. Limits are not this package's business: those of a pod stand on the pod's own cgroup, the parent.
package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// patience is how long Kill and Remove wait for the kernel to let go of processes.
const patience = 10 * time.Second

// Cgroup is a control group in one or more hierarchies.
type Cgroup struct {
	path string
	dirs []dir
	made []string // directories that Create made, in the order of making
}

// dir is the cgroup's directory in one hierarchy.
type dir struct {
	hierarchy hierarchy
	path      string // absolute
}

// Path turns an OCI cgroupsPath into a path relative to the hierarchy's root. A path stays what it is, made clean and
// absolute; "slice:prefix:name" becomes the path that systemd would use. What leads outside is ErrInvalidArgument.
func Path(spec string) (string, error) {
	if spec == "" {
		return "", fmt.Errorf("cgroup path is empty: %w", errdefs.ErrInvalidArgument)
	}
	if strings.ContainsFunc(spec, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "", fmt.Errorf("cgroup path %q has a control character: %w", spec, errdefs.ErrInvalidArgument)
	}
	if slices.Contains(strings.Split(spec, "/"), "..") {
		return "", fmt.Errorf("cgroup path %q leads upwards: %w", spec, errdefs.ErrInvalidArgument)
	}
	if parts := strings.Split(spec, ":"); len(parts) == 3 && !strings.Contains(spec, "/") {
		return systemdPath(parts[0], parts[1], parts[2])
	}
	clean := path.Clean("/" + spec)
	if clean == "/" {
		return "", fmt.Errorf("cgroup path %q is the root: %w", spec, errdefs.ErrInvalidArgument)
	}
	return clean, nil
}

// systemdPath follows systemd.slice(5): the slice a-b.slice lies in a.slice, and -.slice is the root.
func systemdPath(slice, prefix, name string) (string, error) {
	if slice == "" {
		slice = "system.slice"
	}
	stem, ok := strings.CutSuffix(slice, ".slice")
	if !ok || name == "" {
		return "", fmt.Errorf("cgroup path %q is not slice:prefix:name: %w", slice+":"+prefix+":"+name, errdefs.ErrInvalidArgument)
	}
	at := "/"
	if stem != "-" {
		parts := strings.Split(stem, "-")
		for i, part := range parts {
			if part == "" {
				return "", fmt.Errorf("cgroup slice %q has an empty part: %w", slice, errdefs.ErrInvalidArgument)
			}
			at = path.Join(at, strings.Join(parts[:i+1], "-")+".slice")
		}
	}
	unit := name
	if !strings.HasSuffix(name, ".slice") {
		unit = name + ".scope"
		if prefix != "" {
			unit = prefix + "-" + unit
		}
	}
	return path.Join(at, unit), nil
}

// Create makes the cgroup in every hierarchy, with the parents that are missing. What exists already is used as it is. On
// an error it leaves nothing behind.
func Create(spec string) (*Cgroup, error) {
	host, err := discover()
	if err != nil {
		return nil, err
	}
	return host.create(spec)
}

// Load finds an existing cgroup. It is ErrNotFound if no hierarchy has it.
func Load(spec string) (*Cgroup, error) {
	host, err := discover()
	if err != nil {
		return nil, err
	}
	return host.load(spec)
}

func (h host) create(spec string) (*Cgroup, error) {
	at, err := Path(spec)
	if err != nil {
		return nil, err
	}
	c := &Cgroup{path: at}
	for _, hierarchy := range h {
		c.dirs = append(c.dirs, dir{hierarchy: hierarchy, path: filepath.Join(hierarchy.mount, at)})
		made, err := hierarchy.make(at)
		c.made = append(c.made, made...)
		if err != nil {
			c.unmake()
			return nil, fmt.Errorf("create cgroup %s: %w", at, err)
		}
	}
	return c, nil
}

func (h host) load(spec string) (*Cgroup, error) {
	at, err := Path(spec)
	if err != nil {
		return nil, err
	}
	c := &Cgroup{path: at}
	for _, hierarchy := range h {
		d := dir{hierarchy: hierarchy, path: filepath.Join(hierarchy.mount, at)}
		info, err := os.Stat(d.path)
		switch {
		case err == nil && info.IsDir():
			c.dirs = append(c.dirs, d)
		case err != nil && !errors.Is(err, os.ErrNotExist):
			return nil, fmt.Errorf("look for cgroup %s: %w", at, err)
		}
	}
	if len(c.dirs) == 0 {
		return nil, fmt.Errorf("cgroup %s: %w", at, errdefs.ErrNotFound)
	}
	return c, nil
}

// Path returns the cgroup's path relative to the root of every hierarchy.
func (c *Cgroup) Path() string { return c.path }

// Enter moves a process with all its threads into the cgroup, in every hierarchy.
func (c *Cgroup) Enter(pid int) error {
	if pid <= 0 {
		return fmt.Errorf("enter cgroup %s: pid %d: %w", c.path, pid, errdefs.ErrInvalidArgument)
	}
	for _, d := range c.dirs {
		if err := write(filepath.Join(d.path, "cgroup.procs"), strconv.Itoa(pid)); err != nil {
			return fmt.Errorf("move process %d into cgroup %s: %w", pid, c.path, err)
		}
	}
	return nil
}

// Processes returns the processes in the cgroup, in any hierarchy, without those of its children. A cgroup that is gone has
// none.
func (c *Cgroup) Processes() ([]int, error) {
	var all []int
	for _, d := range c.dirs {
		pids, err := processes(d.path)
		if err != nil {
			return nil, fmt.Errorf("list processes of cgroup %s: %w", c.path, err)
		}
		all = append(all, pids...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// Kill ends every process in the cgroup and waits until they have left it. It refuses to end the caller.
func (c *Cgroup) Kill() error {
	deadline := time.Now().Add(patience)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		pids, err := c.Processes()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		if slices.Contains(pids, os.Getpid()) {
			return fmt.Errorf("kill cgroup %s: this process is in it: %w", c.path, errdefs.ErrFailedPrecondition)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kill cgroup %s: processes %v are still there after %v: %w", c.path, pids, patience, errdefs.ErrUnavailable)
		}
		if err := c.signal(pids); err != nil {
			return err
		}
		time.Sleep(pause)
	}
}

func (c *Cgroup) signal(pids []int) error {
	for _, d := range c.dirs {
		// A frozen process dies only when it is thawed. Not every kernel has these files, and not every hierarchy.
		switch {
		case d.hierarchy.v2:
			_ = write(filepath.Join(d.path, "cgroup.freeze"), "0")
		case slices.Contains(d.hierarchy.controllers, "freezer"):
			_ = write(filepath.Join(d.path, "freezer.state"), "THAWED")
		}
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process %d of cgroup %s: %w", pid, c.path, err)
		}
	}
	return nil
}

// Remove removes the cgroup from every hierarchy, and the parents that Create made and nobody else uses. It is idempotent.
// Processes must have left: Kill first.
func (c *Cgroup) Remove() error {
	var errs []error
	for _, d := range c.dirs {
		if err := remove(d.path, time.Now().Add(patience)); err != nil {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove cgroup %s: %w", c.path, err)
	}
	c.unmake()
	return nil
}

// unmake takes back what Create made, the deepest first, as far as it is unused.
func (c *Cgroup) unmake() {
	for _, d := range slices.Backward(c.made) {
		_ = unix.Rmdir(d)
	}
	c.made = nil
}

// remove removes a cgroup's directory. The kernel says EBUSY for a moment after the last process has been reaped.
func remove(d string, deadline time.Time) error {
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := unix.Rmdir(d)
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
			return nil
		case errors.Is(err, unix.EBUSY) && time.Now().Before(deadline):
			time.Sleep(pause)
		default:
			return &os.PathError{Op: "rmdir", Path: d, Err: err}
		}
	}
}

func processes(d string) ([]int, error) {
	data, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, field := range strings.Fields(string(data)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("read %s/cgroup.procs: %w", d, err)
		}
		if pid > 0 { // 0 stands for a process of another pid namespace
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// write writes a control file. It never creates one, so that a wrong path is an error.
func write(name, value string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}
