package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/errdefs"
)

// recordName is the file in Spec.Dir that says what there is to undo. It is written before what it names is made, so it
// may name things that don't exist, and never lacks one that does.
//
//	{
//	  "version": 1,
//	  "id": "0d9f…",                                       Spec.ID
//	  "namespace": "k8s.io",                               Spec.Namespace
//	  "uid": 2000017,                                      the VMM's user; its lock is RunDir/uids/2000017
//	  "cgroup": "/kubepods/burstable/pod7c…/bulkhead-0d9f…",   as handed to internal/cgroup
//	  "netns": "/var/run/netns/cni-1",                     where taps and redirects were put
//	  "vmm": {"pid": 4711, "start_time": 99120},           field 22 of /proc/PID/stat tells it from a later process
//	  "scratch": ["/var/lib/containerd/…/fs/.bulkhead-scratch"]
//	}
//
// A member that does not apply is absent. Version history:
//
//	1  first version
const (
	recordName    = "sandbox.json"
	recordVersion = 1
	maxRecord     = 1 << 20
)

type record struct {
	Version   int      `json:"version"`
	ID        string   `json:"id"`
	Namespace string   `json:"namespace,omitempty"`
	UID       uint32   `json:"uid,omitempty"`
	Cgroup    string   `json:"cgroup,omitempty"`
	NetNS     string   `json:"netns,omitempty"`
	VMM       *process `json:"vmm,omitempty"`
	Scratch   []string `json:"scratch,omitempty"`
}

// process names a process of the host for ever.
type process struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"`
}

// recorder keeps a sandbox's record.
type recorder struct {
	dir string

	mu      sync.Mutex
	rec     record
	removed bool
}

// newRecorder begins a record. One that exists belongs to a sandbox that was not cleaned up: it is never overwritten.
func newRecorder(dir, id, namespace string) (*recorder, error) {
	if recorded, err := Recorded(dir); err != nil {
		return nil, err
	} else if recorded {
		return nil, fmt.Errorf("record %s: %w", filepath.Join(dir, recordName), errdefs.ErrAlreadyExists)
	}
	r := &recorder{dir: dir, rec: record{Version: recordVersion, ID: id, Namespace: namespace}}
	return r, r.update(func(*record) {})
}

// Recorded tells whether dir holds the record of a sandbox: whether there is, or may be, something for [Cleanup] to undo.
func Recorded(dir string) (bool, error) {
	_, err := os.Lstat(filepath.Join(dir, recordName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look for a sandbox's record: %w", err)
	}
	return true, nil
}

// update changes the record, on disk first: when that fails the change has not happened.
func (r *recorder) update(change func(*record)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.removed {
		return fmt.Errorf("record of sandbox %s was removed: %w", r.rec.ID, errdefs.ErrUnavailable)
	}
	next := r.rec
	next.Scratch = slices.Clone(r.rec.Scratch)
	change(&next)
	if err := writeRecord(r.dir, next); err != nil {
		return err
	}
	r.rec = next
	return nil
}

// remove ends the record: nothing can be recorded, nor made, any more.
func (r *recorder) remove() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := removeIfThere(filepath.Join(r.dir, recordName)); err != nil {
		return err
	}
	r.removed = true
	return nil
}

func (r *recorder) addScratch(path string) error {
	return r.update(func(rec *record) { rec.Scratch = append(rec.Scratch, path) })
}

func (r *recorder) dropScratch(path string) error {
	return r.update(func(rec *record) {
		rec.Scratch = slices.DeleteFunc(rec.Scratch, func(s string) bool { return s == path })
	})
}

// writeRecord replaces the record atomically. It isn't synced: it has to outlive this process, not the host, whose
// restart ends the VM and takes taps and cgroups with it.
func writeRecord(dir string, rec record) error {
	data, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return fmt.Errorf("encode record of sandbox %s: %w", rec.ID, err)
	}
	temporary := filepath.Join(dir, recordName+".new")
	if err := os.WriteFile(temporary, append(data, '\n'), 0o600); err != nil {
		return errors.Join(fmt.Errorf("write record of sandbox %s: %w", rec.ID, err), removeIfThere(temporary))
	}
	if err := os.Rename(temporary, filepath.Join(dir, recordName)); err != nil {
		return errors.Join(fmt.Errorf("replace record of sandbox %s: %w", rec.ID, err), removeIfThere(temporary))
	}
	return nil
}

// readRecord is ErrNotFound when there is none.
func readRecord(dir string) (record, error) {
	path := filepath.Join(dir, recordName)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, fmt.Errorf("record %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return record{}, fmt.Errorf("look at record: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxRecord {
		return record{}, fmt.Errorf("record %s is no regular file of at most 1 MiB: %w", path, errdefs.ErrDataLoss)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return record{}, fmt.Errorf("read record: %w", err)
	}
	return parseRecord(path, data)
}

func parseRecord(path string, data []byte) (record, error) {
	var rec record
	if err := json.Unmarshal(data, &rec); err != nil {
		return record{}, fmt.Errorf("record %s: %w: %w", path, err, errdefs.ErrDataLoss)
	}
	if rec.Version != recordVersion {
		return record{}, fmt.Errorf("record %s has version %d, this program reads %d: %w", path, rec.Version, recordVersion, errdefs.ErrFailedPrecondition)
	}
	for _, p := range rec.Scratch {
		if !filepath.IsAbs(p) {
			return record{}, fmt.Errorf("record %s names the scratch file %q, which is not absolute: %w", path, p, errdefs.ErrDataLoss)
		}
	}
	return rec, nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove: %w", err)
	}
	return nil
}
