package cluster

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"bulkhead.dev/bulkhead/internal/cluster/spec"
)

// manager is one of a state directory with clusters, by name and phase; an empty phase is a record that can't be read.
func manager(t *testing.T, clusters map[string]spec.Phase) *Manager {
	t.Helper()
	m, err := Open(Options{StateDir: t.TempDir(), BinDir: t.TempDir(), GuestDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for name, phase := range clusters {
		dir := m.place(name).dir
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if phase == "" {
			if err := os.WriteFile(filepath.Join(dir, spec.File), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
			continue
		}
		c := spec.Cluster{
			Name: name, Phase: phase, Created: time.Now(), Config: spec.Default(), Subnet: 3,
			Pools: []spec.Pool{{Name: "nodepool1", Count: 1, Runtime: spec.OCI}},
		}
		if _, err := c.AllocateNode("nodepool1"); err != nil {
			t.Fatal(err)
		}
		if err := c.Write(dir); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestOpenUsable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changing a cluster needs root, and says so")
	}
	m := manager(t, map[string]spec.Phase{
		"running": spec.Running, "stopped": spec.Stopped, "creating": spec.Creating, "deleting": spec.Deleting, "broken": "",
	})
	for _, c := range []struct {
		name, says string
		class      error
	}{
		{"running", "", nil},
		{"stopped", "", nil},
		{"creating", "bulkhead cluster delete creating", errdefs.ErrFailedPrecondition},
		{"deleting", "bulkhead cluster delete deleting", errdefs.ErrFailedPrecondition},
		{"broken", spec.File, nil},
		{"nothing", "there is broken, creating, deleting, running, stopped", errdefs.ErrNotFound},
		{"Wrong", "upper-case", errdefs.ErrInvalidArgument},
		{"../running", "character", errdefs.ErrInvalidArgument},
	} {
		opened, err := m.openUsable(c.name)
		if err == nil {
			opened.unlock()
		}
		if c.says == "" && err == nil {
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.says) || c.class != nil && !errors.Is(err, c.class) {
			t.Errorf("%s: got error %v, want one that says %q and is %v", c.name, err, c.says, c.class)
		}
	}
}

func TestLock(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changing a cluster needs root, and says so")
	}
	m := manager(t, map[string]spec.Phase{"one": spec.Running, "two": spec.Running})
	first, err := m.open("one")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.open("one"); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("opened twice at once: %v", err)
	}
	other, err := m.open("two")
	if err != nil {
		t.Fatalf("another cluster is locked too: %v", err)
	}
	other.unlock()
	first.unlock()
	again, err := m.open("one")
	if err != nil {
		t.Fatalf("still locked: %v", err)
	}
	// With the clusters, all that was made for locking goes.
	for _, name := range []string{"one", "two"} {
		if err := os.RemoveAll(m.place(name).dir); err != nil {
			t.Fatal(err)
		}
	}
	again.unlock()
	if entries, err := os.ReadDir(m.o.StateDir); err != nil || len(entries) != 1 {
		t.Logf("left: %v %v", entries, err)
	}
	unlock, err := m.lock("two")
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if _, err := os.Stat(m.clustersDir()); !errors.Is(err, os.ErrNotExist) {
		entries, _ := os.ReadDir(m.clustersDir())
		t.Errorf("the directory of clusters is left with %v", entries)
	}
}

// A disk that is full is a reason to delete a cluster, and doesn't take another record.
func TestMarkDeletingWithoutRoom(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("changing a cluster needs root, and says so")
	}
	for _, full := range []bool{false, true} {
		m := manager(t, map[string]spec.Phase{"c": spec.Running})
		c, err := m.open("c")
		if err != nil {
			t.Fatal(err)
		}
		if full {
			c.spec.Subnet = 1000 // which Write refuses
		}
		if err := c.markDeleting(); err != nil {
			t.Errorf("full: %v: %v", full, err)
		}
		got, err := spec.Read(c.dir)
		if full && !errors.Is(err, fs.ErrNotExist) || !full && (err != nil || got.Phase != spec.Deleting) {
			t.Errorf("full: %v: the record is %+v, %v", full, got, err)
		}
		c.unlock()
	}
}

func TestCheckStateDir(t *testing.T) {
	for dir, good := range map[string]bool{
		"/var/lib/bulkhead": true, "/srv/my clusters": true, "/srv/a'b%c$d": true,
		"/srv/a:b": false, "/srv/a,b": false, "/srv/a=b": false, `/srv/a\b`: false, `/srv/a"b`: false, "/srv/{$HOME}": false, "/srv/a\nb": false,
	} {
		var parameter *spec.ParameterError
		if err := checkStateDir(dir); good != (err == nil) || err != nil && (!errors.As(err, &parameter) || parameter.Parameter != "--state-dir") {
			t.Errorf("%q: %v", dir, err)
		}
	}
}

func TestList(t *testing.T) {
	m := manager(t, map[string]spec.Phase{"up": spec.Running, "half": spec.Creating, "off": spec.Stopped, "broken": ""})
	list, err := m.List()
	if err != nil {
		t.Fatal(err)
	}
	phases, problems := map[string]spec.Phase{}, map[string]bool{}
	for _, s := range list {
		phases[s.Name], problems[s.Name] = s.Phase, s.Problem != ""
	}
	if diff := cmp.Diff(map[string]spec.Phase{"up": spec.Running, "half": spec.Creating, "off": spec.Stopped, "broken": spec.Failed}, phases); diff != "" {
		t.Errorf("phases (-want +got):\n%s", diff)
	}
	// "up" has no supervisor here.
	if diff := cmp.Diff(map[string]bool{"up": true, "half": true, "off": false, "broken": true}, problems); diff != "" {
		t.Errorf("has a problem (-want +got):\n%s", diff)
	}
	if d, err := m.Show("off"); err != nil || d.Nodes[0].State != "stopped" || d.Server != "https://10.88.3.2:6443" {
		t.Errorf("show: %+v %v", d, err)
	}
}

func TestPlace(t *testing.T) {
	m := manager(t, nil)
	a, b := m.place("a"), m.place("b")
	if a.id == b.id || len(a.id) != 8 {
		t.Errorf("ids %q and %q", a.id, b.id)
	}
	// The same directory written in another way is the same clusters.
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(m.o.StateDir, link); err != nil {
		t.Fatal(err)
	}
	other, err := Open(Options{StateDir: link, BinDir: "."})
	if err != nil {
		t.Fatal(err)
	}
	if other.place("a") != a {
		t.Errorf("by a link it is %+v, else %+v", other.place("a"), a)
	}
}

func TestNodeReady(t *testing.T) {
	since := time.Date(2026, 3, 1, 12, 0, 0, 500, time.UTC)
	node := func(status string, heartbeat time.Time) nodeObject {
		var n nodeObject
		n.Status.Conditions = append(n.Status.Conditions, struct {
			Type, Status, Message string
			LastHeartbeatTime     time.Time
		}{"Ready", status, "why", heartbeat})
		return n
	}
	for _, c := range []struct {
		name string
		node nodeObject
		want bool
	}{
		{"says nothing", nodeObject{}, false},
		{"ready", node("True", since.Add(time.Second)), true},
		{"ready in the same second", node("True", since.Truncate(time.Second)), true},
		{"was ready before", node("True", since.Add(-time.Second)), false},
		{"not ready", node("False", since.Add(time.Second)), false},
		{"unknown", node("Unknown", since.Add(time.Second)), false},
	} {
		if got, _ := c.node.ready(since); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
