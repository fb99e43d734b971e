package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bulkhead.dev/bulkhead/internal/sandbox"
	"bulkhead.dev/bulkhead/internal/vmm/jail"
)

// exitPatience is how long a shim may take to end by itself. containerd calls "delete" also after it has asked the shim to
// shut down, and gives the verb 5 s in all.
const exitPatience = 2 * time.Second

// remove undoes what a dead shim has left, and tells containerd how the task ended. Where the shim has cleaned up itself there
// is nothing to do.
func remove(ctx context.Context, a arguments, stdout io.Writer) error {
	bundle := a.bundle
	if filepath.Base(bundle) != a.id {
		bundle = filepath.Join(filepath.Dir(bundle), a.id)
	}
	pid, err := endShim(ctx, bundle)
	if err != nil {
		return err
	}
	if err := errors.Join(cleanUp(ctx, bundle), removeSocket(readAddressOfShim(bundle, pid)), unmountRoot(bundle)); err != nil {
		return fmt.Errorf("clean up after the shim of %s: %w", a.id, err)
	}
	answer, err := proto.Marshal(&taskapi.DeleteResponse{
		Pid:        uint32(pid),
		ExitStatus: 128 + uint32(unix.SIGKILL),
		ExitedAt:   timestamppb.Now(),
	})
	if err != nil {
		return fmt.Errorf("answer containerd: %w", err)
	}
	if _, err := stdout.Write(answer); err != nil {
		return fmt.Errorf("answer containerd: %w", err)
	}
	return nil
}

// endShim makes sure that the shim started for a bundle is gone, and returns its pid; 0 where none was.
func endShim(ctx context.Context, bundle string) (int, error) {
	var r shimRecord
	if found, err := readRecord(bundle, shimFile, &r); err != nil || !found {
		return 0, err
	}
	waitExit(r)
	return r.PID, jail.Kill(ctx, r.PID, r.StartTime)
}

// waitExit gives the shim the time to end by itself.
func waitExit(r shimRecord) {
	fd, err := unix.PidfdOpen(r.PID, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if now, err := jail.StartTime(r.PID); err != nil || now != r.StartTime {
		return
	}
	deadline := time.Now().Add(exitPatience)
	for left := exitPatience; left > 0; left = time.Until(deadline) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n > 0 || (err != nil && !errors.Is(err, unix.EINTR)) {
			return
		}
	}
}

// cleanUp undoes what the sandbox has made on the host.
func cleanUp(ctx context.Context, bundle string) error {
	var r sandboxRecord
	if found, err := readRecord(bundle, sandboxFile, &r); err != nil || !found {
		return err
	}
	if err := sandbox.Cleanup(ctx, r.Config, r.Dir); err != nil {
		return err
	}
	if err := os.RemoveAll(r.Dir); err != nil {
		return fmt.Errorf("remove the sandbox's directory: %w", err)
	}
	return nil
}

// readAddressOfShim returns the address in a bundle whose own shim it was. A container's bundle may name its sandbox's, which
// lives on.
func readAddressOfShim(bundle string, pid int) string {
	if pid == 0 {
		return ""
	}
	return readAddress(bundle)
}

// unmountRoot takes away what another runtime, or an older version, may have mounted on the bundle's root. We mount nothing.
func unmountRoot(bundle string) error {
	root := filepath.Join(bundle, "rootfs")
	for {
		err := unix.Unmount(root, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EPERM) && os.Getuid() != 0:
			return nil
		default:
			return fmt.Errorf("unmount %s: %w", root, err)
		}
	}
}
