package sandbox

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func testSurroundings() surroundings {
	return surroundings{
		ID: "one", MountPrefix: "c7",
		Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"},
	}
}

func readSpec(t testing.TB, name string) *specs.Spec {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata/translate", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		t.Fatal(err)
	}
	return &spec
}

// TestTranslate compares with golden files; with the environment variable UPDATE_GOLDEN it writes them.
func TestTranslate(t *testing.T) {
	for _, name := range []string{"ctr-run", "cri-container", "cri-privileged", "join-pid"} {
		t.Run(name, func(t *testing.T) {
			in := readSpec(t, name)
			before, _ := json.Marshal(in)
			env := testSurroundings()
			env.Terminal = in.Process.Terminal
			got, err := translate(in, env)
			if err != nil {
				t.Fatal(err)
			}
			if after, _ := json.Marshal(in); !bytes.Equal(before, after) {
				t.Error("translate changed its input")
			}
			text, err := json.MarshalIndent(got, "", " ")
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata/translate", name+".golden.json")
			if os.Getenv("UPDATE_GOLDEN") != "" {
				if err := os.WriteFile(golden, append(text, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(text)+"\n"); diff != "" {
				t.Errorf("translation (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTranslateRefuses(t *testing.T) {
	path := func(p string) *specs.Hook { return &specs.Hook{Path: p} }
	mount := func(m specs.Mount) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Mounts = append(s.Mounts, m) }
	}
	tests := []struct {
		name   string
		change func(*specs.Spec)
		want   string // part of the message
	}{
		{"no process", func(s *specs.Spec) { s.Process = nil }, "without a process"},
		{"no arguments", func(s *specs.Spec) { s.Process.Args = nil }, "arguments"},
		{"relative working directory", func(s *specs.Spec) { s.Process.Cwd = "tmp" }, `"tmp"`},
		{"hook", func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{*path("/usr/bin/hook")}} }, "/usr/bin/hook"},
		{"another platform", func(s *specs.Spec) { s.Windows = &specs.Windows{} }, "platform"},
		{"domain name", func(s *specs.Spec) { s.Domainname = "nis" }, `"nis"`},
		{"AppArmor profile", func(s *specs.Spec) { s.Process.ApparmorProfile = "mine" }, `AppArmor profile "mine"`},
		{"SELinux label", func(s *specs.Spec) { s.Process.SelinuxLabel = "system_u:system_r:my_t:s0" }, "my_t"},
		{"SELinux label of mounts", func(s *specs.Spec) { s.Linux.MountLabel = "nonsense" }, "nonsense"},
		{"CPU affinity", func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0"} }, "affinity"},
		{"host network", drop(specs.NetworkNamespace), "hostNetwork"},
		{"host PID", drop(specs.PIDNamespace), "hostPID"},
		{"host IPC", drop(specs.IPCNamespace), "hostIPC"},
		{"user namespace", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		}, "hostUsers"},
		{"user mappings", func(s *specs.Spec) { s.Linux.UIDMappings = []specs.LinuxIDMapping{{Size: 1}} }, "hostUsers"},
		{"namespace twice", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: "/proc/42/ns/pid"})
		}, "twice"},
		{"cgroup namespace of the host", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace, Path: "/proc/1/ns/cgroup"})
		}, "/proc/1/ns/cgroup"},
		{"unknown namespace", func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "dream"})
		}, `"dream"`},
		{"sysctl that isn't the pod's", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.core.somaxconn": "1"} }, "net.core.somaxconn"},
		{"device", func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/sda", Type: "b", Major: 8}}
		}, "/dev/sda (b 8:0)"},
		{"another device as fuse", func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "b", Major: 8}}
		}, "/dev/fuse (b 8:0)"},
		{"seccomp listener", func(s *specs.Spec) { s.Linux.Seccomp.ListenerPath = "/run/l.sock" }, "/run/l.sock"},
		{"shared root", func(s *specs.Spec) { s.Linux.RootfsPropagation = "rshared" }, "rshared"},
		{"network device", func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth1": {}} }, "network devices"},
		{"bidirectional mount", mount(specs.Mount{Destination: "/m", Type: "bind", Source: "/m", Options: []string{"rbind", "rshared"}}), "rshared"},
		{"mount from the host later", mount(specs.Mount{Destination: "/m", Type: "bind", Source: "/m", Options: []string{"rbind", "rslave"}}), "rslave"},
		{"id-mapped mount", mount(specs.Mount{Destination: "/m", Type: "bind", Source: "/m", UIDMappings: []specs.LinuxIDMapping{{Size: 1}}}), "id-mapped"},
		{"option idmap", mount(specs.Mount{Destination: "/m", Source: "/m", Options: []string{"bind", "idmap"}}), "idmap"},
		{"relative source", mount(specs.Mount{Destination: "/m", Type: "bind", Source: "m"}), `"m"`},
		{"mount over the root", mount(specs.Mount{Destination: "/x/..", Type: "tmpfs"}), "root"},
		{"relative destination", mount(specs.Mount{Destination: "x", Type: "tmpfs"}), "absolute"},
		{"block device", mount(specs.Mount{Destination: "/m", Type: "ext4", Source: "/dev/sda"}), `"ext4"`},
		{"control character", mount(specs.Mount{Destination: "/m", Type: "tmpfs", Options: []string{"size=1\nx"}}), "control character"},
		{"too many mounts", func(s *specs.Spec) { s.Mounts = make([]specs.Mount, maxMounts+1) }, "1025 mounts"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := readSpec(t, "ctr-run")
			tt.change(in)
			_, err := translate(in, testSurroundings())
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Fatalf("translate: %v; want ErrInvalidArgument", err)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("message %q lacks %q", err, tt.want)
			}
		})
	}
}

func drop(ns specs.LinuxNamespaceType) func(*specs.Spec) {
	return func(s *specs.Spec) {
		var left []specs.LinuxNamespace
		for _, n := range s.Linux.Namespaces {
			if n.Type != ns {
				left = append(left, n)
			}
		}
		s.Linux.Namespaces = left
	}
}

func FuzzTranslate(f *testing.F) {
	for _, name := range []string{"ctr-run", "cri-container", "cri-privileged", "join-pid"} {
		data, _ := json.Marshal(readSpec(f, name))
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var in specs.Spec
		if json.Unmarshal(data, &in) != nil {
			return
		}
		got, err := translate(&in, testSurroundings())
		if err != nil {
			return
		}
		if got.Spec.Hooks != nil || got.Spec.Annotations != nil || got.Spec.Root.Path != "rootfs" || got.Spec.Linux.CgroupsPath != "/bulkhead/one" {
			t.Errorf("something of the host's got through: %+v", got.Spec)
		}
		for _, ns := range got.Spec.Linux.Namespaces {
			if ns.Path != "" {
				t.Errorf("namespace %+v", ns)
			}
		}
		for _, m := range got.Spec.Mounts {
			if m.Type == "bind" && !strings.HasPrefix(m.Source, mountsDir+"c7-") {
				t.Errorf("mount %+v", m)
			}
		}
	})
}

func TestFromOCI(t *testing.T) {
	cfg := testConfig(t)
	spec := readSpec(t, "ctr-run")
	spec.Hostname = "h"
	spec.Linux.Namespaces[4].Path = "/run/netns/x"
	spec.Linux.Sysctl = map[string]string{"kernel.shmmax": "1"}
	got, err := FromOCI(cfg, spec)
	if err != nil {
		t.Fatal(err)
	}
	size := got.Size
	got.Size.VCPUs, got.Size.MemoryBytes, got.Size.ScratchBytes = 0, 0, 0
	want := Spec{Hostname: "h", NetNS: "/run/netns/x", CgroupsPath: "/default/one", Sysctls: map[string]string{"kernel.shmmax": "1"}, ShmBytes: 64 << 20}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
	if size.VCPUs != 1 || size.MemoryBytes < cfg.Sandbox.DefaultMemory {
		t.Errorf("size %+v", size)
	}
}

func TestFromOCIRefuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(*specs.Spec)
		want   string
	}{
		{"host network", drop(specs.NetworkNamespace), "hostNetwork"},
		{"host PID", drop(specs.PIDNamespace), "hostPID"},
		{"host IPC", drop(specs.IPCNamespace), "hostIPC"},
		{"no linux", func(s *specs.Spec) { s.Linux = nil }, "linux section"},
		{"annotation", func(s *specs.Spec) { s.Annotations = map[string]string{"bulkhead.dev/vcpus": "all"} }, "bulkhead.dev/vcpus"},
		{"sysctl with a way out", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"../../etc/passwd": "1"} }, "../../etc/passwd"},
		{"sysctl of several lines", func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.x": "1\n2"} }, "net.x"},
		{"size of shm", func(s *specs.Spec) { s.Mounts[3].Options = []string{"size=many"} }, `"many"`},
		{"huge shm", func(s *specs.Spec) { s.Mounts[3].Options = []string{"size=99999999g"} }, `"99999999g"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			spec := readSpec(t, "ctr-run")
			tt.change(spec)
			_, err := FromOCI(testConfig(t), spec)
			if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("FromOCI: %v; want ErrInvalidArgument with %q", err, tt.want)
			}
		})
	}
}
