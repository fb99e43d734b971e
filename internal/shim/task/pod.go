package task

import (
	"context"
	"log/slog"
	"os"
	"time"
)

// stopPatience bounds the end of a VM that nobody waits for with a limit of their own. The sandbox gives the guest 10 s
// of it.
const stopPatience = 30 * time.Second

// pod is the VM that a service serves.
type pod struct {
	id      string
	kind    podKind
	machine Machine
	pid     uint32 // of the VMM, or of this process where the VM has none
	log     *slog.Logger
	limits  limits
}

// podKind is the shape in which containerd uses the pod; the package comment lists them.
type podKind int

const (
	podOfPauser  podKind = iota // CRI with a sandbox container
	podOfSandbox                // CRI with sandboxer = "shim"
	podOfOne                    // a lone container's
)

func newPod(ctx context.Context, id string, kind podKind, machine Machine, log *slog.Logger) *pod {
	p := &pod{id: id, kind: kind, machine: machine, pid: uint32(os.Getpid()), log: log.With("sandbox", id), limits: defaultLimits()}
	info, err := machine.Info(ctx)
	if err != nil {
		p.log.Warn("the VM tells nothing of itself", "error", err)
		return p
	}
	if info.VM.PID > 0 {
		p.pid = uint32(info.VM.PID)
	}
	p.log.Info("VM started", "pid", p.pid, "kernel", info.KernelRelease, "agent", info.AgentVersion,
		"acceleration", info.Acceleration, "boot", info.BootTime, "vcpus", info.Size.VCPUs, "memory", info.Size.MemoryBytes)
	return p
}

// stop ends the VM, with a limit of its own.
func (p *pod) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	if err := p.machine.Stop(ctx); err != nil {
		p.log.Error("the VM is not stopped cleanly", "error", err)
	}
}
