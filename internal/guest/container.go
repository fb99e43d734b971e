package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"

	guestapi "bulkhead.dev/bulkhead/api/guest"
	"bulkhead.dev/bulkhead/internal/guest/cgroup2"
)

// container is a root file system, a cgroup and the processes in them.
type container struct {
	id     string
	dir    string
	cgroup cgroup2.Group
	rootfs *rootfs
	init   *process
	watch  *cgroup2.Watch
	entry  entry
	undo   undo // takes back everything that was made for it

	changing sync.Mutex // held by calls that change the container as a whole

	mu       sync.Mutex
	execs    map[string]*process // guarded by mu; nil: being deleted
	paused   bool                // guarded by mu
	creating bool                // guarded by mu
}

// createContainer makes a container whose init waits for its start. On an error nothing is left of it.
func (a *Agent) createContainer(ctx context.Context, r *guestapi.CreateContainerRequest) (_ *container, err error) {
	c := &container{
		id: r.Id, dir: filepath.Join(a.dirs.containers, r.Id), cgroup: cgroup2.Group(filepath.Join(cgroupRoot, podCgroup, r.Id)),
		execs: make(map[string]*process), creating: true,
	}
	c.changing.Lock()
	defer c.changing.Unlock()
	if err := a.reserve(c); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("creating container %q: %w", r.Id, err), c.undo.run())
			a.forget(c)
		}
	}()
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return nil, err
	}
	c.undo.add(func() error { return os.RemoveAll(c.dir) })
	for _, m := range r.Mounts {
		if err := a.mounts.add(m); err != nil {
			return nil, err
		}
		c.undo.add(func() error { return a.mounts.remove(m.Name) })
	}
	if c.rootfs, err = a.assembler.assemble(c.dir, r.Rootfs); err != nil {
		return nil, err
	}
	c.undo.add(func() error { return c.rootfs.undo.run() })
	if err := a.createInit(ctx, c, r); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.creating = false
	c.mu.Unlock()
	return c, nil
}

// createInit writes the bundle and has the runtime create the init process.
func (a *Agent) createInit(ctx context.Context, c *container, r *guestapi.CreateContainerRequest) error {
	terminal := r.Stdio.GetTerminal()
	config, oomScoreAdj, err := bundleSpec{
		id: c.id, root: c.rootfs.path, readonly: c.rootfs.readonly, terminal: terminal, mounts: a.dirs.mounts, isInit: a.isInit, sharedPIDs: a.pids.path,
	}.prepare(r.Spec)
	if err != nil {
		return err
	}
	c.entry = entryOf(config)
	if err := os.WriteFile(filepath.Join(c.dir, "config.json"), config, 0o600); err != nil {
		return fmt.Errorf("writing the bundle: %w", err)
	}
	io, err := newStdio(a.streams, r.Stdio)
	if err != nil {
		return err
	}
	c.undo.add(func() error { io.close(); return nil })
	c.init = newProcess(c.id, "", io)
	c.init.oomScoreAdj = oomScoreAdj
	c.undo.add(func() error { return errors.Join(c.cgroup.Remove(), a.oci.forget(c.id)) })
	child, err := a.oci.create(ctx, c.id, c.dir, io)
	io.started()
	if err != nil {
		return err
	}
	if c.watch, err = a.oom.Add(c.id, c.cgroup); err != nil {
		return err
	}
	c.undo.add(func() error { a.oom.Remove(c.watch); return nil })
	c.init.onExit = func() { a.initExited(c) }
	c.init.has(child, stateCreated)
	return nil
}

// initExited is called when a container's init has ended, before that is known: an OOM kill is told first, and processes
// that outlive the init, in a container that shares another one's pid namespace, are ended.
func (a *Agent) initExited(c *container) {
	a.oom.Check(c.watch)
	if err := c.cgroup.Kill(); err != nil {
		a.log.Warn("processes may outlive their container's init", "container", c.id, "error", err)
	}
}

// reserve enters a container that is being made.
func (a *Agent) reserve(c *container) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case !a.configured:
		return fmt.Errorf("container %q: the guest is not configured: %w", c.id, errdefs.ErrFailedPrecondition)
	case a.stopping:
		return fmt.Errorf("container %q: the guest shuts down: %w", c.id, errdefs.ErrFailedPrecondition)
	case a.containers[c.id] != nil:
		return fmt.Errorf("container %q: %w", c.id, errdefs.ErrAlreadyExists)
	case len(a.containers) >= maxContainers:
		return fmt.Errorf("container %q: there are %d already: %w", c.id, maxContainers, errdefs.ErrResourceExhausted)
	}
	a.containers[c.id] = c
	return nil
}

func (a *Agent) forget(c *container) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.containers[c.id] == c {
		delete(a.containers, c.id)
	}
}

// isInit tells whether a process is the init of a container.
func (a *Agent) isInit(pid int) bool {
	for _, c := range a.all() {
		if c.init.current() != stateStopped && c.init.pid() == pid {
			return true
		}
	}
	return false
}

// all returns the containers that were made.
func (a *Agent) all() []*container {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []*container
	for _, c := range a.containers {
		c.mu.Lock()
		if !c.creating {
			all = append(all, c)
		}
		c.mu.Unlock()
	}
	return all
}

// container returns a container that was made.
func (a *Agent) container(id string) (*container, error) {
	a.mu.Lock()
	c := a.containers[id]
	a.mu.Unlock()
	if c != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.creating {
			return c, nil
		}
	}
	return nil, fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
}

// process returns an init or exec.
func (a *Agent) process(id, exec string) (*container, *process, error) {
	c, err := a.container(id)
	if err != nil {
		return nil, nil, err
	}
	if exec == "" {
		return c, c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if p := c.execs[exec]; p != nil {
		return c, p, nil
	}
	return nil, nil, fmt.Errorf("exec %q of container %q: %w", exec, id, errdefs.ErrNotFound)
}

// addExec makes an exec known.
func (c *container) addExec(p *process) error {
	if err := c.init.expect("adding a process to", stateRunning); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.execs == nil:
		return fmt.Errorf("container %q: it is being deleted: %w", c.id, errdefs.ErrFailedPrecondition)
	case c.execs[p.exec] != nil:
		return fmt.Errorf("%s: %w", p, errdefs.ErrAlreadyExists)
	case len(c.execs) >= maxExecs:
		return fmt.Errorf("%s: there are %d already: %w", p, maxExecs, errdefs.ErrResourceExhausted)
	}
	c.execs[p.exec] = p
	return nil
}

// startInit lets the init execute its program.
func (a *Agent) startInit(c *container) error {
	c.init.starting.Lock()
	defer c.init.starting.Unlock()
	if err := c.init.expect("starting", stateCreated); err != nil {
		return err
	}
	if err := a.oci.release(c.id); err != nil {
		return fmt.Errorf("starting %s: %w", c.init, err)
	}
	c.init.running()
	return nil
}

// startExec starts an exec.
func (a *Agent) startExec(ctx context.Context, c *container, p *process) error {
	p.starting.Lock()
	defer p.starting.Unlock()
	if err := p.expect("starting", stateCreated); err != nil {
		return err
	}
	if err := c.init.expect("starting a process in", stateRunning); err != nil {
		return err
	}
	// A frozen container would freeze the new process on its way in, and the start with it.
	c.mu.Lock()
	paused := c.paused
	c.mu.Unlock()
	if paused {
		return fmt.Errorf("starting %s: the container is paused: %w", p, errdefs.ErrFailedPrecondition)
	}
	child, err := a.execute(ctx, c, p)
	p.io.started()
	p.config = nil
	if err != nil {
		p.stop(failedStart)
		return fmt.Errorf("starting %s: %w", p, err)
	}
	p.has(child, stateRunning)
	return nil
}

// deleteExec forgets an exec that is not running.
func (c *container) deleteExec(p *process) error {
	if p.current() == stateRunning {
		return fmt.Errorf("deleting %s, which is running: %w", p, errdefs.ErrFailedPrecondition)
	}
	p.stop(failedStart)
	p.io.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, p.exec)
	return nil
}

// deleteContainer takes a container apart. Its init must not run; other processes in it are ended.
func (a *Agent) deleteContainer(c *container) error {
	c.changing.Lock()
	defer c.changing.Unlock()
	if c.init.current() == stateRunning {
		return fmt.Errorf("deleting %s, which is running: %w", c.init, errdefs.ErrFailedPrecondition)
	}
	if err := c.cgroup.Kill(); err != nil {
		return fmt.Errorf("deleting %s: %w", c.init, err)
	}
	c.mu.Lock()
	execs := c.execs
	c.execs = nil
	c.mu.Unlock()
	for _, p := range execs {
		p.stop(failedStart)
		p.io.close()
	}
	if err := c.undo.run(); err != nil {
		return fmt.Errorf("deleting %s: %w", c.init, err)
	}
	a.forget(c) // last, so that a deletion that failed can be tried again
	return nil
}
