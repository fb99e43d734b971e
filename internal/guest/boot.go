package guest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	modulesList = "/etc/modules.list"
	// channelModule is the last module that the channel to the host needs. What comes after it in the list is loaded while
	// the host already talks to the agent.
	channelModule = "virtio_console.ko"

	cgroupRoot = "/sys/fs/cgroup"
	// podCgroup is the parent of the containers' cgroups.
	podCgroup = "/bulkhead"
)

// mountPoint is a file system that Boot mounts.
type mountPoint struct {
	target, fstype, options string
	flags                   uintptr
}

func basicMounts() []mountPoint {
	const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return []mountPoint{
		{"/proc", "proc", "", safe},
		{"/sys", "sysfs", "", safe},
		{"/dev", "devtmpfs", "mode=0755", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"/dev/pts", "devpts", "gid=5,mode=620,ptmxmode=666", unix.MS_NOSUID | unix.MS_NOEXEC},
		{"/dev/shm", "tmpfs", "mode=1777,size=64m", safe},
		{"/dev/mqueue", "mqueue", "", safe},
		{"/run", "tmpfs", "mode=0755", unix.MS_NOSUID | unix.MS_NODEV},
		{"/tmp", "tmpfs", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
		{cgroupRoot, "cgroup2", "nsdelegate,memory_recursiveprot", safe},
	}
}

// Boot turns what the kernel hands to PID 1 into a machine that can hold containers. It returns as soon as the modules
// of the channel are loaded; the others are loaded by [LoadModules].
func Boot(log *slog.Logger) error {
	if err := leaveRootfs(); err != nil {
		return err
	}
	for _, m := range basicMounts() {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("making the mount point %s: %w", m.target, err)
		}
		if err := unix.Mount(m.fstype, m.target, m.fstype, m.flags, m.options); err != nil {
			return fmt.Errorf("mounting %s at %s: %w", m.fstype, m.target, err)
		}
	}
	for link, target := range map[string]string{
		"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0",
		"/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("making the link %s: %w", link, err)
		}
	}
	if err := sealRuntime(); err != nil {
		return err
	}
	if err := setUpCgroups(cgroupRoot); err != nil {
		return err
	}
	if err := setLimits(); err != nil {
		return err
	}
	channel, _, err := readModulesList(modulesList)
	if err != nil {
		return err
	}
	return loadModules(log, channel)
}

// LoadModules loads what Boot has left for later.
func LoadModules(log *slog.Logger) error {
	_, rest, err := readModulesList(modulesList)
	if err != nil {
		return err
	}
	if err := loadModules(log, rest); err != nil {
		return err
	}
	return reportSmallPages(pageReportingOrder)
}

const pageReportingOrder = "/sys/module/page_reporting/parameters/page_reporting_order"

// reportSmallPages makes the kernel tell the host of free memory in pieces of 16 KiB already, not of 2 MiB and more only: a
// small guest's free memory is scattered. A kernel that doesn't report free memory has no such parameter.
func reportSmallPages(parameter string) error {
	err := os.WriteFile(parameter, []byte("2"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("setting from which size on free memory is reported: %w", err)
	}
	return nil
}

// leaveRootfs makes the initial file system an ordinary mount, by a bind mount that is moved over it: the OCI runtime
// pivots containers out of their root, and the kernel's first mount, which has no parent, can't be pivoted.
func leaveRootfs() error {
	const dir = "/.root"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making %s: %w", dir, err)
	}
	if err := unix.Mount("/", dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding the root to %s: %w", dir, err)
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving %s over the root: %w", dir, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("changing the root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	return nil
}

// sealRuntime makes the runtime's directory a read-only mount. No process that runs in a container for a moment can
// write to the runtime's file then (CVE-2019-5736); crun sees that, and does not copy and start itself again.
func sealRuntime() error {
	dir := filepath.Dir(runtimePath)
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding %s: %w", dir, err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("making %s read-only: %w", dir, err)
	}
	return nil
}

// agentMemory is protected from reclaim, so that a pod that uses all memory doesn't make its agent slow.
const agentMemory = 24 << 20

// setUpCgroups moves the agent to a cgroup of its own and hands all controllers down to the containers' parent.
func setUpCgroups(root string) error {
	if err := enableControllers(root); err != nil {
		return err
	}
	agent, pod := filepath.Join(root, "agent"), filepath.Join(root, podCgroup)
	for _, dir := range []string{agent, pod} {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("making cgroup %s: %w", dir, err)
		}
	}
	if err := os.WriteFile(filepath.Join(agent, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("entering cgroup %s: %w", agent, err)
	}
	if err := os.WriteFile(filepath.Join(agent, "memory.min"), fmt.Append(nil, agentMemory), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("protecting the agent's memory: %w", err)
	}
	return enableControllers(pod)
}

func enableControllers(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("reading the controllers of cgroup %s: %w", dir, err)
	}
	var enable []string
	for c := range strings.FieldsSeq(string(b)) {
		enable = append(enable, "+"+c)
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(strings.Join(enable, " ")), 0); err != nil {
		return fmt.Errorf("enabling controllers %v in cgroup %s: %w", enable, dir, err)
	}
	return nil
}

// setLimits gives containers that set no limits of their own those that they would get on an ordinary node.
func setLimits() error {
	for resource, limit := range map[int]uint64{
		unix.RLIMIT_NOFILE: 1 << 20,
		unix.RLIMIT_NPROC:  unix.RLIM_INFINITY,
		unix.RLIMIT_CORE:   unix.RLIM_INFINITY,
	} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("setting resource limit %d: %w", resource, err)
		}
	}
	return nil
}

// readModulesList reads a list of modules in the order in which they are to be loaded, and divides it after the one
// that completes the channel.
func readModulesList(path string) (channel, rest []string, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the list of modules: %w", err)
	}
	return parseModulesList(b)
}

func parseModulesList(b []byte) (channel, rest []string, err error) {
	to := &channel
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if !filepath.IsAbs(line) {
			return nil, nil, fmt.Errorf("list of modules: %q is no absolute path", line)
		}
		*to = append(*to, line)
		if strings.ReplaceAll(filepath.Base(line), "-", "_") == channelModule {
			to = &rest
		}
	}
	return channel, rest, lines.Err()
}

// loadModules loads modules and deletes their files, which are memory. A module that doesn't fit this machine is no
// error: a driver of a device that the VM lacks, or a faster implementation that the processor can't do.
func loadModules(log *slog.Logger, paths []string) error {
	for _, path := range paths {
		if err := loadModule(path); err != nil {
			if !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP) {
				return fmt.Errorf("loading module %s: %w", path, err)
			}
			log.Debug("module doesn't fit this machine", "path", path, "error", err)
		}
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("removing a loaded module: %w", err)
		}
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}

// PowerOff ends the machine. It doesn't return.
func PowerOff() {
	unix.Sync()
	for {
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) // a machine that can't switch itself off
	}
}
