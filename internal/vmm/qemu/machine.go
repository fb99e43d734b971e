package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/vmm"
	"bulkhead.dev/bulkhead/internal/vmm/jail"
)

const (
	// quotedConsole is how much of the console the reason of a VM's end quotes.
	quotedConsole = 1 << 10
	// drainPatience is how long after QEMU's end its last words are waited for. Nobody else should hold the other ends.
	drainPatience = 5 * time.Second
)

// machine is a running VM.
type machine struct {
	id      string
	process *jail.Process
	qmp     *qmp
	console *tail
	output  *tail
	disks   disks

	ended chan struct{} // closed when everything is over; reason and cause are valid then

	mu       sync.Mutex
	stopping bool
	agent    net.Conn // until Dial has given it away
	reason   error    // why it ended, for its users
	cause    error    // the same without the VM's name
}

// newMachine looks after a process that has just been started, until its end.
func newMachine(id string, process *jail.Process, c *channels) *machine {
	vm := &machine{
		id:      id,
		process: process,
		qmp:     newQMP(c.qmp),
		console: newTail(consoleSize),
		output:  newTail(outputSize),
		ended:   make(chan struct{}),
		agent:   c.agent,
	}
	consoleDone, outputDone := vm.console.drain(c.console), vm.output.drain(c.output)
	go func() {
		<-process.Done()
		patience := time.NewTimer(drainPatience)
		defer patience.Stop()
		for _, done := range []<-chan struct{}{consoleDone, outputDone, vm.qmp.done} {
			select {
			case <-done:
			case <-patience.C:
				patience.Reset(0)
			}
		}
		c.console.Close()
		c.output.Close()
		vm.qmp.close()
		<-consoleDone
		<-outputDone
		vm.mu.Lock()
		if vm.agent != nil {
			vm.agent.Close()
			vm.agent = nil
		}
		if !vm.stopping {
			vm.cause = vm.explain(process.State())
			vm.reason = fmt.Errorf("VM %s: %w", id, vm.cause)
		}
		vm.mu.Unlock()
		close(vm.ended)
	}()
	return vm
}

// abandon ends a VM whose start didn't come to its end. What the VMM has said is worth more than the error.
func (vm *machine) abandon(err error) error {
	select {
	case <-vm.process.Done(): // by itself: its reason says why
	case <-time.After(100 * time.Millisecond):
		vm.mu.Lock()
		vm.stopping = true
		vm.mu.Unlock()
		_ = vm.process.Kill()
	}
	<-vm.ended
	if vm.cause != nil {
		return vm.cause
	}
	if said := lastLines(vm.output.String(), maxText); said != "" {
		return fmt.Errorf("%w; the VMM said %q", err, said)
	}
	return err
}

// explain says why QEMU has ended, from its exit status and its last words. Both come from a process that may be hostile.
func (vm *machine) explain(state *os.ProcessState) error {
	var what string
	quote, name := vm.output, "the VMM"
	switch reason := vm.qmp.shutdownReason(); {
	case state == nil:
		what = "the VMM has ended and another part of this program took its exit status"
	case state.Sys().(syscall.WaitStatus).Signaled():
		signal := state.Sys().(syscall.WaitStatus).Signal()
		what = fmt.Sprintf("the VMM was ended by signal %s", signal)
		if signal == syscall.SIGSYS {
			what += " (a forbidden system call)"
		}
	case state.ExitCode() == 0 && (reason == "guest-reset" || reason == "guest-panic"):
		what = "guest kernel panicked or rebooted"
		quote, name = vm.console, "the console"
	case state.ExitCode() == 0 && reason == "guest-shutdown":
		what = "guest powered itself off"
		quote, name = vm.console, "the console"
	default:
		what = fmt.Sprintf("the VMM ended with code %d", state.ExitCode())
	}
	if said := lastWords(quote.String()); said != "" {
		what += fmt.Sprintf("; %s said %q", name, said)
	}
	return fmt.Errorf("%s: %w", what, errdefs.ErrUnavailable)
}

// lastWords returns what is worth quoting: from a kernel's last panic on, if there is one, else the end.
func lastWords(text string) string {
	if at := strings.LastIndex(text, "Kernel panic - "); at >= 0 {
		return strings.TrimSpace(text[at:min(len(text), at+quotedConsole)])
	}
	return lastLines(text, quotedConsole)
}

// Dial implements [vmm.VM].
func (vm *machine) Dial(ctx context.Context) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("dial VM %s: %w", vm.id, err)
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	switch {
	case vm.over():
		return nil, vm.gone("dial")
	case vm.agent == nil:
		return nil, fmt.Errorf("dial VM %s: the agent's channel is taken: %w", vm.id, errdefs.ErrFailedPrecondition)
	}
	conn := vm.agent
	vm.agent = nil
	return conn, nil
}

// Wait implements [vmm.VM].
func (vm *machine) Wait(ctx context.Context) error {
	select {
	case <-vm.ended:
		return vm.reason
	case <-ctx.Done():
		return fmt.Errorf("wait for VM %s: %w", vm.id, ctx.Err())
	}
}

// Stop implements [vmm.VM].
func (vm *machine) Stop(ctx context.Context) error {
	vm.mu.Lock()
	if !vm.over() {
		vm.stopping = true
	}
	vm.mu.Unlock()
	if err := vm.process.Kill(); err != nil {
		return fmt.Errorf("stop VM %s: %w", vm.id, err)
	}
	select {
	case <-vm.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop VM %s: %w", vm.id, ctx.Err())
	}
}

// Stats implements [vmm.VM].
func (vm *machine) Stats(context.Context) (vmm.Stats, error) {
	if vm.over() {
		return vmm.Stats{}, vm.gone("read stats of")
	}
	pid, _ := vm.process.PID()
	private, err := privateBytes(pid)
	if vm.over() {
		return vmm.Stats{}, vm.gone("read stats of")
	}
	if err != nil {
		return vmm.Stats{}, fmt.Errorf("read stats of VM %s: %w", vm.id, err)
	}
	return vmm.Stats{PID: pid, PrivateBytes: private}, nil
}

// ConsoleTail implements [vmm.Console].
func (vm *machine) ConsoleTail() string { return vm.console.String() }

// PID implements [vmm.Process].
func (vm *machine) PID() (pid int, startTime uint64) { return vm.process.PID() }

// over says whether the process has ended.
func (vm *machine) over() bool {
	select {
	case <-vm.process.Done():
		return true
	default:
		return false
	}
}

func (vm *machine) gone(doing string) error {
	return fmt.Errorf("%s VM %s: it has ended: %w", doing, vm.id, errdefs.ErrUnavailable)
}

// privateBytes sums up the lines Private_Dirty and Private_Hugetlb of proc_pid_smaps_rollup(5). Clean pages are left out:
// they are the page cache of QEMU, its libraries and the guest's kernel, which other VMs share and the host can drop.
func privateBytes(pid int) (int64, error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var sum int64
	scanner := bufio.NewScanner(f)
	for scanner.Scan() {
		fields := strings.Fields(scanner.Text())
		if len(fields) != 3 || fields[0] != "Private_Dirty:" && fields[0] != "Private_Hugetlb:" {
			continue
		}
		kib, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", f.Name(), err)
		}
		sum += kib << 10
	}
	if err := scanner.Err(); err != nil && !errors.Is(err, syscall.ESRCH) {
		return 0, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return sum, nil
}
