package sandbox

import (
	"strconv"
	"sync"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/volume"
)

// exports are the directories and files of the host that are served to the guest. Containers that have the same one share its
// export, and so see each other's writes at once: the guest caches files per export.
type exports struct {
	server *volume.Server

	mu    sync.Mutex
	byKey map[exportKey]*export
	next  int
}

type exportKey struct {
	source   string
	readOnly bool
}

type export struct {
	name string
	refs int
}

func newExports(server *volume.Server) *exports {
	return &exports{server: server, byKey: map[exportKey]*export{}}
}

// get serves a source, or counts one more use of it, and returns its name in the session.
func (e *exports) get(key exportKey) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.byKey[key]
	if x == nil {
		x = &export{name: "v" + strconv.Itoa(e.next)}
		if err := e.server.Export(x.name, key.source, key.readOnly); err != nil {
			return "", err
		}
		e.next++
		e.byKey[key] = x
	}
	x.refs++
	return x.name, nil
}

// put ends one use, and the export with its last.
func (e *exports) put(key exportKey) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.byKey[key]
	if x == nil {
		return nil
	}
	x.refs--
	if x.refs > 0 {
		return nil
	}
	delete(e.byKey, key)
	if err := e.server.Unexport(x.name); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}
