package volume

import (
	"sync"

	"golang.org/x/sys/unix"
)

// rootID is the number of the session's root directory, which is no node.
const rootID = 1

// export is one directory or file that is served.
type export struct {
	name     string
	readonly bool
	fd       int // O_PATH
	stat     unix.Stat_t
	dead     bool // guarded by table.mu
}

// descriptor is an open file that several requests may use at once. It is closed when its owner has closed it and no
// request uses it: otherwise a request could hit another file that got the same number.
type descriptor struct {
	fd     int
	users  int
	closed bool
}

// node is an inode that the guest knows.
type node struct {
	descriptor // O_PATH
	id         uint64
	export     *export
	key        nodeKey
	mode       uint32 // type only: it never changes
	lookups    uint64 // how often the guest has to forget it
}

type nodeKey struct {
	export   *export
	dev, ino uint64
}

func (n *node) kind() uint32 { return n.mode & unix.S_IFMT }
func (n *node) isDir() bool  { return n.kind() == unix.S_IFDIR }
func (n *node) isFile() bool { return n.kind() == unix.S_IFREG }

// handle is a file or directory that the guest has open.
type handle struct {
	descriptor
	export *export
	node   uint64
	dir    bool
	write  bool
	mu     sync.Mutex // the position of a directory
}

// table holds what a guest knows and has open. Descriptors stay open while they are in use, also when what they belong
// to goes meanwhile.
type table struct {
	maxNodes, maxHandles int

	mu      sync.Mutex
	exports map[string]*export
	nodes   map[uint64]*node
	byKey   map[nodeKey]*node
	handles map[uint64]*handle
	roots   map[uint64]*handle // open handles of the session's root directory, which hold no descriptor
	devices map[uint64]uint64
	nextID  uint64
	closed  bool
}

func newTable(maxNodes, maxHandles int) *table {
	return &table{
		maxNodes: maxNodes, maxHandles: maxHandles,
		exports: map[string]*export{}, nodes: map[uint64]*node{}, byKey: map[nodeKey]*node{},
		handles: map[uint64]*handle{}, roots: map[uint64]*handle{}, devices: map[uint64]uint64{},
		nextID: rootID,
	}
}

// release gives back a use of a descriptor, or closes it for its owner.
func (t *table) release(d *descriptor, close bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.releaseLocked(d, close)
}

func (t *table) releaseLocked(d *descriptor, close bool) {
	if close {
		if d.closed {
			return
		}
		d.closed = true
	} else {
		d.users--
	}
	if d.closed && d.users == 0 {
		unix.Close(d.fd)
		d.fd = -1
	}
}

// node returns a node for use; the caller calls put.
func (t *table) node(id uint64) (*node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[id]
	if n == nil || n.closed || n.export.dead {
		return nil, unix.ESTALE
	}
	n.users++
	return n, nil
}

func (t *table) put(n *node) { t.release(&n.descriptor, false) }

// handle returns an open handle for use; the caller calls putHandle.
func (t *table) handle(id uint64, dir bool) (*handle, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.handles[id]
	if h == nil || h.dir != dir {
		return nil, unix.EBADF
	}
	if h.closed || h.export.dead {
		return nil, unix.ESTALE
	}
	h.users++
	return h, nil
}

func (t *table) putHandle(h *handle) { t.release(&h.descriptor, false) }

// enter adds what fd, an O_PATH descriptor that it takes over, leads to, or finds it again, and counts one lookup.
// The node is for use: the caller calls put.
func (t *table) enter(e *export, fd int, st *unix.Stat_t) (*node, error) {
	key := nodeKey{e, uint64(st.Dev), st.Ino}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || e.dead {
		unix.Close(fd)
		return nil, unix.ESTALE
	}
	if n := t.byKey[key]; n != nil {
		unix.Close(fd)
		n.lookups++
		n.users++
		return n, nil
	}
	if len(t.nodes) >= t.maxNodes {
		unix.Close(fd)
		return nil, unix.ENFILE
	}
	t.nextID++
	n := &node{descriptor: descriptor{fd: fd, users: 1}, id: t.nextID, export: e, key: key, mode: st.Mode & unix.S_IFMT, lookups: 1}
	t.nodes[n.id] = n
	t.byKey[key] = n
	return n, nil
}

// forget takes back lookups.
func (t *table) forget(id, lookups uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[id]
	if n == nil {
		return
	}
	if n.lookups > lookups {
		n.lookups -= lookups
		return
	}
	delete(t.nodes, id)
	if t.byKey[n.key] == n {
		delete(t.byKey, n.key)
	}
	t.releaseLocked(&n.descriptor, true)
}

// open adds a handle and takes its descriptor over.
func (t *table) open(h *handle) (uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var err error
	switch {
	case t.closed || h.export != nil && h.export.dead:
		err = unix.ESTALE
	case len(t.handles)+len(t.roots) >= t.maxHandles:
		err = unix.ENFILE
	}
	if err != nil {
		if h.export != nil {
			unix.Close(h.fd)
		}
		return 0, err
	}
	t.nextID++
	if h.export == nil {
		t.roots[t.nextID] = h
	} else {
		t.handles[t.nextID] = h
	}
	return t.nextID, nil
}

// closeHandle forgets a handle.
func (t *table) closeHandle(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.roots, id)
	if h := t.handles[id]; h != nil {
		delete(t.handles, id)
		t.releaseLocked(&h.descriptor, true)
	}
}

// drop ends an export: everything of it that is open on the host is closed, so that the host may unmount it even when
// the guest doesn't forget it.
func (t *table) drop(e *export) {
	e.dead = true
	delete(t.exports, e.name)
	for key, n := range t.byKey {
		if key.export == e {
			delete(t.byKey, key)
			t.releaseLocked(&n.descriptor, true)
		}
	}
	for _, h := range t.handles {
		if h.export == e {
			t.releaseLocked(&h.descriptor, true)
		}
	}
	unix.Close(e.fd)
}

// close ends all exports.
func (t *table) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for _, e := range t.exports {
		t.drop(e)
	}
}

// inode is the number that the guest's programs see. Exports may lie on several host file systems that use the same
// numbers; programs take equal numbers for hard links.
func (t *table) inode(dev, ino uint64) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	index, ok := t.devices[dev]
	if !ok {
		if index = uint64(len(t.devices)); index < 1<<15 {
			t.devices[dev] = index
		}
	}
	return ino ^ index<<48
}
