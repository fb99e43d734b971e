package image

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// TestPauseProgram runs it until a signal ends it, with a child that nobody waits for.
func TestPauseProgram(t *testing.T) {
	files, entrypoint, err := Pause()
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 1 || entrypoint[0] != "/"+files[0].Path {
		t.Fatalf("entrypoint %q of %v", entrypoint, files)
	}
	program := filepath.Join(t.TempDir(), "pause")
	if err := os.WriteFile(program, files[0].Data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := static(program); err != nil {
		t.Error(err)
	}
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			// The shell's child, which reads until the pipe is closed, becomes that of the program that replaces it.
			cmd := exec.CommandContext(t.Context(), "sh", "-c", "(read line <&3) & exec "+program)
			cmd.ExtraFiles = []*os.File{r}
			err = cmd.Start()
			r.Close()
			if err != nil {
				t.Fatal(err)
			}
			defer cmd.Process.Kill() // it has ended, where the test hasn't failed
			status := "/proc/" + strconv.Itoa(cmd.Process.Pid)
			waitFor(t, "the program to wait for signals", func() bool {
				exe, _ := os.Readlink(status + "/exe")
				text, _ := os.ReadFile(status + "/status")
				return exe == program && strings.Contains(string(text), "State:\tS")
			})
			children := func() string {
				pids, err := os.ReadFile(status + "/task/" + strconv.Itoa(cmd.Process.Pid) + "/children")
				if err != nil {
					t.Error(err)
				}
				return string(bytes.TrimSpace(pids))
			}
			if children() == "" {
				t.Error("the child has ended already")
			}
			w.Close()
			waitFor(t, "its child to be gone", func() bool { return children() == "" })
			// One that it doesn't wait for changes nothing.
			if err := cmd.Process.Signal(syscall.SIGCHLD); err != nil {
				t.Error(err)
			}
			if err := cmd.Process.Signal(signal); err != nil {
				t.Error(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("it ended with %v", err)
			}
		})
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// The program of another architecture can't be run; its file must be right all the same.
func TestPauseProgramFile(t *testing.T) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		t.Run(arch, func(t *testing.T) {
			program, err := pauseProgram(arch)
			if err != nil {
				t.Fatal(err)
			}
			f, err := elf.NewFile(bytes.NewReader(program))
			if err != nil {
				t.Fatal(err)
			}
			if f.Machine != machine || len(f.Progs) != 1 {
				t.Fatalf("machine %v, %d segments", f.Machine, len(f.Progs))
			}
			if p := f.Progs[0]; p.Vaddr+0xa0 != f.Entry || p.Filesz != uint64(len(program)) || p.Flags != elf.PF_R|elf.PF_X {
				t.Errorf("segment %+v, entry %#x", p.ProgHeader, f.Entry)
			}
			if len(program) > 512 {
				t.Errorf("it has %d bytes", len(program))
			}
		})
	}
	if _, err := pauseProgram("vax"); !errdefs.IsNotImplemented(err) {
		t.Errorf("vax: %v; want NotImplemented", err)
	}
}
