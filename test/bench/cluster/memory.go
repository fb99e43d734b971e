package main

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// usage is the memory of one process, in MB.
type usage struct {
	name                 string
	private, shared, all int64
}

// usages are those of a cluster's processes.
type usages []usage

// clusterMemory reads the memory of all processes of the programs in a directory.
func clusterMemory(bin string) (usages, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found usages
	for _, e := range entries {
		exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if err != nil || filepath.Dir(exe) != bin {
			continue // no process, or none of the cluster
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue
		}
		name := filepath.Base(exe)
		if args := strings.Split(string(line), "\x00"); (name == "bulkhead-kube" || name == "bulkhead") && len(args) > 1 {
			name = args[1]
		}
		file, err := os.Open(filepath.Join("/proc", e.Name(), "smaps_rollup"))
		if err != nil {
			return nil, err
		}
		sizes := map[string]int64{}
		for scanner := bufio.NewScanner(file); scanner.Scan(); {
			var key string
			var kib int64
			if _, err := fmt.Sscanf(scanner.Text(), "%s %d kB", &key, &kib); err == nil {
				sizes[key] = kib << 10
			}
		}
		file.Close()
		const mb = 1000 * 1000
		found = append(found, usage{
			name: name, private: (sizes["Private_Clean:"] + sizes["Private_Dirty:"]) / mb, shared: sizes["Pss:"] / mb, all: sizes["Rss:"] / mb,
		})
	}
	return found, nil
}

func (u usages) sum() (pss, rss int64) {
	for _, p := range u {
		pss, rss = pss+p.shared, rss+p.all
	}
	return pss, rss
}

func (u usages) table() string {
	var b strings.Builder
	b.WriteString("| process | private MB | PSS MB | RSS MB |\n|---|---:|---:|---:|\n")
	for _, p := range u {
		fmt.Fprintf(&b, "| %s | %d | %d | %d |\n", p.name, p.private, p.shared, p.all)
	}
	return b.String()
}

// mostFilled is the largest limit, in MiB, of a pod that is filled: under emulation it takes minutes to fill more.
const mostFilled = 1024

// overheads measures what sandboxed pods take beyond what their containers use.
func (b bench) overheads() (string, error) {
	var out strings.Builder
	out.WriteString("| class | memory limit | overhead of the class, MiB | idle pod, MiB | 80 % of the limit in use: MiB beyond it |\n|---|---|---:|---:|---:|\n")
	for _, class := range []string{"bulkhead", "kata-mshv-vm-isolation"} {
		for _, limit := range []int64{0, 64, 256, 1024, 4096} {
			progress("overhead of %s with %d MiB", class, limit)
			idle, full, declared, err := b.overhead(class, limit)
			if err != nil {
				return "", err
			}
			text, used := "none", "–"
			if limit > 0 {
				text = fmt.Sprintf("%dMi", limit)
			}
			if full > 0 {
				used = strconv.FormatInt(full>>20, 10)
			}
			fmt.Fprintf(&out, "| %s | %s | %s | %d | %s |\n", class, text, declared, idle>>20, used)
		}
	}
	return out.String(), nil
}

// overhead starts one pod that waits, and with a limit in MiB another one that fills 80 % of it.
func (b bench) overhead(class string, limit int64) (idle, full int64, declared string, err error) {
	text := ""
	if limit > 0 {
		text = fmt.Sprintf("%dMi", limit)
	}
	if declared, err = b.kubectl("", "get", "runtimeclass", class, "-o", "jsonpath={.overhead.podFixed.memory}"); err != nil {
		return 0, 0, "", err
	}
	declared = strings.TrimSuffix(declared, "Mi")
	if idle, err = b.use(class, text, "sleep 100000", 0); err != nil || limit == 0 || limit > mostFilled {
		return idle, 0, declared, err
	}
	bytes := limit << 20 * 8 / 10
	full, err = b.use(class, text, fmt.Sprintf("head -c %[1]d /dev/zero | tail -c %[1]d | sleep 100000", bytes), bytes)
	return idle, full - bytes, declared, err
}

// use starts a pod and returns what its cgroup has in use once that is at least so much and has come to rest.
func (b bench) use(class, limit, command string, least int64) (int64, error) {
	if err := b.pod("pod", class, limit, command); err != nil {
		return 0, err
	}
	uid, err := b.kubectl("", "get", "pod", "pod", "-o", "jsonpath={.metadata.uid}")
	if err != nil {
		return 0, err
	}
	var last int64
	for range 60 {
		time.Sleep(5 * time.Second)
		now, err := podMemory(uid)
		if err != nil {
			return 0, err
		}
		if now >= least && last > 0 && max(now-last, last-now) < last/200 {
			last = now
			break
		}
		last = now
	}
	if restarts, err := b.kubectl("", "get", "pod", "pod", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); err != nil || restarts != "0" {
		return 0, fmt.Errorf("the pod was started %s times again: %w", restarts, err)
	}
	_, err = b.kubectl("", "delete", "pod", "pod", "--grace-period=1")
	return last, err
}

// podMemory is the working set of a pod, in bytes, as the kubelet reckons it.
func podMemory(uid string) (int64, error) {
	var dir string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && strings.Contains(entry.Name(), uid) {
			if _, err := os.Stat(filepath.Join(path, "memory.stat")); err == nil {
				dir = path
				return fs.SkipAll
			}
		}
		return nil // groups come and go
	})
	if err != nil || dir == "" {
		return 0, fmt.Errorf("find the memory cgroup of pod %s: %w", uid, err)
	}
	usage, inactive := "memory.usage_in_bytes", "total_inactive_file"
	data, err := os.ReadFile(filepath.Join(dir, usage))
	if err != nil {
		inactive = "inactive_file"
		if data, err = os.ReadFile(filepath.Join(dir, "memory.current")); err != nil {
			return 0, err
		}
	}
	used, err := strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
	if err != nil {
		return 0, err
	}
	stat, err := os.ReadFile(filepath.Join(dir, "memory.stat"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(stat)) {
		var value int64
		if key, rest, ok := strings.Cut(strings.TrimSpace(line), " "); ok && key == inactive {
			if value, err = strconv.ParseInt(rest, 10, 64); err != nil {
				return 0, err
			}
			used -= value
		}
	}
	return used, nil
}
