package task

import (
	"context"
	"fmt"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	guestapi "bulkhead.dev/bulkhead/api/guest"
)

// metrics turns the guest's figures into what containerd has for cgroup v2. The guest always has that, the host needn't.
func metrics(s *guestapi.StatsResponse) *stats.Metrics {
	return &stats.Metrics{
		Pids: &stats.PidsStat{Current: s.GetPidsCurrent(), Limit: s.GetPidsLimit()},
		CPU: &stats.CPUStat{
			UsageUsec:     s.GetCpuUsageUsec(),
			UserUsec:      s.GetCpuUserUsec(),
			SystemUsec:    s.GetCpuSystemUsec(),
			NrPeriods:     s.GetCpuNrPeriods(),
			NrThrottled:   s.GetCpuNrThrottled(),
			ThrottledUsec: s.GetCpuThrottledUsec(),
		},
		Memory: &stats.MemoryStat{
			Usage:        s.GetMemoryUsage(),
			UsageLimit:   s.GetMemoryLimit(),
			MaxUsage:     s.GetMemoryPeak(),
			Anon:         s.GetMemoryAnon(),
			File:         s.GetMemoryFile(),
			InactiveFile: s.GetMemoryInactiveFile(),
			ActiveFile:   s.GetMemoryActiveFile(),
			Pgfault:      s.GetMemoryPgfault(),
			Pgmajfault:   s.GetMemoryPgmajfault(),
			KernelStack:  s.GetMemoryKernelStack(),
			Slab:         s.GetMemorySlab(),
			SwapUsage:    s.GetSwapUsage(),
			SwapLimit:    s.GetSwapLimit(),
		},
		MemoryEvents: &stats.MemoryEvents{Oom: s.GetOomEvents(), OomKill: s.GetOomKills()},
		// One entry: the container's disks are this container's alone, and have no numbers that mean something here.
		Io: &stats.IOStat{Usage: []*stats.IOEntry{{
			Rbytes: s.GetIoReadBytes(), Wbytes: s.GetIoWriteBytes(), Rios: s.GetIoReads(), Wios: s.GetIoWrites(),
		}}},
	}
}

// sum adds up the figures of a pod's containers. The limits are the pod's: there is none beside the VM's memory.
func sum(all []*guestapi.StatsResponse, memory int64) *guestapi.StatsResponse {
	total := &guestapi.StatsResponse{MemoryLimit: uint64(max(memory, 0))}
	for _, s := range all {
		total.CpuUsageUsec += s.GetCpuUsageUsec()
		total.CpuUserUsec += s.GetCpuUserUsec()
		total.CpuSystemUsec += s.GetCpuSystemUsec()
		total.CpuNrPeriods += s.GetCpuNrPeriods()
		total.CpuNrThrottled += s.GetCpuNrThrottled()
		total.CpuThrottledUsec += s.GetCpuThrottledUsec()
		total.MemoryUsage += s.GetMemoryUsage()
		total.MemoryAnon += s.GetMemoryAnon()
		total.MemoryFile += s.GetMemoryFile()
		total.MemoryInactiveFile += s.GetMemoryInactiveFile()
		total.MemoryActiveFile += s.GetMemoryActiveFile()
		total.MemoryPgfault += s.GetMemoryPgfault()
		total.MemoryPgmajfault += s.GetMemoryPgmajfault()
		total.MemoryKernelStack += s.GetMemoryKernelStack()
		total.MemorySlab += s.GetMemorySlab()
		total.SwapUsage += s.GetSwapUsage()
		total.OomEvents += s.GetOomEvents()
		total.OomKills += s.GetOomKills()
		total.PidsCurrent += s.GetPidsCurrent()
		total.IoReadBytes += s.GetIoReadBytes()
		total.IoWriteBytes += s.GetIoWriteBytes()
		total.IoReads += s.GetIoReads()
		total.IoWrites += s.GetIoWrites()
	}
	return total
}

// containerMetrics reads the figures of a container, or for the sandbox container of the whole pod.
func (s *Service) containerMetrics(ctx context.Context, c *container) (*anypb.Any, error) {
	if c.kind == pauser {
		return s.podMetrics(ctx, c.pod)
	}
	figures, err := c.pod.machine.Stats(ctx, c.id)
	if err != nil {
		return nil, err
	}
	return packMetrics(figures)
}

func (s *Service) podMetrics(ctx context.Context, p *pod) (*anypb.Any, error) {
	var all []*guestapi.StatsResponse
	for _, c := range s.all() {
		if c.kind == pauser {
			continue
		}
		figures, err := p.machine.Stats(ctx, c.id)
		if err != nil {
			continue // one that ends just now; a VM that has ended is told by Info
		}
		all = append(all, figures)
	}
	info, err := p.machine.Info(ctx)
	if err != nil {
		return nil, err
	}
	return packMetrics(sum(all, info.Size.MemoryBytes))
}

func packMetrics(s *guestapi.StatsResponse) (*anypb.Any, error) { return pack(metrics(s)) }

// pack wraps a message as containerd's typeurl does: without a host in the URL.
func pack(message proto.Message) (*anypb.Any, error) {
	value, err := proto.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("marshal %T: %w", message, err)
	}
	return &anypb.Any{TypeUrl: string(message.ProtoReflect().Descriptor().FullName()), Value: value}, nil
}
