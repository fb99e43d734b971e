package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A kubelet sets these values of the whole kernel when it starts, and can't be told not to (setupKernelTunables in
// k8s.io/kubernetes/pkg/kubelet/cm; protectKernelDefaults only makes it end instead). The host gets its own back with the last
// node of a cluster.
func kubeletTunables() map[string]string {
	return map[string]string{
		"vm/overcommit_memory":      "1",
		"vm/panic_on_oom":           "0",
		"kernel/panic":              "10",
		"kernel/panic_on_oops":      "1",
		"kernel/keys/root_maxkeys":  "1000000",
		"kernel/keys/root_maxbytes": "25000000",
	}
}

// tunables is what the kernel's values were before the first node, and which nodes have changed them since. A reboot undoes
// both.
//
//	/run/bulkhead-tunables.json  {"version": 1, "before": {"kernel/panic": "0", …}, "nodes": ["/var/lib/bulkhead/…", …]}
//
// Version history: 1, first version.
type tunables struct {
	Version int               `json:"version"`
	Before  map[string]string `json:"before"`
	// Nodes are the directories of nodes whose kubelets may have run.
	Nodes []string `json:"nodes"`
}

// kernel is where the kernel's values and the record of them are.
type kernel struct {
	sysctls string // /proc/sys
	run     string // /run
}

func hostKernel() kernel { return kernel{sysctls: "/proc/sys", run: "/run"} }

func (k kernel) record() string { return filepath.Join(k.run, "bulkhead-tunables.json") }

// borrow records the values, if no other node has, before a kubelet changes them.
func (k kernel) borrow(node string) error {
	return k.locked(func(t *tunables) error {
		if len(t.Nodes) == 0 {
			t.Before = make(map[string]string)
			for name := range kubeletTunables() {
				value, err := os.ReadFile(filepath.Join(k.sysctls, name))
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if err != nil {
					return err
				}
				t.Before[name] = strings.TrimSpace(string(value))
			}
		}
		if !slices.Contains(t.Nodes, node) {
			t.Nodes = append(t.Nodes, node)
		}
		return nil
	})
}

// giveBack restores the values if no other node needs them, and calls last. A value that is no longer the kubelet's was changed by
// somebody else, and stays.
func (k kernel) giveBack(node string, last func()) error {
	return k.locked(func(t *tunables) error {
		t.Nodes = slices.DeleteFunc(t.Nodes, func(other string) bool {
			_, err := os.Lstat(other)
			return other == node || errors.Is(err, fs.ErrNotExist)
		})
		if len(t.Nodes) > 0 {
			return nil
		}
		last()
		var errs []error
		changed := kubeletTunables()
		for name, value := range t.Before {
			path := filepath.Join(k.sysctls, name)
			now, err := os.ReadFile(path)
			if err == nil && strings.TrimSpace(string(now)) == changed[name] && changed[name] != value {
				err = os.WriteFile(path, []byte(value), 0o644)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}

// locked changes the record, which is removed with its last node. The lock is the directory's, since the file comes and goes.
func (k kernel) locked(change func(*tunables) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("keep the kernel's values that a kubelet changes: %w", err)
		}
	}()
	dir, err := os.Open(k.run)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", k.run, err)
	}
	t := tunables{Version: 1}
	data, err := os.ReadFile(k.record())
	if err == nil {
		err = json.Unmarshal(data, &t)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read %s: %w", k.record(), err)
	}
	if err := change(&t); err != nil {
		return err
	}
	if len(t.Nodes) == 0 {
		if err := os.Remove(k.record()); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if data, err = json.Marshal(t); err != nil {
		return err
	}
	if err := os.WriteFile(k.record()+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(k.record()+".new", k.record())
}
