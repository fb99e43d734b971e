// Bench measures what a sandboxed pod costs beside an ordinary one: the same containerd, the same image, the same calls, runc
// and Bulkhead by turns in the same run, so that a busy machine is busy for both. It prints a Markdown table, whose form
// docs/performance.md explains, to standard output, and what it is doing to standard error.
//
//	go run ./bench [-samples 10] [-cycles 50] [-bin DIR] [-guest DIR] [-acceleration auto]
//
// It needs root, and runs in namespaces of its own (package cell): it neither sees nor leaves anything outside.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/node"
	"bulkhead.dev/bulkhead/test/cell"
	"bulkhead.dev/bulkhead/test/kit"
)

func main() {
	cell.Main(func() int {
		if err := run(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
		return 0
	})
}

// bench is one run.
type bench struct {
	node            *kit.Node
	samples, cycles int
}

func run() (err error) {
	samples := flag.Int("samples", 10, "how often each thing is measured")
	cycles := flag.Int("cycles", 50, "how many sandboxes are made and removed to look for growth")
	bin := flag.String("bin", or(os.Getenv("BULKHEAD_TEST_BIN"), "../bin"), "directory of containerd and the shims")
	guest := flag.String("guest", or(os.Getenv("BULKHEAD_GUEST_DIR"), "../.state/guest"), "directory of the guest image")
	acceleration := flag.String("acceleration", or(os.Getenv("BULKHEAD_TEST_ACCELERATION"), "auto"), "auto, hardware or emulated")
	flag.Parse()
	if *samples < 1 || *cycles < 1 || flag.NArg() > 0 {
		return errors.New("samples and cycles are numbers of at least 1, and there are no arguments")
	}
	dir := cell.Dir()
	ctx := context.Background()
	program, err := kit.BuildTestProgram(ctx, dir)
	if err != nil {
		return err
	}
	absolute, err := filepath.Abs(*guest)
	if err != nil {
		return err
	}
	n, err := kit.Start(ctx, node.Options{Dir: filepath.Join(dir, "node"), Bin: *bin, Guest: absolute, Acceleration: *acceleration})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Stop(ctx)) }()
	if err := n.ImportBase(ctx, program); err != nil {
		return err
	}
	b := &bench{node: n, samples: *samples, cycles: *cycles}
	return b.report(ctx, *acceleration)
}

func or(values ...string) string {
	for _, value := range values {
		if value != "" {
			return value
		}
	}
	return ""
}

// report measures everything and prints the tables.
func (b *bench) report(ctx context.Context, acceleration string) error {
	rows, err := b.measure(ctx)
	if err != nil {
		return err
	}
	release, cpus, memory, err := machine()
	if err != nil {
		return err
	}
	fmt.Printf("Kernel %s, %d CPUs, %d GiB; acceleration %s; %s; %d samples of each; %d cycles.\n\n",
		release, cpus, memory>>30, acceleration, time.Now().UTC().Format(time.DateOnly), b.samples, b.cycles)
	fmt.Print(table(rows))
	return nil
}

func machine() (release string, cpus int, memory uint64, err error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", 0, 0, fmt.Errorf("read the kernel's release: %w", err)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return "", 0, 0, fmt.Errorf("read the size of memory: %w", err)
	}
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return "", 0, 0, fmt.Errorf("count the processors: %w", err)
	}
	return unix.ByteSliceToString(name.Release[:]), set.Count(), info.Totalram * uint64(info.Unit), nil
}

// measure takes the samples of both runtimes by turns.
func (b *bench) measure(ctx context.Context) ([]row, error) {
	both := []string{node.RuntimeRunc, node.RuntimeBulkhead}
	var cold, warm, throughput, output, pod, shim, guest [2]series
	for i := range b.samples + 1 {
		progress("sample %d of %d", i, b.samples)
		for r, runtime := range both {
			s, err := b.sample(ctx, runtime)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", runtime, err)
			}
			if i == 0 {
				continue // fills caches: the image's layers are converted once per node
			}
			cold[r].add(s.cold.Seconds())
			for _, d := range s.execs {
				warm[r].add(d.Seconds())
			}
			throughput[r].add(s.input)
			output[r].add(s.output)
			if runtime == node.RuntimeBulkhead {
				guest[r].add(s.guestMiB)
			}
		}
	}
	for r, runtime := range both {
		memory, err := b.idle(ctx, runtime)
		if err != nil {
			return nil, fmt.Errorf("%s: memory of idle pods: %w", runtime, err)
		}
		for _, m := range memory {
			pod[r].add(m.pod)
			shim[r].add(m.shim)
		}
	}
	growth, err := b.growth(ctx, both)
	if err != nil {
		return nil, err
	}
	return append([]row{
		{"Cold start to first output", "s", cold, most(6)},
		{"Exec in a running container, to its exit", "s", warm, most(0.5)},
		{"Host memory of an idle pod (VMM, shim, private)", "MB", pod, most(130)},
		{"of that, the shim", "MB", shim, most(20)},
		{"Memory used in the guest, idle", "MiB", guest, most(45)},
		{"Stdin through `cat` and back", "MiB/s", throughput, nil},
		{"Stdout of a writer", "MiB/s", output, nil},
	}, growth...), nil
}

func progress(format string, values ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", values...)
}

// sample is what one container yields.
type sample struct {
	cold          time.Duration
	execs         []time.Duration
	input, output float64 // MiB per second
	guestMiB      float64
}

// sample starts a container, measures with it and removes it.
func (b *bench) sample(ctx context.Context, runtime string) (s sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	first := newSignalWriter("ready\n")
	began := time.Now()
	c, err := b.node.Launch(ctx, kit.Spec{Runtime: runtime, Args: []string{"/bin/sh", "-c", "echo ready; exec testprog pause"}, Stdio: kit.Stdio{Stdout: first}})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, c.Remove(ctx)) }()
	select {
	case <-first.seen:
		s.cold = time.Since(began)
	case <-ctx.Done():
		return s, fmt.Errorf("wait for the first output: %w", ctx.Err())
	}
	if runtime == node.RuntimeBulkhead {
		if s.guestMiB, err = b.guestMemory(ctx, c); err != nil {
			return s, err
		}
	}
	for range 3 {
		began := time.Now()
		if err := b.exec(ctx, c, nil, "/bin/true"); err != nil {
			return s, err
		}
		s.execs = append(s.execs, time.Since(began))
	}
	return s, b.throughput(ctx, c, &s)
}

// exec runs a process to its end, which must be a good one.
func (b *bench) exec(ctx context.Context, c *kit.Container, stdio *kit.Stdio, args ...string) error {
	spec := kit.ExecSpec{Args: args}
	if stdio != nil {
		spec.Stdio = *stdio
	}
	result, err := b.node.Exec(ctx, c, spec)
	if err != nil {
		return err
	}
	if result.Status != 0 {
		return fmt.Errorf("exec %q: status %d: %s", args, result.Status, result.Stderr)
	}
	return nil
}

// guestMemory is what a guest's kernel says is not available, in MiB: agent, runtime and container included.
func (b *bench) guestMemory(ctx context.Context, c *kit.Container) (float64, error) {
	out := &kit.Buffer{}
	if err := b.exec(ctx, c, &kit.Stdio{Stdout: out}, "/bin/cat", "/proc/meminfo"); err != nil {
		return 0, err
	}
	fields := map[string]float64{}
	for line := range strings.Lines(out.String()) {
		var name string
		var kib float64
		if _, err := fmt.Sscanf(line, "%s %f", &name, &kib); err == nil {
			fields[name] = kib / 1024
		}
	}
	total, available := fields["MemTotal:"], fields["MemAvailable:"]
	if total == 0 || available == 0 {
		return 0, fmt.Errorf("the guest's /proc/meminfo is %q", out.String())
	}
	return total - available, nil
}

// throughput sends a fixed amount through cat, and reads as much from a writer.
func (b *bench) throughput(ctx context.Context, c *kit.Container, s *sample) error {
	const mib = 16
	began := time.Now()
	if err := b.throughCat(ctx, c, mib<<20); err != nil {
		return fmt.Errorf("stdin through cat: %w", err)
	}
	s.input = mib / time.Since(began).Seconds()
	began = time.Now()
	if err := b.exec(ctx, c, nil, "/bin/head", "-c", fmt.Sprint(mib<<20), "/dev/zero"); err != nil {
		return fmt.Errorf("stdout of a writer: %w", err)
	}
	s.output = mib / time.Since(began).Seconds()
	return nil
}

// throughCat ends when as much has come back as was sent.
func (b *bench) throughCat(ctx context.Context, c *kit.Container, size int64) error {
	back := newCountWriter(size)
	p, err := b.node.StartExec(ctx, c, kit.ExecSpec{Args: []string{"/bin/cat"}, Stdio: kit.Stdio{Stdin: zeros(size), Stdout: back}})
	if err != nil {
		return err
	}
	defer p.Remove(ctx)
	select {
	case <-back.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	return p.Kill(kit.InNamespace(ctx, kit.Namespace), syscall.SIGKILL)
}
