package guesttest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	guestapi "bulkhead.dev/bulkhead/api/guest"
	"bulkhead.dev/bulkhead/internal/guest/rpc"
)

// The states of a process.
const (
	created = "created"
	running = "running"
	ended   = "ended"
)

type process struct {
	args  []string
	stdio *guestapi.Stdio
	pid   uint32
	kill  chan uint32 // the first signal that ends the process

	ended  chan struct{}
	status uint32    // set once ended is closed
	at     time.Time // set once ended is closed

	mu    sync.Mutex
	state string // guarded by mu
}

func newProcess(args []string, stdio *guestapi.Stdio) *process {
	return &process{args: args, stdio: stdio, kill: make(chan uint32, 1), ended: make(chan struct{}), state: created}
}

func specArgs(b []byte) ([]string, error) {
	var spec specs.Spec
	if err := json.Unmarshal(b, &spec); err != nil {
		return nil, fmt.Errorf("reading the spec: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if spec.Process == nil || len(spec.Process.Args) == 0 {
		return nil, fmt.Errorf("spec has no process.args: %w", errdefs.ErrInvalidArgument)
	}
	return spec.Process.Args, nil
}

func processArgs(b []byte) ([]string, error) {
	var p specs.Process
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, fmt.Errorf("reading the process: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if len(p.Args) == 0 {
		return nil, fmt.Errorf("process has no args: %w", errdefs.ErrInvalidArgument)
	}
	return p.Args, nil
}

func memoryLimit(b []byte) (uint64, error) {
	var r specs.LinuxResources
	if err := json.Unmarshal(b, &r); err != nil {
		return 0, fmt.Errorf("reading resources: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if r.Memory == nil || r.Memory.Limit == nil {
		return 0, nil
	}
	return uint64(*r.Memory.Limit), nil
}

func (p *process) current() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

func (p *process) start(ctx context.Context, guest *rpc.Guest) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != created {
		return fmt.Errorf("process is %s, not created: %w", p.state, errdefs.ErrFailedPrecondition)
	}
	run := programs[p.args[0]]
	if run == nil {
		p.finish(255)
		return fmt.Errorf("executable %q: %w", p.args[0], errdefs.ErrNotFound)
	}
	var files [3]net.Conn
	for i, id := range []uint64{p.stdio.GetStdin(), p.stdio.GetStdout(), p.stdio.GetStderr()} {
		if id == 0 {
			continue
		}
		conn, err := guest.Take(ctx, id)
		if err != nil {
			return err
		}
		files[i] = conn
	}
	p.state = running
	go p.run(run, files)
	return nil
}

func (p *process) run(run program, files [3]net.Conn) {
	var in io.Reader = strings.NewReader("")
	var out, errw io.Writer = io.Discard, io.Discard
	if files[0] != nil {
		in = files[0]
	}
	if files[1] != nil {
		out = files[1]
	}
	if files[2] != nil {
		errw = files[2]
	}
	done := make(chan uint32, 1)
	go func() { done <- run(p.args[1:], in, out, errw) }()
	var status uint32
	select {
	case status = <-done:
	case signal := <-p.kill:
		status = 128 + signal
	}
	for _, f := range files {
		if f != nil {
			f.Close()
			go discard(f)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish(status)
}

// discard reads what the host still sends, so that it doesn't stall.
func discard(r io.Reader) { _, _ = io.Copy(io.Discard, r) }

// finish ends the process. The caller holds mu.
func (p *process) finish(status uint32) {
	if p.state == ended {
		return
	}
	p.state, p.status, p.at = ended, status, time.Now()
	close(p.ended)
}

// abandon ends a process that was never started.
func (p *process) abandon() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish(128 + uint32(syscall.SIGKILL))
}

func (p *process) signal(n uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == ended {
		return fmt.Errorf("process has ended: %w", errdefs.ErrNotFound)
	}
	switch syscall.Signal(n) {
	case syscall.SIGCONT, syscall.SIGCHLD, syscall.SIGURG, syscall.SIGWINCH:
		return nil
	}
	if p.state == created {
		p.finish(128 + n)
		return nil
	}
	select {
	case p.kill <- n:
	default:
	}
	return nil
}

// program returns its exit status. It is left running, with its streams closed, when a signal ends the process.
type program func(args []string, in io.Reader, out, errw io.Writer) uint32

var programs = map[string]program{
	"cat": func(_ []string, in io.Reader, out, _ io.Writer) uint32 {
		_, _ = io.Copy(out, in)
		return 0
	},
	"echo": func(args []string, _ io.Reader, out, _ io.Writer) uint32 {
		fmt.Fprintln(out, strings.Join(args, " "))
		return 0
	},
	"err": func(args []string, _ io.Reader, _, errw io.Writer) uint32 {
		fmt.Fprintln(errw, strings.Join(args, " "))
		return 0
	},
	"bytes": func(args []string, _ io.Reader, out, _ io.Writer) uint32 {
		n, _ := strconv.ParseInt(strings.Join(args, ""), 10, 64)
		_, _ = io.CopyN(out, zeros{}, n)
		return 0
	},
	"exit": func(args []string, _ io.Reader, _, _ io.Writer) uint32 {
		n, err := strconv.ParseUint(strings.Join(args, ""), 10, 8)
		if err != nil {
			return 255
		}
		return uint32(n)
	},
	"sleep": func([]string, io.Reader, io.Writer, io.Writer) uint32 {
		select {}
	},
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
