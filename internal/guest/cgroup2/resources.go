package cgroup2

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// setting is a value for a file of a cgroup.
type setting struct{ file, value string }

// settings translates OCI resources, which speak of cgroup v1, to the files of v2, in the order in which to write them.
func settings(r *specs.LinuxResources) ([]setting, error) {
	s := slices.Concat(cpuSettings(r.CPU), memorySettings(r.Memory))
	if r.Pids != nil && r.Pids.Limit != nil {
		s = append(s, setting{"pids.max", limit(*r.Pids.Limit)})
	}
	for _, h := range r.HugepageLimits {
		if h.Pagesize == "" || strings.Trim(h.Pagesize, "0123456789KMGB") != "" {
			return nil, fmt.Errorf("huge page size %q: %w", h.Pagesize, errdefs.ErrInvalidArgument)
		}
		s = append(s, setting{"hugetlb." + h.Pagesize + ".max", strconv.FormatUint(h.Limit, 10)})
	}
	files := make([]string, 0, len(r.Unified))
	for file := range r.Unified {
		// Only a controller's files: those of the cgroup itself move processes and open it to others.
		if strings.ContainsAny(file, "/\x00") || !strings.Contains(file, ".") || strings.HasPrefix(file, "cgroup.") || strings.HasPrefix(file, ".") {
			return nil, fmt.Errorf("unified resource %q: %w", file, errdefs.ErrInvalidArgument)
		}
		files = append(files, file)
	}
	slices.Sort(files)
	for _, file := range files {
		s = append(s, setting{file, r.Unified[file]})
	}
	return s, nil
}

func cpuSettings(r *specs.LinuxCPU) []setting {
	if r == nil {
		return nil
	}
	var s []setting
	if r.Shares != nil && *r.Shares != 0 {
		s = append(s, setting{"cpu.weight", strconv.FormatUint(weight(*r.Shares), 10)})
	}
	if r.Quota != nil || r.Period != nil {
		quota, period := "max", uint64(100_000)
		if r.Quota != nil && *r.Quota > 0 {
			quota = strconv.FormatInt(*r.Quota, 10)
		}
		if r.Period != nil && *r.Period != 0 {
			period = *r.Period
		}
		s = append(s, setting{"cpu.max", quota + " " + strconv.FormatUint(period, 10)})
	}
	if r.Burst != nil {
		s = append(s, setting{"cpu.max.burst", strconv.FormatUint(*r.Burst, 10)})
	}
	if r.Idle != nil {
		s = append(s, setting{"cpu.idle", strconv.FormatInt(*r.Idle, 10)})
	}
	if r.Cpus != "" {
		s = append(s, setting{"cpuset.cpus", r.Cpus})
	}
	if r.Mems != "" {
		s = append(s, setting{"cpuset.mems", r.Mems})
	}
	return s
}

func memorySettings(r *specs.LinuxMemory) []setting {
	if r == nil {
		return nil
	}
	var s []setting
	// In v1 the swap limit counts memory and swap together, in v2 swap alone.
	if r.Swap != nil && r.Limit != nil && *r.Swap > 0 && *r.Limit > 0 && *r.Swap >= *r.Limit {
		s = append(s, setting{"memory.swap.max", limit(*r.Swap - *r.Limit)})
	} else if r.Swap != nil && *r.Swap < 0 {
		s = append(s, setting{"memory.swap.max", "max"})
	}
	if r.Limit != nil && *r.Limit != 0 {
		s = append(s, setting{"memory.max", limit(*r.Limit)})
	}
	if r.Reservation != nil && *r.Reservation != 0 {
		s = append(s, setting{"memory.low", limit(*r.Reservation)})
	}
	return s
}

func limit(n int64) string {
	if n <= 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

// weight maps CPU shares (2 to 262144) to a weight (1 to 10000), as runc and crun do.
func weight(shares uint64) uint64 {
	shares = min(max(shares, 2), 262144)
	return 1 + (shares-2)*9999/262142
}

// Update changes a container's limits. A memory limit below what is in use, and can't be reclaimed, is refused: the kernel
// would kill the container.
func (c Group) Update(raw []byte) error {
	var r specs.LinuxResources
	if err := json.Unmarshal(raw, &r); err != nil {
		return fmt.Errorf("resources: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	list, err := settings(&r)
	if err != nil {
		return err
	}
	if r.Memory != nil && r.Memory.Limit != nil && *r.Memory.Limit > 0 {
		stats, err := c.Stats()
		if err != nil {
			return err
		}
		used := stats.MemoryUsage - min(stats.MemoryUsage, stats.MemoryInactiveFile+stats.MemoryActiveFile)
		if uint64(*r.Memory.Limit) < used {
			return fmt.Errorf("memory limit of %d bytes is below the %d in use: %w", *r.Memory.Limit, used, errdefs.ErrFailedPrecondition)
		}
	}
	for _, s := range list {
		if err := c.write(s.file, s.value); err != nil {
			// No swap in this kernel or machine: nothing to limit.
			if s.file == "memory.swap.max" && errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
				return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
			}
			return err
		}
	}
	return nil
}
