package guest

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func testSpec() *specs.Spec {
	return &specs.Spec{
		Version: "1.0.2",
		Process: &specs.Process{Args: []string{"sh"}, Cwd: "/"},
		Root:    &specs.Root{Path: "rootfs"},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/data", Type: "bind", Source: "/run/bulkhead/mounts/data", Options: []string{"rbind"}},
			{Destination: "/dev/shm", Type: "bind", Source: "/dev/shm", Options: []string{"rbind"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/kubepods/x",
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}},
			MaskedPaths: []string{"/proc/kcore"},
		},
	}
}

func testBundle() bundleSpec {
	return bundleSpec{id: "c1", root: "/root/c1", mounts: "/run/bulkhead/mounts", isInit: func(pid int) bool { return pid == 42 },
		sharedPIDs: func() (string, error) { return "/proc/43/ns/pid", nil }}
}

func prepare(t *testing.T, b bundleSpec, spec *specs.Spec) (*specs.Spec, int, error) {
	t.Helper()
	raw, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	config, adj, err := b.prepare(raw)
	if err != nil {
		return nil, 0, err
	}
	var got specs.Spec
	if err := json.Unmarshal(config, &got); err != nil {
		t.Fatal(err)
	}
	return &got, adj, nil
}

func TestPrepareSpec(t *testing.T) {
	b := testBundle()
	b.terminal, b.readonly = true, true
	score := -100
	spec := testSpec()
	spec.Process.OOMScoreAdj = &score
	got, adj, err := prepare(t, b, spec)
	if err != nil {
		t.Fatal(err)
	}
	want := testSpec()
	want.Process.OOMScoreAdj = &score
	want.Process.Terminal = true
	want.Root = &specs.Root{Path: "/root/c1", Readonly: true}
	want.Linux.CgroupsPath = "/bulkhead/c1"
	want.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if adj != -100 {
		t.Errorf("OOM score adjustment %d", adj)
	}
}

func TestPrepareSpecKeepsUnknownFields(t *testing.T) {
	raw := `{"future":{"x":[1,2]},"process":{"args":["a"],"cwd":"/"},"linux":{"namespaces":[{"type":"pid"},{"type":"mount"}],"netDevices":{"a":{}}}}`
	config, _, err := testBundle().prepare([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"future":{"x":[1,2]}`, `"netDevices":{"a":{}}`, `"oomScoreAdj":0`, `"terminal":false`} {
		if !strings.Contains(string(config), want) {
			t.Errorf("%s has no %s", config, want)
		}
	}
}

func TestPrepareSpecOfJoinedPids(t *testing.T) {
	spec := testSpec()
	spec.Linux.Namespaces[0].Path = "/proc/42/ns/pid"
	if _, _, err := prepare(t, testBundle(), spec); err != nil {
		t.Error(err)
	}
}

// TestPrepareSpecOfSharedPids: who asks for no pid namespace gets the pod's, never the agent's.
func TestPrepareSpecOfSharedPids(t *testing.T) {
	spec := testSpec()
	spec.Linux.Namespaces = spec.Linux.Namespaces[1:]
	got, _, err := prepare(t, testBundle(), spec)
	if err != nil {
		t.Fatal(err)
	}
	want := []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace, Path: "/proc/43/ns/pid"}}
	if diff := cmp.Diff(want, got.Linux.Namespaces); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestPrepareSpecRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*specs.Spec){
		"no process":              func(s *specs.Spec) { s.Process = nil },
		"no args":                 func(s *specs.Spec) { s.Process.Args = nil },
		"empty program":           func(s *specs.Spec) { s.Process.Args = []string{""} },
		"no linux":                func(s *specs.Spec) { s.Linux = nil },
		"no mount namespace":      func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[:1] },
		"pids of PID 1":           func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "/proc/1/ns/pid" },
		"pids of another process": func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "/proc/43/ns/pid" },
		"odd pid":                 func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "/proc/042/ns/pid" },
		"way out of /proc":        func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "/proc/42/../1/ns/pid" },
		"mounts of another":       func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "/proc/42/ns/mnt" },
		"network by path": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/var/run/netns/x"})
		},
		"hook":           func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/bin/x"}}} },
		"bind of root":   func(s *specs.Spec) { s.Mounts[1].Source = "/" },
		"bind of a host": func(s *specs.Spec) { s.Mounts[1].Source = "/var/lib/kubelet/x" },
		"bind deeper":    func(s *specs.Spec) { s.Mounts[1].Source = "/run/bulkhead/mounts/data/sub" },
		"bind of all":    func(s *specs.Spec) { s.Mounts[1].Source = "/run/bulkhead/mounts" },
		"bind with dots": func(s *specs.Spec) { s.Mounts[1].Source = "/run/bulkhead/mounts/../containers" },
		"bind by option": func(s *specs.Spec) {
			s.Mounts[0] = specs.Mount{Destination: "/x", Type: "none", Source: "/run", Options: []string{"bind"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			spec := testSpec()
			spoil(spec)
			if _, _, err := prepare(t, testBundle(), spec); !errdefs.IsInvalidArgument(err) {
				t.Errorf("prepare = %v", err)
			}
		})
	}
	for _, raw := range []string{"", "null", "[]", "{", `{"process":7}`, `{"process":{"args":"sh"}}`, `{"process":{"args":["a"]},"linux":{"namespaces":7}}`} {
		if _, _, err := testBundle().prepare([]byte(raw)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", raw, err)
		}
	}
}

func TestPrepareExec(t *testing.T) {
	config, adj, err := prepareExec([]byte(`{"args":["a"],"cwd":"/","terminal":true,"oomScoreAdj":9}`), false)
	if err != nil || adj != 9 || !strings.Contains(string(config), `"terminal":false`) {
		t.Errorf("%s, %d, %v", config, adj, err)
	}
	for _, raw := range []string{"", "null", "{}", `{"args":[]}`, `{"args":["a"],"oomScoreAdj":"x"}`} {
		if _, _, err := prepareExec([]byte(raw), false); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", raw, err)
		}
	}
}

func FuzzPrepare(f *testing.F) {
	raw, err := json.Marshal(testSpec())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"process":{"args":["a"]},"linux":{"namespaces":[{"type":"pid"},{"type":"mount"}],"resources":null}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		config, _, err := testBundle().prepare(raw)
		if err != nil {
			return
		}
		var got specs.Spec
		if err := json.Unmarshal(config, &got); err != nil {
			t.Skip() // fields that the agent doesn't look at; the runtime refuses them
		}
		if got.Linux.CgroupsPath != "/bulkhead/c1" || got.Root.Path != "/root/c1" || got.Hooks != nil {
			t.Errorf("%s", config)
		}
	})
}
