package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Containers leave empty directories where runtimes and clients have their defaults, outside of the node. The record says
// which of them did not exist before the node's first start; Stop removes those that are empty again.
//
//	DIR/node.json  {"version": 1, "absent": ["/run/containerd", ...]}
//
// Version history: 1, first version.
type record struct {
	Version int      `json:"version"`
	Absent  []string `json:"absent"`
}

// shared are directories outside of the node that its containers may make, the innermost first.
var shared = []string{fifos, "/run/containerd/s", "/run/containerd/runc", "/run/containerd", "/run/netns"}

// record writes the record, once in the life of the node's directory.
func (n *Node) record() error {
	path := n.path("node.json")
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	r := record{Version: 1}
	for _, dir := range shared {
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			r.Absent = append(r.Absent, dir)
		}
	}
	data, err := json.Marshal(r)
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

// removeShared removes what the record names, where it is empty.
func (n *Node) removeShared() error {
	data, err := os.ReadFile(n.path("node.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was ever started
	}
	if err != nil {
		return fmt.Errorf("read the node's record: %w", err)
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return fmt.Errorf("read the node's record %s: %w", n.path("node.json"), err)
	}
	for _, dir := range r.Absent {
		// Below them are directories for each of containerd's namespaces.
		if dir == "/run/containerd/runc" {
			below, err := filepath.Glob(dir + "/*")
			if err != nil {
				return err
			}
			for _, b := range below {
				_ = os.Remove(b)
			}
		}
		_ = os.Remove(dir) // not empty: somebody else uses it by now
	}
	return nil
}
