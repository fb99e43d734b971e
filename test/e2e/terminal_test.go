//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/test/kit"
)

// session is a program that runs beside the test, on a terminal or on pipes.
type session struct {
	cmd    *exec.Cmd
	input  io.WriteCloser
	output *kit.Buffer
	ended  chan error
}

// start starts a program with pipes. It is ended with the test.
func start(t *testing.T, cmd *exec.Cmd) *session {
	t.Helper()
	s := &session{cmd: cmd, output: &kit.Buffer{}, ended: make(chan error, 1)}
	var err error
	if s.input, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = s.output, s.output
	s.begin(t)
	return s
}

// startOnTerminal starts a program on a terminal of its own.
func startOnTerminal(t *testing.T, cmd *exec.Cmd, rows, columns uint16) *session {
	t.Helper()
	master, slave, err := openTerminal()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns}); err != nil {
		t.Fatal(err)
	}
	s := &session{cmd: cmd, input: master, output: &kit.Buffer{}, ended: make(chan error, 1)}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	s.begin(t)
	slave.Close()
	go func() { _, _ = io.Copy(s.output, master) }() // ends with an error when the last user of the other side is gone
	return s
}

func (s *session) begin(t *testing.T) {
	t.Helper()
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		s.ended <- s.cmd.Wait()
		close(done)
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill() // it may have ended
		<-done
		s.input.Close()
	})
}

// openTerminal makes a pair of ends of a pseudoterminal, see pty(7).
func openTerminal() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	if err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err == nil {
		var number uint32
		if number, err = unix.IoctlGetUint32(int(master.Fd()), unix.TIOCGPTN); err == nil {
			slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
		}
	}
	if err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("make a terminal: %w", err)
	}
	return master, slave, nil
}

// says waits until the program's output has the text.
func (s *session) says(t *testing.T, text string) {
	t.Helper()
	eventually(t, func() string {
		if got := s.output.String(); !strings.Contains(got, text) {
			return fmt.Sprintf("%s says %q, without %q", strings.Join(s.cmd.Args[1:], " "), got, text)
		}
		return ""
	})
}

// type writes to the program.
func (s *session) typeLine(t *testing.T, line string) {
	t.Helper()
	if _, err := io.WriteString(s.input, line+"\n"); err != nil {
		t.Fatal(err)
	}
}

// end waits for the program's end.
func (s *session) end(t *testing.T) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), generous)
	defer cancel()
	select {
	case err := <-s.ended:
		return err
	case <-ctx.Done():
		t.Fatalf("%s doesn't end; it said %q", strings.Join(s.cmd.Args[1:], " "), s.output)
		return nil
	}
}
