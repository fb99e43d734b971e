package node

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"bulkhead.dev/bulkhead/internal/config"
)

func at(t *testing.T, o Options) *Node {
	t.Helper()
	n, err := At(o)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestConfigurationFilesAreValid(t *testing.T) {
	// A long path with what needs escapes: sockets are elsewhere.
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 30), `quote"back\slash and space`)
	n := at(t, Options{Dir: dir, Bin: "/opt/bin", Guest: "/srv/guest", Acceleration: "emulated"})
	if got := len(n.Socket() + ".ttrpc"); got > maxSocketPath {
		t.Errorf("the socket's path has %d bytes", got)
	}
	files, err := n.files()
	if err != nil {
		t.Fatal(err)
	}

	var containerd struct {
		Version int
		Root    string
		Plugins map[string]any
	}
	if err := toml.Unmarshal([]byte(files["containerd.toml"]), &containerd); err != nil {
		t.Errorf("containerd.toml: %v\n%s", err, files["containerd.toml"])
	}
	if containerd.Version != 3 || containerd.Root != filepath.Join(dir, "root") {
		t.Errorf("containerd.toml: version %d, root %q", containerd.Version, containerd.Root)
	}

	var cni struct {
		Plugins []struct{ Bridge string }
	}
	if err := json.Unmarshal([]byte(files["cni/10-pod.conflist"]), &cni); err != nil {
		t.Errorf("CNI configuration: %v", err)
	} else if b := cni.Plugins[0].Bridge; len(b) > 15 {
		t.Errorf("the bridge's name %s is too long for an interface", b)
	}

	runtime := filepath.Join(t.TempDir(), "runtime.toml")
	if err := os.WriteFile(runtime, []byte(files["runtime.toml"]), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := config.Load(runtime)
	if err != nil {
		t.Fatalf("the runtime refuses its configuration: %v", err)
	}
	if cfg.StateDir != filepath.Join(dir, "bulkhead") || cfg.Guest.Kernel != "/srv/guest/kernel" || cfg.VMM.Acceleration != "emulated" {
		t.Errorf("configuration = %+v", cfg)
	}
}

func TestNodesInDifferentDirectoriesShareNothing(t *testing.T) {
	a, b := at(t, Options{Dir: "/srv/a"}), at(t, Options{Dir: "/srv/b"})
	if a.sockets == b.sockets || a.Bridge() == b.Bridge() || cmp.Equal(a.bridgeConfig(), b.bridgeConfig()) {
		t.Errorf("%+v and %+v overlap", a, b)
	}
	if same := at(t, Options{Dir: "/srv/x/../a/"}); same.sockets != a.sockets {
		t.Error("two spellings of one directory are two nodes")
	}
	if _, err := At(Options{Dir: "/"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("At(/) = %v; want InvalidArgument", err)
	}
}

func TestMountPoints(t *testing.T) {
	const table = `22 1 8:1 / / rw - ext4 /dev/vda rw
30 22 0:5 / /srv/node/a\040b rw - tmpfs tmpfs rw
31 30 0:6 / /srv/node/a\040b/merged rw shared:1 - overlay overlay rw
32 22 0:7 / /srv/node2/x rw - tmpfs tmpfs rw
33 22 0:8 / /run/sock/y rw - tmpfs tmpfs rw
broken
`
	got := mountPoints(table, "/srv/node", "/run/sock")
	want := []string{"/srv/node/a b", "/srv/node/a b/merged", "/run/sock/y"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestStopOfNothing(t *testing.T) {
	n := at(t, Options{Dir: filepath.Join(t.TempDir(), "never")})
	if err := n.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}
