package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pidsOf lists the processes of which one of the four user ids (real, effective, saved, file system) is uid.
func pidsOf(uid uint32) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		has, err := hasUID(pid, uid)
		if err != nil {
			return nil, err
		}
		if has {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// hasUID reads /proc/PID/status rather than who owns the directory, which is root for a process that isn't dumpable.
// A process that has gone has no uid, nor has a zombie: it runs no more.
func hasUID(pid int, uid uint32) (bool, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at process %d: %w", pid, err)
	}
	text := strconv.FormatUint(uint64(uid), 10)
	found := false
	for line := range bytes.Lines(status) {
		key, value, _ := strings.Cut(string(line), ":")
		fields := strings.Fields(value)
		switch key {
		case "State":
			if len(fields) > 0 && (fields[0] == "Z" || fields[0] == "X") {
				return false, nil
			}
		case "Uid":
			for _, f := range fields {
				found = found || f == text
			}
		}
	}
	return found, nil
}

// startTime is field 22 of /proc/PID/stat. The name of the program, field 2, may hold spaces and parentheses.
func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const index = 22 - 3 // the first field after the name is the third
	if len(fields) <= index {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields after the name", pid, len(fields))
	}
	return strconv.ParseUint(fields[index], 10, 64)
}

// kill ends the process for which is holds, and waits until it is gone. is is asked once the process can't be
// replaced by another of the same pid any more.
func kill(ctx context.Context, pid int, is func() (bool, error)) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if ok, err := is(); err != nil || !ok {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", pid, err)
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for the end of process %d: %w", pid, err)
		case ctx.Err() != nil:
			return fmt.Errorf("wait for the end of process %d: %w", pid, ctx.Err())
		}
	}
}

// killProcess ends the process that p names.
func killProcess(ctx context.Context, p process) error {
	return kill(ctx, p.PID, func() (bool, error) {
		started, err := startTime(p.PID)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			return false, nil
		}
		return err == nil && started == p.StartTime, err
	})
}

// killUser ends every process of uid, also those that it starts meanwhile.
func killUser(ctx context.Context, uid uint32) error {
	for {
		pids, err := pidsOf(uid)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := kill(ctx, pid, func() (bool, error) { return hasUID(pid, uid) }); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("end the processes of uid %d: %w", uid, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}
