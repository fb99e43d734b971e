package stdio

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

const patience = 30 * time.Second

func fifo(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// reader opens a fifo as containerd's client does: without waiting for a writer.
func reader(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func writer(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func open(t *testing.T, names Names) *Set {
	t.Helper()
	s, err := Open(context.Background(), names)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestOutputIsCompleteBeforeDrained(t *testing.T) {
	path := fifo(t, "out")
	r := reader(t, path)
	s := open(t, Names{Stdout: path})
	want := make([]byte, 5<<20)
	rand.Read(want)
	s.Attach(nil, io.NopCloser(bytes.NewReader(want)), nil)
	got := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(r)
		got <- b
	}()
	if !s.Drain(context.Background(), patience) {
		t.Fatal("not drained")
	}
	if b := <-got; !bytes.Equal(b, want) {
		t.Errorf("got %d bytes, want the %d written", len(b), len(want))
	}
}

func TestASlowReaderHoldsUpItsOwnStreamOnly(t *testing.T) {
	out, errs := fifo(t, "out"), fifo(t, "err")
	reader(t, out) // never reads
	r := reader(t, errs)
	s := open(t, Names{Stdout: out, Stderr: errs})
	endless, w := net.Pipe()
	defer w.Close()
	go func() {
		for {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				return
			}
		}
	}()
	s.Attach(nil, endless, io.NopCloser(bytes.NewReader(make([]byte, 1<<20))))
	if b, err := io.ReadAll(r); err != nil || len(b) != 1<<20 {
		t.Errorf("stderr: %d bytes, %v", len(b), err)
	}
	if s.Drain(context.Background(), 50*time.Millisecond) {
		t.Error("drained, although nobody reads stdout")
	}
	s.Close() // must end the pump that waits for the reader
	<-s.done
}

func TestStdinSurvivesDetachAndEndsWithCloseStdin(t *testing.T) {
	path := fifo(t, "in")
	s := open(t, Names{Stdin: path})
	guest, host := net.Pipe()
	s.Attach(host, nil, nil)
	first := writer(t, path)
	first.WriteString("one ")
	expect(t, guest, "one ")
	first.Close() // detach

	second := writer(t, path)
	second.WriteString("two")
	if err := s.CloseStdin(); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseStdin(); err != nil {
		t.Errorf("second CloseStdin: %v", err)
	}
	second.Close()
	rest, err := io.ReadAll(guest)
	if err != nil || string(rest) != "two" {
		t.Errorf("got %q, %v; want what was written before the end", rest, err)
	}
}

func expect(t *testing.T, r io.Reader, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(r, b); err != nil || string(b) != want {
		t.Fatalf("got %q, %v; want %q", b, err, want)
	}
}

func TestOutputWaitsForTheReaderThatComesBack(t *testing.T) {
	path := fifo(t, "out")
	r := reader(t, path)
	s := open(t, Names{Stdout: path})
	from, guest := net.Pipe()
	s.Attach(nil, from, nil)
	guest.Write([]byte("before "))
	expect(t, r, "before ")
	r.Close() // containerd is restarted
	guest.Write([]byte("meanwhile"))
	r = reader(t, path)
	guest.Close()
	b, err := io.ReadAll(r)
	if err != nil || string(b) != "meanwhile" {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestFilesAreAppendedTo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "logs", "c.log")
	for range 2 {
		name := "file://" + path
		s := open(t, Names{Stdout: name, Stderr: name})
		s.Attach(nil, io.NopCloser(bytes.NewReader([]byte("o\n"))), io.NopCloser(bytes.NewReader([]byte("e\n"))))
		s.Drain(context.Background(), patience)
		s.Close()
	}
	b, err := os.ReadFile(path)
	if err != nil || len(b) != 8 {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestNoStreams(t *testing.T) {
	s := open(t, Names{})
	if s.HasStdin() || s.HasStdout() || s.HasStderr() {
		t.Error("a stream is wanted that was not named")
	}
	if !s.Drain(context.Background(), patience) {
		t.Error("not drained before Attach")
	}
	s.Attach(nil, nil, nil)
	if !s.Drain(context.Background(), patience) {
		t.Error("not drained")
	}
	if err := s.CloseStdin(); err != nil {
		t.Error(err)
	}
}

func TestOutputWithoutStreamEnds(t *testing.T) {
	path := fifo(t, "out")
	r := reader(t, path)
	open(t, Names{Stdout: path}).Attach(nil, nil, nil)
	if b, err := io.ReadAll(r); err != nil || len(b) != 0 {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestTerminalHasNoStderr(t *testing.T) {
	out, errs := fifo(t, "out"), fifo(t, "err")
	reader(t, out)
	if s := open(t, Names{Stdout: out, Stderr: errs, Terminal: true}); s.HasStderr() {
		t.Error("a terminal has stderr")
	}
}

func TestOpenRefuses(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	alone := fifo(t, "alone")
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	for name, c := range map[string]struct {
		names Names
		want  error
	}{
		"logging program":     {Names{Stdout: "binary:///bin/logger?a=b"}, errdefs.ErrInvalidArgument},
		"second version":      {Names{Stderr: "binary-v2:///bin/logger"}, errdefs.ErrInvalidArgument},
		"streaming":           {Names{Stdout: "ttrpc+unix:///run/x"}, errdefs.ErrInvalidArgument},
		"relative file":       {Names{Stdout: "file://log"}, errdefs.ErrInvalidArgument},
		"regular file":        {Names{Stdout: plain}, errdefs.ErrInvalidArgument},
		"stdin from file":     {Names{Stdin: plain}, errdefs.ErrInvalidArgument},
		"missing fifo":        {Names{Stdin: plain + "x"}, errdefs.ErrNotFound},
		"missing output":      {Names{Stdout: plain + "x"}, errdefs.ErrNotFound},
		"fifo without reader": {Names{Stdout: alone}, errdefs.ErrFailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Open(cancelled, c.names)
			if !errors.Is(err, c.want) {
				t.Errorf("Open: %v, want %v", err, c.want)
			}
			if s != nil {
				t.Error("a set came with the error")
			}
		})
	}
}
