package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"bulkhead.dev/bulkhead/test/kit"
	"bulkhead.dev/bulkhead/test/leak"
)

// podMemory is the private memory, in MB, of the processes that a pod has beside its containers'.
type podMemory struct{ pod, shim float64 }

// idlePods is how many pods are idle at once while their memory is read. What several processes have of one file is
// private to none of them, so a single pod would be charged with programs and kernel that the next one shares.
const idlePods = 4

// idle starts pods that do nothing and reads what each of them costs, once that has come to rest: a guest gives back what
// its boot took some seconds after it.
func (b *bench) idle(ctx context.Context, runtime string) (memory []podMemory, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	progress("%s: %d idle pods", runtime, idlePods)
	var ids []string
	for range idlePods {
		c, err := b.node.Launch(ctx, kit.Spec{Runtime: runtime, Args: []string{"/bin/sleep", "1000000"}})
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, c.Remove(ctx)) }()
		ids = append(ids, c.ID())
	}
	var before float64
	for range 20 {
		time.Sleep(3 * time.Second)
		memory = nil
		var sum float64
		for _, id := range ids {
			m, err := hostMemory(id)
			if err != nil {
				return nil, err
			}
			memory = append(memory, m)
			sum += m.pod
		}
		if before > 0 && sum > before*0.995 {
			return memory, nil
		}
		before = sum
	}
	return memory, nil
}

// hostMemory reads the memory of a pod's shim and of its VMM, which has the guest's memory in it. What a container of runc
// uses itself is not counted.
func hostMemory(id string) (podMemory, error) {
	var m podMemory
	all, err := leak.Processes()
	if err != nil {
		return m, err
	}
	for _, p := range all {
		isShim := strings.HasPrefix(p.Name, "containerd-shim") && strings.Contains(p.Command, " "+id)
		isVMM := strings.Contains(p.Command, "guest="+id+",")
		if !isShim && !isVMM {
			continue
		}
		bytes, err := private(p.PID)
		if err != nil {
			return m, err
		}
		m.pod += bytes / 1e6
		if isShim {
			m.shim += bytes / 1e6
		}
	}
	if m.shim == 0 {
		return m, fmt.Errorf("no shim of container %s was found", id)
	}
	return m, nil
}

// private sums the memory that is one process's alone, in bytes, as the kernel's smaps_rollup has it. Pages in swap count too.
func private(pid int) (float64, error) {
	path := filepath.Join("/proc", fmt.Sprint(pid), "smaps_rollup")
	file, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
	}
	defer file.Close()
	var sum float64
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var name string
		var kib float64
		if _, err := fmt.Sscanf(lines.Text(), "%s %f", &name, &kib); err != nil {
			continue // the heading
		}
		switch name {
		case "Private_Clean:", "Private_Dirty:", "Private_Hugetlb:", "Swap:":
			sum += kib * 1024
		}
	}
	return sum, lines.Err()
}

// growth makes and removes sandboxes, and compares what there is before and after. A few cycles go ahead, in which pools and
// caches fill.
func (b *bench) growth(ctx context.Context, runtimes []string) ([]row, error) {
	rows := []row{
		{name: "Open files of containerd", limit: most(0)},
		{name: "Processes", limit: most(0)},
		{name: "Files in memory (/run, /dev/shm) and of the runtime", limit: most(0)},
		{name: "Mounts, links, namespaces, sockets, control groups", limit: most(0)},
	}
	for i := range rows {
		rows[i].name += fmt.Sprintf(": growth in %d cycles", b.cycles)
	}
	scope := leak.Scope{Dirs: []string{"/run", "/dev/shm", b.node.Path("bulkhead"), b.node.Path("state"), b.node.Path("fifo")}}
	for r, runtime := range runtimes {
		if err := b.cycle(ctx, runtime, 3); err != nil {
			return nil, err
		}
		things, err := leak.Take(scope)
		if err != nil {
			return nil, err
		}
		descriptors, err := b.descriptors()
		if err != nil {
			return nil, err
		}
		if err := b.cycle(ctx, runtime, b.cycles); err != nil {
			return nil, err
		}
		more, err := leak.Wait(things, scope)
		if err != nil {
			return nil, err
		}
		now, err := b.descriptors()
		if err != nil {
			return nil, err
		}
		var grown [3]float64
		for _, thing := range more {
			progress("left behind: %s", thing)
			switch {
			case strings.HasPrefix(thing, "process "):
				grown[0]++
			case strings.HasPrefix(thing, "file "):
				grown[1]++
			default:
				grown[2]++
			}
		}
		rows[0].values[r].add(float64(now - descriptors))
		for i, n := range grown {
			rows[i+1].values[r].add(n)
		}
	}
	return rows, nil
}

// descriptors counts the open files of containerd.
func (b *bench) descriptors() (int, error) {
	pid, err := b.node.PID()
	if err != nil {
		return 0, err
	}
	open, err := os.ReadDir(filepath.Join("/proc", fmt.Sprint(pid), "fd"))
	if err != nil {
		return 0, fmt.Errorf("count the open files of containerd: %w", err)
	}
	return len(open), nil
}

func (b *bench) cycle(ctx context.Context, runtime string, times int) error {
	for i := range times {
		if i%10 == 0 {
			progress("%s: cycle %d of %d", runtime, i, times)
		}
		result, err := b.node.Run(ctx, kit.Spec{Runtime: runtime, Args: []string{"/bin/true"}})
		if err != nil {
			return fmt.Errorf("cycle %d of %s: %w", i, runtime, err)
		}
		if result.Status != 0 {
			return fmt.Errorf("cycle %d of %s: status %d: %s", i, runtime, result.Status, result.Stderr)
		}
	}
	return nil
}
