package cgroup2

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Watcher learns of kills for want of memory from changes of the cgroups' memory.events.
type Watcher struct {
	f      *os.File
	report func(container string)

	mu      sync.Mutex
	watched map[int32]*Watch // guarded by mu; by watch descriptor
}

// Watch is one container's.
type Watch struct {
	container string
	cgroup    Group
	wd        int32

	mu    sync.Mutex
	kills uint64 // guarded by mu; what was reported
}

// NewWatcher returns a Watcher at work. It calls report, in a goroutine of its own or in that of Check, once for each time
// that it sees the number of kills in a container risen.
func NewWatcher(report func(container string)) (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watching for OOM kills: %w", err)
	}
	w := &Watcher{f: os.NewFile(uintptr(fd), "inotify"), report: report, watched: make(map[int32]*Watch)}
	go w.run()
	return w, nil
}

func (w *Watcher) run() {
	buf := make([]byte, 4096)
	for {
		n, err := w.f.Read(buf)
		if err != nil {
			return
		}
		// Events of a file have no name, but let the length be what it is.
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			wd, length := int32(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[12:])
			b = b[min(len(b), unix.SizeofInotifyEvent+int(length)):]
			w.mu.Lock()
			watch := w.watched[wd]
			w.mu.Unlock()
			if watch != nil {
				w.Check(watch)
			}
		}
	}
}

// Add begins to watch a container's cgroup.
func (w *Watcher) Add(container string, c Group) (*Watch, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	raw, err := w.f.SyscallConn()
	if err != nil {
		return nil, err
	}
	watch := &Watch{container: container, cgroup: c}
	var addErr error
	err = raw.Control(func(fd uintptr) {
		var wd int
		wd, addErr = unix.InotifyAddWatch(int(fd), filepath.Join(string(c), "memory.events"), unix.IN_MODIFY)
		watch.wd = int32(wd)
	})
	if err == nil {
		err = addErr
	}
	if err != nil {
		return nil, fmt.Errorf("watching for OOM kills in container %q: %w", container, err)
	}
	w.watched[watch.wd] = watch
	return watch, nil
}

// Remove ends a watch.
func (w *Watcher) Remove(watch *Watch) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.watched, watch.wd)
	if raw, err := w.f.SyscallConn(); err == nil {
		// It is gone already when the cgroup is.
		_ = raw.Control(func(fd uintptr) { _, _ = unix.InotifyRmWatch(int(fd), uint32(watch.wd)) })
	}
}

// Check reports an OOM kill if there were any since the last check.
func (w *Watcher) Check(watch *Watch) {
	b, err := watch.cgroup.read("memory.events")
	if err != nil {
		return // the cgroup is being removed
	}
	kills := parseFlat(b)["oom_kill"]
	watch.mu.Lock()
	more := kills > watch.kills
	watch.kills = max(kills, watch.kills)
	watch.mu.Unlock()
	if more {
		w.report(watch.container)
	}
}
