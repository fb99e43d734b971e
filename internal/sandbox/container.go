package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"

	guestapi "bulkhead.dev/bulkhead/api/guest"
	"bulkhead.dev/bulkhead/internal/rootfs"
	"bulkhead.dev/bulkhead/internal/vmm"
)

// ContainerSpec describes a container of the pod.
type ContainerSpec struct {
	// ID is unique in the pod: 1 to 128 characters of [a-zA-Z0-9_.-].
	ID string
	// Spec is the OCI spec as written for the host. It is not changed.
	Spec *specs.Spec
	// RootFS are the mounts that containerd handed over for the root file system.
	RootFS []rootfs.Mount
	// Terminal: stdin and stdout are the two directions of a pty, and Stderr must be false.
	Terminal bool
	// Stdin, Stdout, Stderr say which streams are wanted; the others are /dev/null.
	Stdin, Stdout, Stderr bool
}

// container is a container that exists or is being made.
type container struct {
	sandbox *Sandbox
	spec    ContainerSpec
	guest   translation
	init    *Process
	undo    undoStack

	root    *rootfs.RootFS
	layers  []attachment
	scratch scratch
	exports []exportKey

	mu    sync.Mutex
	execs map[string]*Process // nil: the exec is being made
	pid   uint32              // of the init, in the guest; 0 until it was created
	gone  bool                // the guest has deleted it
}

// scratch is the disk that takes what a container writes.
type scratch struct {
	path    string // empty: the container has none
	address vmm.Address
}

// CreateContainer prepares the container's root file system, attaches its disks, serves its bind mounts and has the
// guest create its init process, not started. On an error nothing is left of it.
//
// Errors: ErrAlreadyExists for an ID in use, ErrInvalidArgument for a spec that can't be or that asks for what a sandbox
// can't give (the text says what and why), ErrUnavailable once the VM has ended.
func (s *Sandbox) CreateContainer(ctx context.Context, spec ContainerSpec) (*Process, error) {
	c, err := s.begin(spec)
	if err != nil {
		return nil, fmt.Errorf("create container %.140q: %w", spec.ID, err)
	}
	defer s.creating.Done()
	// The construction ends with the VM: nothing may be recorded once Stop is through.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	err = c.undo.run(ctx, s.host.after, []step{
		{"root file system", c.prepareRoot, c.closeRoot, false},
		{"disks", c.attachDisks, c.detachDisks, false},
		{"volumes", c.export, c.unexport, false},
		{"streams", c.init.openStreams, c.init.undoStreams, false},
		{"guest", c.create, c.deleteInGuest, false},
	})
	if err != nil {
		if !errors.Is(err, errCrash) {
			s.forget(c)
		}
		if reason := s.ended(); reason != nil && errors.Is(err, context.Canceled) {
			err = reason
		}
		return nil, fmt.Errorf("create container %s: %w", spec.ID, err)
	}
	return c.init, nil
}

// begin checks the spec, translates it and takes the id.
func (s *Sandbox) begin(spec ContainerSpec) (*container, error) {
	if err := checkID("container", spec.ID); err != nil {
		return nil, err
	}
	if spec.Terminal && spec.Stderr {
		return nil, fmt.Errorf("a terminal has no separate stderr: %w", errdefs.ErrInvalidArgument)
	}
	c := &container{sandbox: s, spec: spec, execs: map[string]*Process{}}
	c.init = newProcess(c, "", streams{terminal: spec.Terminal, stdin: spec.Stdin, stdout: spec.Stdout, stderr: spec.Stderr})
	s.mu.Lock()
	number := s.made
	s.made++
	s.mu.Unlock()
	pids, err := s.joinedPIDs(spec.Spec)
	if err != nil {
		return nil, err
	}
	c.guest, err = translate(spec.Spec, surroundings{
		ID: spec.ID, MountPrefix: "c" + strconv.Itoa(number), Terminal: spec.Terminal, Sysctls: s.spec.Sysctls, PIDs: pids,
	})
	if err != nil {
		return nil, err
	}
	c.init.size(spec.Spec.Process)
	if err := s.ended(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return nil, fmt.Errorf("sandbox %s is being stopped: %w", s.spec.ID, errdefs.ErrUnavailable)
	}
	if s.containers[spec.ID] != nil {
		return nil, errdefs.ErrAlreadyExists
	}
	s.containers[spec.ID] = c
	s.creating.Add(1)
	return c, nil
}

// joinedPIDs finds out which pid namespace a spec means that names one by a path, which only says that it is one of this pod's:
// in a pod whose containers share one, that; else the container's that is to be looked at, as with kubectl debug --target. It
// returns the path of that one in the guest, or "".
func (s *Sandbox) joinedPIDs(spec *specs.Spec) (string, error) {
	if spec == nil || spec.Linux == nil || !slices.ContainsFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.PIDNamespace && ns.Path != ""
	}) {
		return "", nil
	}
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.containers))
	s.mu.Unlock()
	var targets []uint32
	for _, c := range all {
		c.mu.Lock()
		pid := c.pid
		c.mu.Unlock()
		if pid != 0 && c.init.now() == running && c.guest.ownPIDs() {
			targets = append(targets, pid)
		}
	}
	switch len(targets) {
	case 0:
		return "", nil
	case 1:
		return fmt.Sprintf("/proc/%d/ns/pid", targets[0]), nil
	default:
		return "", unsupported("joining the processes of one of the pod's %d running containers: which one can't be told; "+
			"leave --target out, or set shareProcessNamespace in the pod's spec", len(targets))
	}
}

// ownPIDs says whether the container has a pid namespace of its own.
func (t translation) ownPIDs() bool {
	return t.Spec != nil && t.Spec.Linux != nil && slices.ContainsFunc(t.Spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.PIDNamespace && ns.Path == ""
	})
}

func (s *Sandbox) forget(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.containers[c.spec.ID] == c {
		delete(s.containers, c.spec.ID)
	}
}

// find is ErrNotFound for a container that doesn't exist or is still being made.
func (s *Sandbox) find(id string) (*container, error) {
	s.mu.Lock()
	c := s.containers[id]
	s.mu.Unlock()
	if c != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.pid != 0 {
			return c, nil
		}
	}
	return nil, fmt.Errorf("container %.140q: %w", id, errdefs.ErrNotFound)
}

// discard takes back what is left of the container, on the host alone if the VM has ended.
func (c *container) discard(ctx context.Context) error {
	c.init.finish(Exit{}, fmt.Errorf("container %s is gone: %w", c.spec.ID, errdefs.ErrUnavailable))
	for _, p := range c.processes() {
		p.finish(Exit{}, fmt.Errorf("container %s is gone: %w", c.spec.ID, errdefs.ErrUnavailable))
		p.closeStreams()
	}
	if err := c.undo.unwind(ctx); err != nil {
		return fmt.Errorf("container %s: %w", c.spec.ID, err)
	}
	c.sandbox.forget(c)
	return nil
}

// processes returns the execs.
func (c *container) processes() []*Process {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*Process, 0, len(c.execs))
	for _, p := range c.execs {
		if p != nil {
			all = append(all, p)
		}
	}
	return all
}

// scratchName is the scratch disk's file in a snapshot's writable directory.
const scratchName = ".bulkhead-scratch"

func (c *container) prepareRoot(ctx context.Context) (err error) {
	if err := removeStale(c.spec.RootFS); err != nil {
		return err
	}
	c.root, err = c.sandbox.host.prepare(ctx, c.spec.RootFS)
	return err
}

// removeStale removes a scratch disk that was left when the host went down, and its record with it. Seen as the
// container's own file it would become a layer. A snapshot has one container, so it is nobody else's.
func removeStale(mounts []rootfs.Mount) error {
	for _, m := range mounts {
		if m.Type == "bind" && !slices.Contains(m.Options, "ro") && filepath.IsAbs(m.Source) {
			if err := removeIfThere(filepath.Join(m.Source, scratchName)); err != nil {
				return err
			}
		}
		for _, o := range m.Options {
			if upper, ok := strings.CutPrefix(o, "upperdir="); ok && filepath.IsAbs(upper) {
				if err := removeIfThere(filepath.Join(upper, scratchName)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (c *container) closeRoot(context.Context) error { return c.root.Close() }

// attachDisks attaches the layers and makes the scratch disk, at once: making a file system takes longer than all the
// rest.
func (c *container) attachDisks(ctx context.Context) error {
	c.layers = make([]attachment, len(c.root.Layers))
	group, inner := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i, layer := range c.root.Layers {
		group.Go(func() (err error) {
			c.layers[i], err = c.sandbox.disks.attach(inner, layer)
			return err
		})
	}
	if c.needsScratch() {
		group.Go(func() error { return c.makeScratch(inner) })
	}
	if err := group.Wait(); err != nil {
		undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		return errors.Join(err, c.detachDisks(undoCtx))
	}
	return nil
}

// needsScratch: nothing is written to a root that is read-only.
func (c *container) needsScratch() bool { return !c.guest.Spec.Root.Readonly }

// scratchPath is in the snapshot's writable directory, where containerd's usage of the snapshot, and so the kubelet's
// accounting of ephemeral storage, sees what the file takes. Without one it is in the sandbox's own directory.
func (c *container) scratchPath() string {
	if c.root.Upper != "" {
		return filepath.Join(c.root.Upper, scratchName)
	}
	return filepath.Join(c.sandbox.spec.Dir, "scratch-"+c.spec.ID)
}

func (c *container) makeScratch(ctx context.Context) error {
	s := c.sandbox
	path := c.scratchPath()
	if err := s.rec.addScratch(path); err != nil {
		return err
	}
	c.scratch.path = path
	file, err := s.host.createScratch(ctx, path, s.spec.Size.ScratchBytes)
	if err != nil {
		c.scratch.path = ""
		return errors.Join(err, s.rec.dropScratch(path))
	}
	defer file.Close() // the driver has a descriptor of its own
	address, err := s.vm.AddDisk(ctx, vmm.Disk{File: file})
	if err != nil {
		return fmt.Errorf("attach scratch disk %s: %w", path, err)
	}
	c.scratch.address = address
	return nil
}

// detachDisks takes back what attachDisks has done so far. It can be called again when it failed.
func (c *container) detachDisks(ctx context.Context) error {
	var errs []error
	for i, a := range c.layers {
		if a.disk == nil {
			continue
		}
		errs = append(errs, c.sandbox.disks.detach(ctx, a))
		c.layers[i] = attachment{}
	}
	if c.scratch.address != "" {
		if err := removeDisk(ctx, c.sandbox.vm, c.scratch.address); err != nil {
			return errors.Join(append(errs, err)...)
		}
		c.scratch.address = ""
	}
	if c.scratch.path != "" {
		err := removeIfThere(c.scratch.path)
		if err == nil {
			err = c.sandbox.rec.dropScratch(c.scratch.path)
		}
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		c.scratch.path = ""
	}
	return errors.Join(errs...)
}

func (c *container) export(ctx context.Context) error {
	for _, b := range c.guest.Binds {
		key := exportKey{b.Source, b.ReadOnly}
		name, err := c.sandbox.exports.get(key)
		if err != nil {
			return errors.Join(fmt.Errorf("serve %s: %w", b.Source, err), c.unexport(ctx))
		}
		c.exports = append(c.exports, key)
		for _, m := range c.guest.Mounts {
			if m.Name == b.Mount {
				m.Source = name
			}
		}
	}
	return nil
}

func (c *container) unexport(context.Context) error {
	var errs []error
	for _, key := range c.exports {
		errs = append(errs, c.sandbox.exports.put(key))
	}
	c.exports = nil
	return errors.Join(errs...)
}

// create has the guest create the container.
func (c *container) create(ctx context.Context) error {
	spec, err := json.Marshal(c.guest.Spec)
	if err != nil {
		return fmt.Errorf("encode the guest's OCI spec: %w", err)
	}
	root := &guestapi.RootFS{}
	for _, a := range c.layers {
		root.Layers = append(root.Layers, &guestapi.Disk{Address: string(a.address), Readonly: true, Fstype: "erofs"})
	}
	if c.scratch.address != "" {
		root.Scratch = &guestapi.Disk{Address: string(c.scratch.address), Fstype: "ext4"}
	}
	err = c.sandbox.call(ctx, "create it in the guest", func(ctx context.Context) error {
		answer, err := c.sandbox.agent.CreateContainer(ctx, &guestapi.CreateContainerRequest{
			Id: c.spec.ID, Spec: spec, Rootfs: root, Stdio: c.init.stdio(), Mounts: c.guest.Mounts,
		})
		if err != nil {
			return err
		}
		pid, err := checkPID(answer.Pid)
		if err != nil {
			return err
		}
		c.mu.Lock()
		c.pid = pid
		c.mu.Unlock()
		return nil
	})
	if err != nil {
		// The guest may have made it all the same: the caller's time was up, or the answer was nonsense. If it can't be deleted
		// either, its disks are taken from it.
		undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		c.sandbox.deleteProcess(undoCtx, c.spec.ID, "") //nolint:errcheck // the error of the creation is the one to tell
	}
	return err
}

// deleteInGuest is nothing to do when the guest, or the container in it, is gone.
func (c *container) deleteInGuest(ctx context.Context) error {
	c.mu.Lock()
	gone := c.gone
	c.mu.Unlock()
	if gone {
		return nil
	}
	err := c.sandbox.deleteProcess(ctx, c.spec.ID, "")
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.gone = true
	c.mu.Unlock()
	return nil
}

func (s *Sandbox) deleteProcess(ctx context.Context, container, exec string) error {
	err := s.call(ctx, "delete it in the guest", func(ctx context.Context) error {
		_, err := s.agent.Delete(ctx, &guestapi.ProcessRequest{Container: container, Exec: exec})
		return err
	})
	if errdefs.IsNotFound(err) || s.ended() != nil {
		return nil
	}
	return err
}

// Pid is a process in the guest.
type Pid struct {
	// PID in the guest, not on the host.
	PID uint32
	// Exec is the ID of the exec this is, where it is one.
	Exec string
}

// Pids lists the container's processes, at most 65536 of them.
func (s *Sandbox) Pids(ctx context.Context, id string) ([]Pid, error) {
	c, err := s.find(id)
	if err != nil {
		return nil, err
	}
	var pids []Pid
	err = s.callFor(ctx, "list processes", id, func(ctx context.Context, request *guestapi.ContainerRequest) error {
		answer, err := s.agent.Pids(ctx, request)
		if err != nil {
			return err
		}
		pids = c.checkPids(answer.Processes)
		return nil
	})
	return pids, err
}

// Pause freezes the container's processes.
func (s *Sandbox) Pause(ctx context.Context, id string) error {
	return s.callFor(ctx, "pause", id, func(ctx context.Context, request *guestapi.ContainerRequest) error {
		_, err := s.agent.Pause(ctx, request)
		return err
	})
}

// Resume thaws them.
func (s *Sandbox) Resume(ctx context.Context, id string) error {
	return s.callFor(ctx, "resume", id, func(ctx context.Context, request *guestapi.ContainerRequest) error {
		_, err := s.agent.Resume(ctx, request)
		return err
	})
}

// Update changes the container's limits inside the guest. The VM itself does not grow: a limit above the VM's memory is
// accepted and can't be used up.
func (s *Sandbox) Update(ctx context.Context, id string, resources *specs.LinuxResources) error {
	data, err := json.Marshal(translateResources(resources))
	if err != nil {
		return fmt.Errorf("encode resources: %w", err)
	}
	return s.callFor(ctx, "update", id, func(ctx context.Context, _ *guestapi.ContainerRequest) error {
		_, err := s.agent.Update(ctx, &guestapi.UpdateRequest{Container: id, Resources: data})
		return err
	})
}

// Stats reads the container's figures. They are the guest's word.
func (s *Sandbox) Stats(ctx context.Context, id string) (*guestapi.StatsResponse, error) {
	var stats *guestapi.StatsResponse
	err := s.callFor(ctx, "read stats", id, func(ctx context.Context, request *guestapi.ContainerRequest) (err error) {
		stats, err = s.agent.Stats(ctx, request)
		return err
	})
	if err != nil {
		return nil, err
	}
	stats.ProtoReflect().SetUnknown(nil)
	return stats, nil
}

// callFor is call, for a container that exists.
func (s *Sandbox) callFor(ctx context.Context, what, id string, f func(context.Context, *guestapi.ContainerRequest) error) error {
	if _, err := s.find(id); err != nil {
		return err
	}
	return s.call(ctx, what+" container "+id, func(ctx context.Context) error {
		return f(ctx, &guestapi.ContainerRequest{Container: id})
	})
}
