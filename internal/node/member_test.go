package node

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"bulkhead.dev/bulkhead/internal/config"
)

func member(t *testing.T, change func(*Member)) *Node {
	t.Helper()
	m := &Member{
		Cgroup: "/bulkhead-test/n0", VM: true, Profile: config.ProfileStandard, MTU: 1400,
		PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24"), netip.MustParsePrefix("fd44:0:0:3::/64")},
	}
	if change != nil {
		change(m)
	}
	return at(t, Options{Dir: filepath.Join(t.TempDir(), "node"), Bin: "/opt/bin", Guest: "/srv/guest", Acceleration: "emulated", Member: m})
}

// TestHandlers follows each runtime handler to the sizing profile that a shim started for it reads.
func TestHandlers(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Member)
		want   map[string]string
	}{
		"VMs": {nil, map[string]string{
			"runc": "", HandlerBulkhead: config.ProfileStandard, HandlerKata: config.ProfileStandard, HandlerKataMSHV: config.ProfileAKS,
		}},
		"VMs, another profile": {func(m *Member) { m.Profile = config.ProfileAKS }, map[string]string{
			"runc": "", HandlerBulkhead: config.ProfileAKS, HandlerKata: config.ProfileStandard, HandlerKataMSHV: config.ProfileAKS,
		}},
		"no VMs": {func(m *Member) { m.VM = false }, map[string]string{"runc": ""}},
	} {
		t.Run(name, func(t *testing.T) {
			n := member(t, c.change)
			files, err := n.files()
			if err != nil {
				t.Fatal(err)
			}
			var containerd struct {
				Plugins struct {
					CRI struct {
						Containerd struct {
							Runtimes map[string]struct {
								Type    string            `toml:"runtime_type"`
								Options map[string]string `toml:"options"`
							} `toml:"runtimes"`
						} `toml:"containerd"`
					} `toml:"io.containerd.cri.v1.runtime"`
				} `toml:"plugins"`
			}
			if err := toml.Unmarshal([]byte(files["containerd.toml"]), &containerd); err != nil {
				t.Fatal(err)
			}
			got := make(map[string]string)
			for name, runtime := range containerd.Plugins.CRI.Containerd.Runtimes {
				if runtime.Type == RuntimeRunc {
					got[name] = ""
					continue
				}
				file, err := filepath.Rel(n.Dir(), runtime.Options["ConfigPath"])
				if err != nil {
					t.Fatal(err)
				}
				cfg, err := config.Parse(file, []byte(files[file]))
				if err != nil {
					t.Fatal(err)
				}
				if cfg.StateDir != n.path("bulkhead") || cfg.RunDir != n.RunDir() || cfg.VMM.Acceleration != "emulated" {
					t.Errorf("%s: %+v is of another node", name, cfg)
				}
				got[name] = cfg.Sandbox.Profile
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("profiles of the handlers (-want +got):\n%s", diff)
			}
		})
	}
}

// VMMs of two nodes must not run as one user: the range is the node's, and none of the host's or of pods' user namespaces.
func TestUIDs(t *testing.T) {
	base, count := at(t, Options{Dir: "/srv/a"}).uids()
	other, _ := at(t, Options{Dir: "/srv/b"}).uids()
	if base == other || (base-other)%count != 0 {
		t.Errorf("two nodes have %d and %d, %d each", base, other, count)
	}
	if base < 1<<24 || uint64(base)+uint64(count) > 1<<32-2 {
		t.Errorf("%d users from %d on", count, base)
	}
}

func TestPodNetwork(t *testing.T) {
	n := member(t, nil)
	files, err := n.files()
	if err != nil {
		t.Fatal(err)
	}
	var got any
	if err := json.Unmarshal([]byte(files["cni/10-pod.conflist"]), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"cniVersion": "1.0.0", "name": n.network(), "plugins": []any{
			map[string]any{"type": "loopback"},
			map[string]any{"type": "tuning", "sysctl": map[string]any{"net.ipv6.conf.default.accept_dad": "0"}},
			map[string]any{"type": "ptp", "ipMasq": false, "mtu": 1400.0, "ipam": map[string]any{
				"type": "host-local", "dataDir": n.path("ipam"),
				"ranges": []any{
					[]any{map[string]any{"subnet": "10.244.3.0/24"}},
					[]any{map[string]any{"subnet": "fd44:0:0:3::/64"}},
				},
				"routes": []any{map[string]any{"dst": "0.0.0.0/0"}, map[string]any{"dst": "::/0"}},
			}},
			map[string]any{"type": "portmap", "backend": "nftables", "capabilities": map[string]any{"portMappings": true}},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestMirrors(t *testing.T) {
	m := Member{
		Registry: "http://10.88.0.2:5000",
		Mirrors: map[string][]string{
			"*":                     {LocalMirror},
			"docker.io":             {"https://mirror.example/hub", LocalMirror},
			"registry.example:5000": {"http://192.0.2.1"},
		},
	}
	got, err := m.mirrorFiles()
	if err != nil {
		t.Fatal(err)
	}
	const pull = "capabilities = [\"pull\", \"resolve\"]\n"
	want := map[string]string{
		"certs.d/10.88.0.2:5000/hosts.toml":        "server = \"http://10.88.0.2:5000\"\n",
		"certs.d/_default/hosts.toml":              "[host.\"http://10.88.0.2:5000\"]\n" + pull,
		"certs.d/docker.io/hosts.toml":             "[host.\"https://mirror.example/hub\"]\n" + pull + "[host.\"http://10.88.0.2:5000\"]\n" + pull,
		"certs.d/registry.example:5000/hosts.toml": "[host.\"http://192.0.2.1\"]\n" + pull,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for host, mirror := range map[string]string{"docker.io": "mirror", "../x": LocalMirror, "": LocalMirror, "quay.io": "ftp://x"} {
		m := Member{Registry: m.Registry, Mirrors: map[string][]string{host: {mirror}}}
		if _, err := m.mirrorFiles(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("mirror %q of %q: %v; want InvalidArgument", mirror, host, err)
		}
	}
}

func TestKubeletDir(t *testing.T) {
	const longest = "/pod-resources/kubelet.sock"
	short := at(t, Options{Dir: "/srv/node"})
	if got := short.KubeletDir(); got != "/srv/node/kubelet" {
		t.Errorf("KubeletDir() = %s", got)
	}
	for length := range 200 {
		n := at(t, Options{Dir: "/srv/" + strings.Repeat("x", length+1)})
		if got := n.KubeletDir() + longest; len(got) > maxSocketPath {
			t.Fatalf("%s has %d bytes", got, len(got))
		}
	}
}

func TestMembersOnly(t *testing.T) {
	n := at(t, Options{Dir: filepath.Join(t.TempDir(), "private")})
	if err := n.Prepare(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Prepare = %v; want FailedPrecondition", err)
	}
	if err := n.Halt(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Halt = %v; want FailedPrecondition", err)
	}
}

// Of a container that ended with its pod's cgroup, runc need not be asked.
func TestInCgroup(t *testing.T) {
	n := member(t, nil)
	for name, c := range map[string]struct {
		state string
		want  bool
	}{
		"pod, v1":       {`{"cgroup_paths": {"cpu": "/sys/fs/cgroup/cpu/bulkhead-test/n0/kubepods/a/b", "": "/sys/fs/cgroup/unified/bulkhead-test/n0/kubepods/a/b"}}`, true},
		"pod, v2":       {`{"cgroup_paths": {"": "/sys/fs/cgroup/bulkhead-test/n0/kubepods/a/b"}}`, true},
		"of ctr":        {`{"cgroup_paths": {"": "/sys/fs/cgroup/k8s.io/b"}}`, false},
		"partly":        {`{"cgroup_paths": {"cpu": "/sys/fs/cgroup/cpu/bulkhead-test/n0/kubepods/a", "pids": "/sys/fs/cgroup/pids/x"}}`, false},
		"none":          {`{}`, false},
		"no state":      {`{`, false},
		"of other node": {`{"cgroup_paths": {"": "/sys/fs/cgroup/bulkhead-test/n01/kubepods/a"}}`, false},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "state.json"), []byte(c.state), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := n.inCgroup(dir); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
