//go:build vm

package vm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead.dev/bulkhead/test/kit"
)

// eof reads from a source and then tells the runtime, as ctr does, that no more input comes.
type eof struct {
	io.Reader
	ended func()
}

func (e *eof) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	if err == io.EOF && e.ended != nil {
		e.ended()
		e.ended = nil
	}
	return n, err
}

// numbered returns the bytes that the test program's "pattern" duty writes.
func numbered(size int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < size; i++ {
		fmt.Fprintf(&b, "%07x\n", i)
	}
	return b.Bytes()[:size]
}

func checkBytes(t *testing.T, want, got []byte) {
	t.Helper()
	if bytes.Equal(want, got) {
		return
	}
	at := 0
	for at < min(len(want), len(got)) && want[at] == got[at] {
		at++
	}
	t.Errorf("got %d bytes (sha256 %x), want %d (sha256 %x); they differ from byte %d on",
		len(got), sha256.Sum256(got), len(want), sha256.Sum256(want), at)
}

func TestStdinThroughCat(t *testing.T) {
	ctx, c := shared(t)
	data := numbered(20 << 20)
	var process client.Process
	started := make(chan struct{})
	input := &eof{Reader: bytes.NewReader(data), ended: func() {
		// The copying starts before the process is known here.
		go func() {
			<-started
			if err := process.CloseIO(ctx, client.WithStdinCloser); err != nil {
				t.Errorf("close stdin: %v", err)
			}
		}()
	}}
	p := startExec(t, ctx, c, kit.ExecSpec{Args: []string{"/bin/cat"}, Stdio: kit.Stdio{Stdin: input}})
	process = p
	close(started)
	result, err := p.Await(ctx)
	if err != nil || result.Status != 0 {
		t.Fatalf("ended with status %d, stderr %q (%v)", result.Status, result.Stderr, err)
	}
	checkBytes(t, data, []byte(result.Stdout))
}

// TestLargeOutput has a process write faster than anyone reads, and exit with its last byte.
func TestLargeOutput(t *testing.T) {
	ctx, _ := shared(t)
	const size = 20<<20 + 12345
	result := inPod(t, ctx, kit.Spec{Args: []string{"/bin/testprog", "pattern", fmt.Sprint(size)}})
	if result.Status != 0 {
		t.Fatalf("status %d, stderr %q", result.Status, result.Stderr)
	}
	checkBytes(t, numbered(size), []byte(result.Stdout))
}

// TestOutputOfShortProcesses: nothing that a process wrote before it exited may be lost.
func TestOutputOfShortProcesses(t *testing.T) {
	ctx, c := shared(t)
	for i := range 40 {
		want := fmt.Sprintf("word-%d", i)
		result := exec(t, ctx, c, "/bin/sh", "-c", "echo "+want+"; echo "+want+" >&2; exit 3")
		if result.Stdout != want+"\n" || result.Stderr != want+"\n" || result.Status != 3 {
			t.Fatalf("run %d: %+v", i, result)
		}
	}
	t.Run("of init", func(t *testing.T) {
		for i := range 5 {
			if result := inPod(t, ctx, kit.Spec{Args: []string{"/bin/echo", "-n", "x"}}); result.Stdout != "x" {
				t.Fatalf("run %d: %+v", i, result)
			}
		}
	})
}

// fifos makes the FIFOs of a process by hand, so that each end is opened and closed when the test says so.
type fifos struct{ cio.Config }

func newFIFOs(t *testing.T, terminal bool) *fifos {
	t.Helper()
	dir, err := os.MkdirTemp(suite.node.Path("fifo"), "test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	f := &fifos{cio.Config{Terminal: terminal, Stdin: filepath.Join(dir, "in"), Stdout: filepath.Join(dir, "out"), Stderr: filepath.Join(dir, "err")}}
	if terminal {
		f.Stderr = ""
	}
	for _, path := range []string{f.Stdin, f.Stdout, f.Stderr} {
		if path == "" {
			continue
		}
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// open opens one end. Opened for both directions, a FIFO never makes the opener wait and never ends.
func (f *fifos) open(t *testing.T, path string, flag int) *os.File {
	t.Helper()
	file, err := os.OpenFile(path, flag|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// handles adapts fifos to cio.IO; the test does the copying.
type handles struct{ config cio.Config }

func (h handles) Config() cio.Config { return h.config }
func (handles) Cancel()              {}
func (handles) Wait()                {}
func (handles) Close() error         { return nil }

// start starts an exec on the FIFOs, and returns what its end is told on.
func (f *fifos) start(t *testing.T, ctx context.Context, c *kit.Container, args ...string) (client.Process, <-chan client.ExitStatus) {
	t.Helper()
	spec, err := c.Spec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	process := *spec.Process
	process.Args, process.Terminal = args, f.Terminal
	p, err := c.Task.Exec(ctx, kit.NewID(), &process, func(string) (cio.IO, error) { return handles{f.Config}, nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := p.Delete(context.WithoutCancel(ctx), client.WithProcessKill); err != nil {
			t.Errorf("delete exec: %v", err)
		}
	})
	exit, err := p.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return p, exit
}

// gather copies a file into a buffer until it ends.
func gather(file *os.File) *kit.Buffer {
	buffer := &kit.Buffer{}
	go io.Copy(buffer, file)
	return buffer
}

// TestStdinDetach has a client go away in the middle of the input, and another come: kubectl attach does that.
func TestStdinDetach(t *testing.T) {
	ctx, c := shared(t)
	f := newFIFOs(t, false)
	out := gather(f.open(t, f.Stdout, os.O_RDWR))
	f.open(t, f.Stderr, os.O_RDWR)
	first := f.open(t, f.Stdin, os.O_RDWR)
	p, exit := f.start(t, ctx, c, "/bin/cat")
	say := func(to *os.File, line string) {
		t.Helper()
		if _, err := to.WriteString(line); err != nil {
			t.Fatal(err)
		}
		prints(t, out, line)
	}
	say(first, "before\n")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case status := <-exit:
		t.Fatalf("the process ended (status %d) when the client let go of its input", status.ExitCode())
	default:
	}
	second := f.open(t, f.Stdin, os.O_RDWR)
	say(second, "after\n")
	if err := p.CloseIO(ctx, client.WithStdinCloser); err != nil {
		t.Fatal(err)
	}
	second.Close()
	select {
	case status := <-exit:
		if status.ExitCode() != 0 {
			t.Errorf("status %d", status.ExitCode())
		}
	case <-ctx.Done():
		t.Fatal("the process doesn't end after its input was closed")
	}
}

// TestSlowReader: nobody reads what one process writes, and one of the two streams of another. Everybody else goes on.
func TestSlowReader(t *testing.T) {
	ctx, c := shared(t)
	const more = 8 << 20 // than all buffers on the way hold together
	stuck := newFIFOs(t, false)
	stuckOut := stuck.open(t, stuck.Stdout, os.O_RDONLY)
	stuck.open(t, stuck.Stderr, os.O_RDONLY)
	stuck.open(t, stuck.Stdin, os.O_RDWR)
	_, exit := stuck.start(t, ctx, c, "/bin/testprog", "pattern", fmt.Sprint(more))

	half := newFIFOs(t, false)
	halfErr := half.open(t, half.Stderr, os.O_RDONLY)
	halfOut := gather(half.open(t, half.Stdout, os.O_RDWR))
	half.open(t, half.Stdin, os.O_RDWR)
	_, halfExit := half.start(t, ctx, c, "/bin/sh", "-c", fmt.Sprintf("testprog flood %d & while :; do echo tick; sleep 0.2; test -e /tmp/enough && break; done; wait", more))

	prints(t, halfOut, "tick\ntick\ntick\n")
	for range 3 {
		if got := output(t, exec(t, ctx, c, "/bin/echo", "lively")); got != "lively" {
			t.Errorf("output of another process is %q", got)
		}
	}
	exec(t, ctx, c, "/bin/touch", "/tmp/enough")
	t.Cleanup(func() { exec(t, ctx, c, "/bin/rm", "-f", "/tmp/enough") })
	// And when somebody reads at last, all is there.
	copied := make(chan []byte, 2)
	for _, file := range []*os.File{stuckOut, halfErr} {
		go func() {
			data, err := io.ReadAll(file)
			if err != nil {
				t.Errorf("read %s: %v", file.Name(), err)
			}
			copied <- data
		}()
	}
	for name, ended := range map[string]<-chan client.ExitStatus{"stuck": exit, "half stuck": halfExit} {
		select {
		case status := <-ended:
			if status.ExitCode() != 0 {
				t.Errorf("%s process ended with status %d", name, status.ExitCode())
			}
		case <-ctx.Done():
			t.Fatalf("the %s process doesn't end", name)
		}
	}
	for range 2 {
		if data := <-copied; len(data) != more {
			t.Errorf("got %d bytes, want %d", len(data), more)
		}
	}
	prints(t, halfOut, "end")
}

func TestTerminal(t *testing.T) {
	ctx, c := shared(t)
	t.Run("size", func(t *testing.T) {
		in, hold := io.Pipe()
		defer hold.Close()
		p := startExec(t, ctx, c, kit.ExecSpec{
			Args:   []string{"/bin/testprog", "tty-size"},
			Change: func(p *specs.Process) { p.ConsoleSize = &specs.Box{Height: 33, Width: 99} },
			Stdio:  kit.Stdio{Stdin: in, Terminal: true},
		})
		prints(t, p.Stdout, "\r\n")
		for _, size := range []struct{ w, h uint32 }{{120, 40}, {80, 25}} {
			if err := p.Resize(ctx, size.w, size.h); err != nil {
				t.Fatal(err)
			}
			prints(t, p.Stdout, fmt.Sprintf("%d %d\r\n", size.h, size.w))
		}
	})
	t.Run("line discipline", func(t *testing.T) {
		in, keys := io.Pipe()
		defer keys.Close()
		p := startExec(t, ctx, c, kit.ExecSpec{
			Args:  []string{"/bin/sh", "-c", "tty; read line; echo got:$line; exec sleep 1000"},
			Stdio: kit.Stdio{Stdin: in, Terminal: true},
		})
		prints(t, p.Stdout, "/dev/pts/")
		if _, err := io.WriteString(keys, "worX\x7fd\n"); err != nil {
			t.Fatal(err)
		}
		prints(t, p.Stdout, "got:word")
		if _, err := io.WriteString(keys, "\x03"); err != nil {
			t.Fatal(err)
		}
		if result, err := p.Await(ctx); err != nil || result.Status != 130 {
			t.Errorf("interrupted by the terminal, it ended with status %d (%v), want 130", result.Status, err)
		}
	})
	t.Run("of init", func(t *testing.T) {
		result := inPod(t, ctx, kit.Spec{Args: []string{"/bin/sh", "-c", "test -t 0 && test -t 1 && tty"}, Stdio: kit.Stdio{Stdin: strings.NewReader(""), Terminal: true}})
		if !strings.Contains(output(t, result), "/dev/") {
			t.Errorf("no terminal: %+v", result)
		}
	})
}

// TestNoInput: a process without stdin reads its end at once.
func TestNoInput(t *testing.T) {
	ctx, c := shared(t)
	if got := output(t, exec(t, ctx, c, "/bin/sh", "-c", "cat; echo end")); got != "end" {
		t.Errorf("output %q", got)
	}
}

// TestClosedReader: who reads no more makes the writer fail or run on, but never hang the container.
func TestClosedReader(t *testing.T) {
	ctx, c := shared(t)
	f := newFIFOs(t, false)
	out := f.open(t, f.Stdout, os.O_RDONLY)
	f.open(t, f.Stderr, os.O_RDWR)
	f.open(t, f.Stdin, os.O_RDWR)
	_, exit := f.start(t, ctx, c, "/bin/testprog", "pattern", fmt.Sprint(4<<20))
	out.Close()
	reopened := gather(f.open(t, f.Stdout, os.O_RDWR)) // as a kubelet that was restarted does
	_ = reopened
	select {
	case <-exit:
	case <-ctx.Done():
		t.Fatal("the process doesn't end")
	}
}
