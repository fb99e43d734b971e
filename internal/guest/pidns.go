package guest

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/guest/reaper"
)

// holderRole is args[0] of the process that holds the pod's shared pid namespace: this program again.
const holderRole = "bulkhead-pause"

// pidNamespace is the one pid namespace that containers of the pod share when they are asked to. Without a pause container
// there has to be a process that is its first, outlives every container, and reaps what they leave: a namespace ends with
// its first process. The agent can't be it, for then containers would see the agent.
type pidNamespace struct {
	reaper *reaper.Reaper

	mu     sync.Mutex
	holder *reaper.Child // guarded by mu; nil before it is first needed
}

// path returns where the namespace can be joined, and makes it when it is first asked for.
func (n *pidNamespace) path() (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.holder == nil || ended(n.holder) {
		holder, err := n.reaper.StartIsolated("/proc/self/exe", []string{holderRole}, unix.CLONE_NEWPID)
		if err != nil {
			return "", fmt.Errorf("making the pod's pid namespace: %w", err)
		}
		n.holder = holder
		if err := os.WriteFile("/proc/"+strconv.Itoa(holder.PID())+"/oom_score_adj", []byte("-1000"), 0); err != nil {
			return "", fmt.Errorf("making the pod's pid namespace: %w", err)
		}
	}
	return "/proc/" + strconv.Itoa(n.holder.PID()) + "/ns/pid", nil
}

func ended(c *reaper.Child) bool {
	select {
	case <-c.Done():
		return true
	default:
		return false
	}
}

// Pause returns at once unless this process is the holder of a pid namespace, which it then is for ever. Containers can
// see it: it ignores their signals, and keeps the capabilities it was started with, since a process with fewer could be looked into.
func Pause() {
	if len(os.Args) == 0 || os.Args[0] != holderRole {
		return
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, holderRole, err)
		os.Exit(1)
	}
	signal.Ignore() // every one that can be; with SIGCHLD, the kernel reaps what ends here
	for {
		_ = unix.Pause()
	}
}
