package node

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// record is when the node was first started.
//
//	DIR/node.json  {"version": 2, "created": "2006-01-02T15:04:05Z"}
//
// Version history:
//
//	1  had a list of shared directories that didn't exist
//	2  directories are marked instead
type record struct {
	Version int       `json:"version"`
	Created time.Time `json:"created"`
}

// record writes the record, once in the life of the node's directory.
func (n *Node) record() error {
	path := n.path("node.json")
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	data, err := json.Marshal(record{Version: 2, Created: time.Now().UTC()})
	if err != nil {
		return fmt.Errorf("encode the node's record: %w", err)
	}
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		return fmt.Errorf("write the node's record: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write the node's record: %w", err)
	}
	return nil
}

// fifos is where clients put the FIFOs of a container's streams, whichever containerd runs it.
const fifos = "/run/containerd/fifo"

// shimSockets is where containerd's shims have their sockets if its configuration doesn't say.
const shimSockets = "/run/containerd/s"

// removeFIFOs removes those that "ctr run --detach" left for the tasks: it has no other moment to do so. They are known by
// the container's id in their name and by being younger than the node.
func (n *Node) removeFIFOs(tasks []string) error {
	record, err := os.Stat(n.path("node.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the node's record: %w", err)
	}
	var errs []error
	for _, id := range tasks {
		for _, stream := range []string{"stdin", "stdout", "stderr"} {
			found, _ := filepath.Glob(filepath.Join(fifos, "*", id+"-"+stream)) // containerd's ids have no pattern in them
			for _, fifo := range found {
				if info, err := os.Lstat(fifo); err != nil || info.ModTime().Before(record.ModTime()) {
					continue
				}
				errs = append(errs, os.Remove(fifo))
				_ = os.Remove(filepath.Dir(fifo)) // with the last of them
			}
		}
	}
	return errors.Join(errs...)
}

// strays are where sockets of the node's shims may be in the place where shims have them that nobody told otherwise. One whose
// containerd ends while it starts it may have read nothing of what that had to say, not even containerd's address, and ends soon, or is
// killed, without removing its socket. The names are those of containerd (pkg/shim, CreateSocketAddress); ids are unique on the host.
func (n *Node) strays() []string {
	var sockets []string
	for _, dir := range []string{"state", "root"} {
		tasks, _ := filepath.Glob(n.path(dir + "/io.containerd.runtime.v2.task/*/*")) // the pattern is right, which is the only error
		for _, task := range tasks {
			for _, containerd := range []string{"", n.Socket()} {
				name := sha256.Sum256([]byte(filepath.Join(containerd, filepath.Base(filepath.Dir(task)), filepath.Base(task))))
				sockets = append(sockets, filepath.Join(shimSockets, hex.EncodeToString(name[:])))
			}
		}
	}
	return sockets
}

// removeAll removes the files that are there.
func removeAll(files []string) error {
	var errs []error
	for _, file := range files {
		if err := os.Remove(file); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
