package kit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead.dev/bulkhead/test/cell"
)

var serial atomic.Uint64

// NewID returns a name that no other container or exec of this run has.
func NewID() string { return cell.Token() + strconv.FormatUint(serial.Add(1), 10) }

// Spec describes a container.
type Spec struct {
	// Runtime is the name of one.
	Runtime string
	// Pod is the pod it belongs to; nil: it is a plain container, with a VM of its own where the runtime makes VMs.
	Pod *Pod
	// Image defaults to BaseImage, Snapshotter to containerd's.
	Image, Snapshotter string
	// Args defaults to the image's.
	Args []string
	// Spec options are applied last.
	Options []oci.SpecOpts
	// RuntimeOptions are handed to the runtime as they are.
	RuntimeOptions any
	// View: the snapshot is a read-only one.
	View bool
	Stdio
}

// Stdio says where a process's streams go. Nil streams are not connected; Buffers collects output in the Container or
// Process where Stdout and Stderr are nil.
type Stdio struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Terminal       bool
	// NoIO connects nothing at all.
	NoIO bool
}

// Buffer collects output. It may be read while it is written.
type Buffer struct {
	mutex sync.Mutex
	data  bytes.Buffer
}

// Write implements io.Writer.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.data.Write(p)
}

// String returns what was written until now.
func (b *Buffer) String() string {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.data.String()
}

// Len returns how much was written until now.
func (b *Buffer) Len() int {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	return b.data.Len()
}

// Container is one with a task that is created and may be started.
type Container struct {
	client.Container
	Task           client.Task
	Stdout, Stderr *Buffer

	exit <-chan client.ExitStatus
}

// creator returns what makes a process's FIFOs, and the buffers that collect where the caller gave no writer.
func (n *Node) creator(io Stdio) (cio.Creator, *Buffer, *Buffer) {
	stdout, stderr := &Buffer{}, &Buffer{}
	if io.NoIO {
		return cio.NullIO, stdout, stderr
	}
	if io.Stdout == nil {
		io.Stdout = stdout
	}
	if io.Stderr == nil {
		io.Stderr = stderr
	}
	options := []cio.Opt{cio.WithStreams(io.Stdin, io.Stdout, io.Stderr), cio.WithFIFODir(n.Path("fifo"))}
	if io.Terminal {
		// containerd's client refuses a stderr next to a terminal.
		options = []cio.Opt{cio.WithStreams(io.Stdin, io.Stdout, nil), cio.WithFIFODir(n.Path("fifo")), cio.WithTerminal}
	}
	return cio.NewCreator(options...), stdout, stderr
}

// Create creates a container and its task. On an error nothing is left that Create has made and could remove.
func (n *Node) Create(ctx context.Context, spec Spec) (*Container, error) {
	ctx = InNamespace(ctx, Namespace)
	created, err := n.define(ctx, NewID(), spec)
	if err != nil {
		return nil, err
	}
	creator, stdout, stderr := n.creator(spec.Stdio)
	c := &Container{Container: created, Stdout: stdout, Stderr: stderr}
	if c.Task, err = created.NewTask(ctx, creator); err != nil {
		return nil, errors.Join(fmt.Errorf("create task: %w", err), created.Delete(ctx, client.WithSnapshotCleanup))
	}
	if c.exit, err = c.Task.Wait(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("wait for task: %w", err), c.Remove(ctx))
	}
	return c, nil
}

// define makes containerd's record of a container and its snapshot.
func (n *Node) define(ctx context.Context, id string, spec Spec) (client.Container, error) {
	if spec.Image == "" {
		spec.Image = BaseImage
	}
	image, err := n.Client.GetImage(ctx, spec.Image)
	if err != nil {
		return nil, err
	}
	options := []oci.SpecOpts{oci.WithDefaultSpec(), oci.WithDefaultUnixDevices, oci.WithImageConfig(image), seccompProfile}
	if len(spec.Args) > 0 {
		options = append(options, oci.WithProcessArgs(spec.Args...))
	}
	if spec.Terminal {
		options = append(options, oci.WithTTY)
	}
	options = append(options, oci.WithCgroup("/"+cell.Token()+"/"+id))
	if spec.Pod != nil {
		options = append(options, oci.WithAnnotations(map[string]string{
			"io.kubernetes.cri.container-type": "container",
			"io.kubernetes.cri.sandbox-id":     spec.Pod.ID(),
			"io.kubernetes.cri.container-name": id,
		}))
	}
	options = append(options, spec.Options...)
	snapshot := client.WithNewSnapshot(id, image)
	if spec.View {
		snapshot = client.WithNewSnapshotView(id, image)
	}
	newOptions := []client.NewContainerOpts{client.WithImage(image)}
	if spec.Snapshotter != "" {
		newOptions = append(newOptions, client.WithSnapshotter(spec.Snapshotter))
	}
	newOptions = append(newOptions, snapshot,
		client.WithRuntime(spec.Runtime, spec.RuntimeOptions),
		client.WithNewSpec(options...),
	)
	return n.Client.NewContainer(ctx, id, newOptions...)
}

// seccompProfile is containerd's, computed from the capabilities that the spec has when it comes to this option. It is a
// SpecOpts of its own because containerd's applies before later options could change the capabilities.
func seccompProfile(ctx context.Context, c oci.Client, container *containers.Container, spec *oci.Spec) error {
	return seccomp.WithDefaultProfile()(ctx, c, container, spec)
}

// Run creates a container, starts it, waits for its end and removes it.
func (n *Node) Run(ctx context.Context, spec Spec) (Result, error) {
	c, err := n.Create(ctx, spec)
	if err != nil {
		return Result{}, err
	}
	if err := c.Task.Start(InNamespace(ctx, Namespace)); err != nil {
		return Result{}, errors.Join(fmt.Errorf("start task: %w", err), c.Remove(ctx))
	}
	result, err := c.Wait(ctx)
	return result, errors.Join(err, c.Remove(ctx))
}

// Launch creates a container and starts it.
func (n *Node) Launch(ctx context.Context, spec Spec) (*Container, error) {
	c, err := n.Create(ctx, spec)
	if err != nil {
		return nil, err
	}
	if err := c.Task.Start(InNamespace(ctx, Namespace)); err != nil {
		return nil, errors.Join(fmt.Errorf("start task: %w", err), c.Remove(ctx))
	}
	return c, nil
}

// Result is how a process ended and what it wrote.
type Result struct {
	Status         uint32
	Stdout, Stderr string
}

// Wait waits for the end of the container's process and of its output.
func (c *Container) Wait(ctx context.Context) (Result, error) {
	status, err := ended(ctx, c.exit, c.Task)
	return Result{status, c.Stdout.String(), c.Stderr.String()}, err
}

// ended waits for an exit, and then until all output was read.
func ended(ctx context.Context, exit <-chan client.ExitStatus, p client.Process) (uint32, error) {
	select {
	case status := <-exit:
		if err := status.Error(); err != nil {
			return 0, fmt.Errorf("wait for %s: %w", p.ID(), err)
		}
		if p.IO() != nil {
			p.IO().Wait()
		}
		return status.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for %s: %w", p.ID(), ctx.Err())
	}
}

// Remove ends what still runs of the container and removes its task, record and snapshot. What is gone already is no error.
func (c *Container) Remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(InNamespace(context.WithoutCancel(ctx), Namespace), 2*time.Minute)
	defer cancel()
	var errs error
	if c.Task != nil {
		if _, err := c.Task.Delete(ctx, client.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
			errs = fmt.Errorf("delete task %s: %w", c.ID(), err)
		}
	}
	if err := c.Delete(ctx, client.WithSnapshotCleanup); err != nil && !errdefs.IsNotFound(err) {
		errs = errors.Join(errs, fmt.Errorf("delete container %s: %w", c.ID(), err))
	}
	return errs
}

// ExecSpec describes a further process.
type ExecSpec struct {
	Args []string
	// Change is applied to a copy of the container's own process.
	Change func(*specs.Process)
	Stdio
}

// Process is an exec that was started.
type Process struct {
	client.Process
	Stdout, Stderr *Buffer

	exit <-chan client.ExitStatus
}

// StartExec starts a further process in the container.
func (n *Node) StartExec(ctx context.Context, c *Container, spec ExecSpec) (*Process, error) {
	ctx = InNamespace(ctx, Namespace)
	container, err := c.Spec(ctx)
	if err != nil {
		return nil, err
	}
	process := *container.Process
	process.Args, process.Terminal = spec.Args, spec.Terminal
	if spec.Change != nil {
		spec.Change(&process)
	}
	creator, stdout, stderr := n.creator(spec.Stdio)
	p := &Process{Stdout: stdout, Stderr: stderr}
	if p.Process, err = c.Task.Exec(ctx, NewID(), &process, creator); err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	if p.exit, err = p.Process.Wait(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("wait for exec: %w", err), p.Remove(ctx))
	}
	if err := p.Start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start exec: %w", err), p.Remove(ctx))
	}
	return p, nil
}

// Exec runs a further process in the container to its end.
func (n *Node) Exec(ctx context.Context, c *Container, spec ExecSpec) (Result, error) {
	p, err := n.StartExec(ctx, c, spec)
	if err != nil {
		return Result{}, err
	}
	result, err := p.Await(ctx)
	return result, errors.Join(err, p.Remove(ctx))
}

// Await waits for the end of the process and of its output.
func (p *Process) Await(ctx context.Context) (Result, error) {
	status, err := ended(ctx, p.exit, p.Process)
	return Result{status, p.Stdout.String(), p.Stderr.String()}, err
}

// Remove ends the process if it runs, and deletes it.
func (p *Process) Remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(InNamespace(context.WithoutCancel(ctx), Namespace), 2*time.Minute)
	defer cancel()
	if _, err := p.Delete(ctx, client.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete exec %s: %w", p.ID(), err)
	}
	return nil
}

// Pod is a sandbox that containers join, made in the way CRI does it, but without a network.
type Pod struct{ *Container }

// StartPod starts a pod. The size is what its sandbox is told of its containers' limits.
func (n *Node) StartPod(ctx context.Context, runtime string, memory int64, options ...oci.SpecOpts) (*Pod, error) {
	sandbox := func(_ context.Context, _ oci.Client, c *containers.Container, s *oci.Spec) error {
		if s.Annotations == nil {
			s.Annotations = map[string]string{}
		}
		s.Annotations["io.kubernetes.cri.container-type"] = "sandbox"
		s.Annotations["io.kubernetes.cri.sandbox-id"] = c.ID
		s.Annotations["io.kubernetes.cri.sandbox-memory"] = strconv.FormatInt(memory, 10)
		return nil
	}
	c, err := n.Launch(ctx, Spec{Runtime: runtime, Options: append([]oci.SpecOpts{sandbox}, options...), Stdio: Stdio{NoIO: true}})
	if err != nil {
		return nil, fmt.Errorf("start pod: %w", err)
	}
	return &Pod{c}, nil
}

// Signal sends a signal to the container's process.
func (c *Container) Signal(ctx context.Context, signal syscall.Signal, options ...client.KillOpts) error {
	return c.Task.Kill(InNamespace(ctx, Namespace), signal, options...)
}
