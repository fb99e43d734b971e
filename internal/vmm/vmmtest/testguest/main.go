//go:build linux

// Command testguest is the first and only process of the guests that the driver conformance suite boots. It loads the
// modules in /modules in the order of their names, and answers the requests of package testproto on the agent's channel.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/vmm/vmmtest/testproto"
)

const channelName = "bulkhead.agent"

func main() {
	err := run()
	fmt.Println("testguest:", err)
	select {} // an init that ends is a panic, and that one should be asked for
}

func run() error {
	start := uptime()
	for target, kind := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs"} {
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(kind, target, kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", target, err)
		}
	}
	start = max(start, uptime())
	if err := loadModules("/modules"); err != nil {
		return err
	}
	loaded := uptime()
	port, err := openPort(channelName)
	if err != nil {
		return err
	}
	notes := fmt.Sprintf("init started at %v, modules loaded at %v, channel open at %v", start, loaded, uptime())
	return testproto.Serve(port, machine{notes: notes})
}

func loadModules(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		f, err := os.Open(filepath.Join(dir, entry.Name()))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load module %s: %w", entry.Name(), err)
		}
	}
	return nil
}

// openPort finds a virtio-serial port by its name; the driver may still be asking the device for it.
func openPort(name string) (*os.File, error) {
	for range 10_000 {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, file := range names {
			data, err := os.ReadFile(file)
			if err == nil && strings.TrimSpace(string(data)) == name {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(file)), os.O_RDWR, 0)
			}
		}
		time.Sleep(time.Millisecond)
	}
	return nil, fmt.Errorf("no virtio-serial port %s", name)
}

type machine struct{ notes string }

func (m machine) Info() (testproto.Info, error) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return testproto.Info{}, err
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return testproto.Info{}, err
	}
	info := testproto.Info{
		CPUs:        runtime.NumCPU(),
		MemoryBytes: int64(si.Totalram) * int64(si.Unit),
		CommandLine: string(bytes.TrimSpace(cmdline)),
		Uptime:      uptime(),
		Notes:       m.notes,
	}
	devices, err := filepath.Glob("/sys/class/net/*/device")
	if err != nil {
		return testproto.Info{}, err
	}
	slices.Sort(devices)
	for _, device := range devices {
		dir := filepath.Dir(device)
		mac, err1 := os.ReadFile(dir + "/address")
		mtu, err2 := os.ReadFile(dir + "/mtu")
		n, err3 := strconv.Atoi(strings.TrimSpace(string(mtu)))
		if err := errors.Join(err1, err2, err3); err != nil {
			return testproto.Info{}, err
		}
		info.NICs = append(info.NICs, testproto.NIC{MAC: strings.TrimSpace(string(mac)), MTU: n})
	}
	return info, nil
}

func (machine) Disks() ([]testproto.Disk, error) {
	dirs, err := filepath.Glob("/sys/class/scsi_device/*:*:*:*/device/block/sd*")
	if err != nil {
		return nil, err
	}
	var disks []testproto.Disk
	for _, dir := range dirs {
		address := strings.Split(dir, "/")[4]
		lun, err1 := strconv.Atoi(address[strings.LastIndexByte(address, ':')+1:])
		size, err2 := os.ReadFile(dir + "/size")
		ro, err3 := os.ReadFile(dir + "/ro")
		if err := errors.Join(err1, err2, err3); err != nil {
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				continue // it was removed just now
			}
			return nil, err
		}
		sectors, err := strconv.ParseInt(strings.TrimSpace(string(size)), 10, 64)
		if err != nil {
			return nil, err
		}
		disks = append(disks, testproto.Disk{LUN: lun, Bytes: sectors * 512, ReadOnly: ro[0] == '1'})
	}
	slices.SortFunc(disks, func(a, b testproto.Disk) int { return a.LUN - b.LUN })
	return disks, nil
}

func openDisk(lun, flags int) (*os.File, error) {
	dirs, err := filepath.Glob(fmt.Sprintf("/sys/class/scsi_device/*:*:*:%d/device/block/sd*", lun))
	if err != nil {
		return nil, err
	}
	if len(dirs) != 1 {
		return nil, fmt.Errorf("disk %d: found %q", lun, dirs)
	}
	return os.OpenFile("/dev/"+filepath.Base(dirs[0]), flags, 0)
}

func (machine) Read(lun int, offset int64, length int) ([]byte, error) {
	f, err := openDisk(lun, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, length)
	n, err := f.ReadAt(data, offset)
	return data[:n], err
}

func (machine) Write(lun int, offset int64, data []byte) error {
	f, err := openDisk(lun, os.O_RDWR)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, offset)
	return errors.Join(err, f.Sync(), f.Close())
}

func (machine) Print(data []byte) error {
	console, err := os.OpenFile("/dev/console", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = console.Write(data)
	return errors.Join(err, console.Close())
}

func (machine) Fill(length int) error {
	data, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	for i := 0; i < len(data); i += 4096 {
		data[i] = 1
	}
	return unix.Munmap(data)
}

func (machine) Panic() {
	if err := os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0); err != nil {
		os.Exit(1) // the end of the first process is one too
	}
}

func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
