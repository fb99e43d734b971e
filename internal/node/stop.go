package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Times that the steps of Stop may take before harder means are used.
const (
	drainTimeout = 3 * time.Minute
	ctrTimeout   = time.Minute
	endTimeout   = 20 * time.Second
)

// Stop ends the node's containers and VMs, containerd, and removes everything of the node from the host, its directory
// included. It is idempotent, and fine with a node of which only parts are there. If something can't be removed, the error
// says what, and the rest is removed all the same.
func (n *Node) Stop(ctx context.Context) error {
	_, dirErr := os.Lstat(n.dir)
	_, socketsErr := os.Lstat(n.sockets)
	if errors.Is(dirErr, fs.ErrNotExist) && errors.Is(socketsErr, fs.ErrNotExist) {
		return nil
	}
	if n.options.Member != nil {
		if err := n.stopMember(ctx); err != nil {
			return fmt.Errorf("stop node %s: %w", n.dir, err)
		}
		return nil
	}
	tasks := n.bundles()
	errs := []error{n.drain(ctx)}
	namespaces := n.namespaces()
	busy := errors.Join(n.endProcesses(ctx), n.deleteOrphans(ctx), n.unmountAll())
	errs = append(errs, busy, n.removeBridge(), n.removeFIFOs(tasks), n.removeNetworkResults())
	removeCgroups(namespaces)
	removeShared(shared())
	if busy == nil { // else something still uses the files, and the next Stop needs them
		errs = append(errs, os.RemoveAll(n.sockets), os.RemoveAll(n.dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stop node %s: %w", n.dir, err)
	}
	return nil
}

// drain removes all containers through containerd, which knows how to end each kind. If containerd has died, it is started
// for that.
func (n *Node) drain(ctx context.Context) error {
	if _, err := os.Lstat(n.path("root")); err != nil {
		return nil // containerd never ran
	}
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	if _, err := Start(ctx, n.options); err != nil {
		return fmt.Errorf("start containerd, to end its containers: %w", err)
	}
	namespaces, err := n.list(ctx, "namespaces", "list", "--quiet")
	if err != nil {
		return err
	}
	var errs []error
	for _, namespace := range namespaces {
		errs = append(errs, n.drainNamespace(ctx, namespace))
	}
	return errors.Join(errs...)
}

// bundles returns the ids of containers with tasks, running or dead, from the directories that containerd has for them.
func (n *Node) bundles() []string {
	namespaces, _ := os.ReadDir(n.path("state/io.containerd.runtime.v2.task")) // not there: there are none
	var ids []string
	for _, namespace := range namespaces {
		tasks, _ := os.ReadDir(n.path(filepath.Join("state/io.containerd.runtime.v2.task", namespace.Name())))
		for _, task := range tasks {
			ids = append(ids, task.Name())
		}
	}
	return ids
}

// namespaces returns containerd's namespaces that ever had a container, from the directories that it made for them.
func (n *Node) namespaces() []string {
	entries, _ := os.ReadDir(n.path("root/io.containerd.runtime.v2.task")) // not there: there was none
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (n *Node) drainNamespace(ctx context.Context, namespace string) error {
	tasks, err := n.list(ctx, "--namespace", namespace, "tasks", "list", "--quiet")
	errs := []error{err}
	for _, id := range tasks {
		// What is left of a task that can't be killed or removed shows below, when its container is still there.
		_, _ = n.within(ctx, "--namespace", namespace, "tasks", "kill", "--all", "--signal", "SIGKILL", id)
		_, _ = n.within(ctx, "--namespace", namespace, "tasks", "delete", "--force", id)
	}
	containers, err := n.list(ctx, "--namespace", namespace, "containers", "list", "--quiet")
	errs = append(errs, err)
	for _, id := range containers {
		_, err := n.within(ctx, "--namespace", namespace, "containers", "delete", id)
		errs = append(errs, err)
	}
	sandboxes, err := n.list(ctx, "--namespace", namespace, "sandboxes", "list")
	errs = append(errs, err)
	for _, line := range sandboxes[min(1, len(sandboxes)):] { // the first is the table's head
		id, _, _ := strings.Cut(line, " ")
		_, _ = n.within(ctx, "--namespace", namespace, "sandboxes", "remove", "--force", id)
	}
	return errors.Join(errs...)
}

// within is Ctr with a time limit of its own.
func (n *Node) within(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, ctrTimeout)
	defer cancel()
	return n.Ctr(ctx, args...)
}

func (n *Node) list(ctx context.Context, args ...string) ([]string, error) {
	out, err := n.within(ctx, args...)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(strings.Split(out, "\n"), func(s string) bool { return strings.TrimSpace(s) == "" }), nil
}

// endProcesses ends containerd first, so that it starts nothing more, and then what it left.
func (n *Node) endProcesses(ctx context.Context) error {
	for _, round := range []struct {
		only   string
		signal unix.Signal
	}{{"containerd", unix.SIGTERM}, {"containerd", unix.SIGKILL}, {"", unix.SIGTERM}, {"", unix.SIGKILL}} {
		if err := n.endRound(ctx, round.only, round.signal); err != nil {
			return err
		}
	}
	left, err := n.processes()
	for _, p := range left {
		err = errors.Join(err, fmt.Errorf("process %d (%s) doesn't end", p.pid, p.name))
		p.close()
	}
	return err
}

func (n *Node) endRound(ctx context.Context, only string, signal unix.Signal) error {
	found, err := n.processes()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	for _, p := range found {
		if only == "" || p.name == only {
			err = errors.Join(err, p.signal(signal))
		}
	}
	for _, p := range found {
		if only == "" || p.name == only {
			p.wait(ctx)
		}
		p.close()
	}
	return err
}

// killProcesses ends containerd, its shims and the kubelet at once, without asking them.
func (n *Node) killProcesses(ctx context.Context) error {
	// A shim that containerd was just starting is found by the next round.
	for {
		found, err := n.processes()
		if err == nil && len(found) == 0 {
			return nil
		}
		for _, p := range found {
			err = errors.Join(err, p.signal(unix.SIGKILL))
		}
		for _, p := range found {
			if !p.wait(ctx) {
				err = errors.Join(err, fmt.Errorf("process %d (%s) doesn't end", p.pid, p.name))
			}
			p.close()
		}
		if err != nil {
			return err
		}
	}
}

// deleteOrphans removes what runc still runs when its shim has died and containerd couldn't be started to clean up. Such
// processes have the environment of their container and aren't found by it.
func (n *Node) deleteOrphans(ctx context.Context) error {
	states, err := filepath.Glob(filepath.Join(n.RuncRoot(), "*", "*"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	var errs []error
	for _, state := range states {
		if n.inCgroup(state) {
			continue // it ended with the cgroup, and its state goes with the directory
		}
		out, err := exec.CommandContext(ctx, "runc", "--root", filepath.Dir(state), "delete", "--force", filepath.Base(state)).CombinedOutput()
		if err != nil {
			errs = append(errs, fmt.Errorf("delete runc container %s: %w: %s", filepath.Base(state), err, out))
		}
	}
	return errors.Join(errs...)
}

// inCgroup says whether a runc container, by the directory of its state, is one of the node's pods by its cgroups.
func (n *Node) inCgroup(state string) bool {
	if n.options.Member == nil || n.options.Member.Cgroup == "" {
		return false
	}
	data, err := os.ReadFile(filepath.Join(state, "state.json"))
	if err != nil {
		return false
	}
	var container struct {
		Cgroups map[string]string `json:"cgroup_paths"`
	}
	if err := json.Unmarshal(data, &container); err != nil {
		return false
	}
	for _, path := range container.Cgroups {
		if !strings.Contains(path, n.pods()+"/") {
			return false
		}
	}
	return len(container.Cgroups) > 0
}

// removeBridge removes the bridge that the CNI plugin made for pods.
func (n *Node) removeBridge() error {
	link, err := netlink.LinkByName(n.Bridge())
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("remove bridge %s: %w", n.Bridge(), err)
	}
	return nil
}

// unmountAll unmounts what is mounted below the node's directories, the last mounted first. What is removed after it must hold
// nothing of anybody else's, such as a volume of the host.
func (n *Node) unmountAll() error {
	points, err := n.mounted()
	if err != nil {
		return err
	}
	var errs []error
	for _, point := range slices.Backward(points) {
		err := unix.Unmount(point, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: it has gone with another
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if points, err = n.mounted(); err != nil {
		return err
	}
	if len(points) > 0 {
		return fmt.Errorf("%s is mounted again: %w", points[0], errdefs.ErrUnavailable)
	}
	return nil
}

// mounted returns the mount points below the node's directories.
func (n *Node) mounted() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return mountPoints(string(data), n.dir, n.sockets), nil
}

// mountPoints returns the mount points below the directories, in the order in which they were mounted.
func mountPoints(mountinfo string, dirs ...string) []string {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var points []string
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := unescape.Replace(fields[4])
		if slices.ContainsFunc(dirs, func(dir string) bool { return strings.HasPrefix(point, dir+"/") }) {
			points = append(points, point)
		}
	}
	return points
}

// removeCgroups removes the groups that runtimes leave empty, one named after each of containerd's namespaces. A group
// with anything in it can't be removed, and so is somebody else's too.
func removeCgroups(namespaces []string) {
	const root = "/sys/fs/cgroup"
	hierarchies, _ := filepath.Glob(root + "/*") // the pattern is right, which is the only error
	for _, namespace := range namespaces {
		for _, hierarchy := range append(hierarchies, root) {
			_ = os.Remove(filepath.Join(hierarchy, namespace))
		}
	}
}
