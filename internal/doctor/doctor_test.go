package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bulkhead.dev/bulkhead/internal/config"
	"bulkhead.dev/bulkhead/internal/vmm"
)

// goodFiles are the files of a host that lacks nothing.
var goodFiles = map[string]string{
	"proc/meminfo":                     "MemTotal: 33000000 kB\nMemAvailable:   16384000 kB\n",
	"proc/filesystems":                 "nodev\tproc\nnodev\toverlay\n\text4\n",
	"proc/sys/kernel/osrelease":        "6.9-test\n",
	"lib/modules/6.9-test/modules.dep": "kernel/fs/fuse/fuse.ko.xz:\nkernel/fs/erofs/erofs.ko: kernel/lib/libcrc32c.ko\n",
	"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
	"dev/net/tun":                      "",
	"boot/kernel":                      "k",
	"boot/initramfs":                   "i",
	"etc/containerd/config.toml":       "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.sandboxed]\nruntime_type = 'io.containerd.bulkhead.v2'\n",
}

// goodVersions is what the programs of such a host print.
var goodVersions = map[string]string{
	"qemu-system-" + qemuArch: "QEMU emulator version 9.2.1 (Debian 1:9.2.1+ds-1)",
	"mkfs.ext4":               "mke2fs 1.47.0 (5-Feb-2023)\n\tUsing EXT2FS Library version 1.47.0",
	"containerd":              "containerd github.com/containerd/containerd/v2 v2.3.4 abcdef",
	shimName:                  "",
}

// goodHost is a host that lacks nothing, in a directory. Changes go into the maps and fields that it returns.
func goodHost(t *testing.T) (h Host, files, versions map[string]string) {
	t.Helper()
	files, versions = map[string]string{}, map[string]string{}
	for k, v := range goodFiles {
		files[k] = v
	}
	for k, v := range goodVersions {
		versions[k] = v
	}
	root := t.TempDir()
	cfg := config.Default()
	cfg.Guest.Kernel, cfg.Guest.Initramfs = filepath.Join(root, "boot/kernel"), filepath.Join(root, "boot/initramfs")
	h = Host{
		Root: root, Config: cfg, ContainerdConfig: "/etc/containerd/config.toml", Containerd: "containerd",
		LookPath: func(name string) (string, error) {
			if _, ok := versions[filepath.Base(name)]; !ok {
				return "", exec.ErrNotFound
			}
			return "/usr/bin/" + filepath.Base(name), nil
		},
		Run: func(_ context.Context, name string, _ ...string) ([]byte, error) {
			out, ok := versions[filepath.Base(name)]
			if !ok {
				return nil, exec.ErrNotFound
			}
			if out == "" {
				return nil, errors.New("exit status 1")
			}
			return []byte(out), nil
		},
		Accelerate:     func(context.Context) (vmm.Acceleration, string, error) { return vmm.Hardware, "", nil },
		TrafficControl: func(context.Context) error { return nil },
		FreeBytes:      func(string) (int64, error) { return 100 << 30, nil },
	}
	return h, files, versions
}

func writeFiles(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestExamineGoodHost(t *testing.T) {
	h, files, _ := goodHost(t)
	writeFiles(t, h.Root, files)
	r := Examine(t.Context(), h)
	for _, c := range r.Checks {
		if c.Status != OK || c.Fix != "" || c.Found == "" {
			t.Errorf("%+v", c)
		}
	}
	if !r.Ready || r.Isolation != "hardware" {
		t.Errorf("ready %v, isolation %s", r.Ready, r.Isolation)
	}
	if r.Checks[0].Name != "kvm" {
		t.Errorf("the first check is %s", r.Checks[0].Name)
	}
}

func TestExamine(t *testing.T) {
	const cri2 = "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.x]\nruntime_type = 'io.containerd.bulkhead.v2'\n"
	type change func(h *Host, files, versions map[string]string)
	tests := []struct {
		name, check string
		status      Status
		found, fix  string // parts of the texts
		change      change
	}{
		{"emulation", "kvm", Warn, "THIS IS NOT ISOLATION: emulation is no security boundary; run only code you trust. the guest hung", "nested virtualization", func(h *Host, _, _ map[string]string) {
			h.Accelerate = func(context.Context) (vmm.Acceleration, string, error) { return vmm.Emulated, "the guest hung", nil }
		}},
		{"emulation that was asked for", "kvm", Warn, "you trust. vmm.acceleration of the configuration asks for it", `"hardware"`, func(h *Host, _, _ map[string]string) {
			h.Config.VMM.Acceleration = config.AccelerationEmulated
			h.Accelerate = func(context.Context) (vmm.Acceleration, string, error) { return vmm.Emulated, "", nil }
		}},
		{"no hardware where it is required", "kvm", Missing, "no /dev/kvm", "modprobe kvm_intel", func(h *Host, _, _ map[string]string) {
			h.Accelerate = func(context.Context) (vmm.Acceleration, string, error) { return "", "", errors.New("no /dev/kvm") }
		}},
		{"no guest to try with", "kvm", Missing, "not known", "guest image", func(_ *Host, files, _ map[string]string) { delete(files, "boot/kernel") }},
		{"not root", "user", Missing, "uid 1000", "sudo", func(h *Host, _, _ map[string]string) { h.UID = 1000 }},
		{"no QEMU", "qemu", Missing, "not on the PATH", "apt-get install qemu", func(_ *Host, _, versions map[string]string) { delete(versions, "qemu-system-"+qemuArch) }},
		{"QEMU that doesn't run", "qemu", Missing, "doesn't run: exit status 1", "apt-get", func(_ *Host, _, versions map[string]string) { versions["qemu-system-"+qemuArch] = "" }},
		{"old QEMU", "qemu", Warn, "5.2.0", "7.2 or newer", func(_ *Host, _, versions map[string]string) {
			versions["qemu-system-"+qemuArch] = "QEMU emulator version 5.2.0"
		}},
		{"other VMM program", "qemu", Missing, "/opt/qemu doesn't run", "vmm.binary", func(h *Host, _, _ map[string]string) { h.Config.VMM.Binary = "/opt/qemu" }},
		{"no guest image", "guest image", Missing, "boot/kernel: no such file", "bulkhead guest build", func(_ *Host, files, _ map[string]string) { delete(files, "boot/kernel") }},
		{"no memory", "memory", Missing, "97 MiB available", "sandbox.default_memory", func(_ *Host, files, _ map[string]string) { files["proc/meminfo"] = "MemAvailable: 100000 kB\n" }},
		{"memory for the containers, not for the guest", "memory", Missing, "390 MiB available, 420 for one pod without limits: a VM of 292", "sandbox.default_memory", func(_ *Host, files, _ map[string]string) {
			files["proc/meminfo"] = "MemAvailable: 400000 kB\n"
		}},
		{"no memory for the profile aks", "memory", Missing, "a VM of 2048", `sandbox.profile = "standard"`, func(h *Host, files, _ map[string]string) {
			h.Config.Sandbox.Profile = config.ProfileAKS
			files["proc/meminfo"] = "MemAvailable: 2000000 kB\n"
		}},
		{"more memory by default than a VM can have", "memory", Missing, "1 TiB", "sandbox.default_memory", func(h *Host, _, _ map[string]string) { h.Config.Sandbox.DefaultMemory = 1 << 40 }},
		{"little memory", "memory", Warn, "585 MiB available", "more memory", func(_ *Host, files, _ map[string]string) { files["proc/meminfo"] = "MemAvailable: 600000 kB\n" }},
		{"no /proc", "memory", Warn, "no such file", "/proc", func(_ *Host, files, _ map[string]string) { delete(files, "proc/meminfo") }},
		{"disk full", "disk", Missing, "1 MiB free", "state_dir", func(h *Host, _, _ map[string]string) {
			h.FreeBytes = func(string) (int64, error) { return 1 << 20, nil }
		}},
		{"disk nearly full", "disk", Warn, "1024 MiB free", "state_dir", func(h *Host, _, _ map[string]string) {
			h.FreeBytes = func(string) (int64, error) { return 1 << 30, nil }
		}},
		{"cgroup v1", "cgroup", Warn, "v1", "unified_cgroup_hierarchy", func(_ *Host, files, _ map[string]string) {
			delete(files, "sys/fs/cgroup/cgroup.controllers")
			for _, c := range []string{"cpu", "memory", "pids"} {
				files["sys/fs/cgroup/"+c+"/tasks"] = ""
			}
		}},
		{"cgroup v2 without memory", "cgroup", Missing, "v2 without memory", "cgroup_enable=memory", func(_ *Host, files, _ map[string]string) { files["sys/fs/cgroup/cgroup.controllers"] = "cpu pids" }},
		{"no cgroups", "cgroup", Missing, "cpu, memory, pids", "mount", func(_ *Host, files, _ map[string]string) { delete(files, "sys/fs/cgroup/cgroup.controllers") }},
		{"no tun", "tun", Missing, "no such file", "modprobe tun", func(_ *Host, files, _ map[string]string) { delete(files, "dev/net/tun") }},
		{"no tc", "tc", Missing, "add an ingress queue", "sch_ingress", func(h *Host, _, _ map[string]string) {
			h.TrafficControl = func(context.Context) error { return errors.New("add an ingress queue: not supported") }
		}},
		{"tc without root", "tc", Warn, "needs root", "sudo", func(h *Host, _, _ map[string]string) { h.UID = 1 }},
		{"no overlay", "overlay", Missing, "doesn't have it", "modprobe overlay", func(_ *Host, files, _ map[string]string) { files["proc/filesystems"] = "\text4\n" }},
		{"no fuse", "fuse", Warn, "guest has its own", "modprobe fuse", func(_ *Host, files, _ map[string]string) { delete(files, "lib/modules/6.9-test/modules.dep") }},
		{"no erofs", "erofs", Warn, "guest has its own", "modprobe erofs", func(_ *Host, files, _ map[string]string) { delete(files, "lib/modules/6.9-test/modules.dep") }},
		{"no mkfs.ext4", "mkfs.ext4", Missing, "not on the PATH", "e2fsprogs", func(_ *Host, _, versions map[string]string) { delete(versions, "mkfs.ext4") }},
		{"no containerd", "containerd", Missing, "not on the PATH", "containerd", func(_ *Host, _, versions map[string]string) { delete(versions, "containerd") }},
		{"containerd 1.7", "containerd", Warn, "1.7.24", "containerd 2", func(_ *Host, _, versions map[string]string) {
			versions["containerd"] = "containerd github.com/containerd/containerd 1.7.24~ds1"
		}},
		{"containerd 1.6", "containerd", Missing, "too old", "containerd 2", func(_ *Host, _, versions map[string]string) { versions["containerd"] = "containerd 1.6.20" }},
		{"no shim", "shim", Missing, "not on the PATH", "/usr/local/bin", func(_ *Host, _, versions map[string]string) { delete(versions, shimName) }},
		{"no containerd configuration", "containerd runtime", Missing, "does not exist", "containerd config default", func(_ *Host, files, _ map[string]string) { delete(files, "etc/containerd/config.toml") }},
		{"runtime not configured", "containerd runtime", Missing, "has no runtime of the type", `runtime_type = "io.containerd.bulkhead.v2"`, func(_ *Host, files, _ map[string]string) { files["etc/containerd/config.toml"] = "version = 3\n" }},
		{"configuration with a syntax error", "containerd runtime", Missing, "/etc/containerd/config.toml:2:5:", "repair", func(_ *Host, files, _ map[string]string) { files["etc/containerd/config.toml"] = "version = 3\nx = \n" }},
		{"configuration of version 2", "containerd runtime", OK, `handler "x"`, "", func(_ *Host, files, _ map[string]string) { files["etc/containerd/config.toml"] = cri2 }},
		{"configuration in an import", "containerd runtime", OK, `handler "x"`, "", func(_ *Host, files, _ map[string]string) {
			files["etc/containerd/config.toml"] = "version = 2\nimports = ['conf.d/*.toml', '/etc/containerd/config.toml']\n"
			files["etc/containerd/conf.d/b.toml"] = cri2
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h, files, versions := goodHost(t)
			tt.change(&h, files, versions)
			writeFiles(t, h.Root, files)
			r := Examine(t.Context(), h)
			if r.Ready != !hasMissing(r) {
				t.Errorf("ready is %v", r.Ready)
			}
			for _, c := range r.Checks {
				if c.Name != tt.check {
					continue
				}
				if c.Status != tt.status || !strings.Contains(c.Found, tt.found) || !strings.Contains(c.Fix, tt.fix) || (c.Fix == "") != (c.Status == OK) {
					t.Errorf("got %+v\nwant %s, found …%s…, fix …%s…", c, tt.status, tt.found, tt.fix)
				}
				return
			}
			t.Errorf("no check %s", tt.check)
		})
	}
}

func hasMissing(r Report) bool {
	for _, c := range r.Checks {
		if c.Status == Missing {
			return true
		}
	}
	return false
}

func TestImportsAreBounded(t *testing.T) {
	h, files, _ := goodHost(t)
	files["etc/containerd/config.toml"] = "imports = ['many/*.toml']\n"
	for i := range maxImports + 1 {
		files[fmt.Sprintf("etc/containerd/many/%d.toml", i)] = "version = 3\n"
	}
	writeFiles(t, h.Root, files)
	if _, err := h.runtimes("/etc/containerd/config.toml"); err == nil || !strings.Contains(err.Error(), "more than 64") {
		t.Errorf("got %v", err)
	}
}

func TestAtLeast(t *testing.T) {
	var got []bool
	for _, v := range []string{"7.2.22", "7.2", "8.0", "10.0.1", "7.1.9", "6.9", "x"} {
		got = append(got, atLeast(v, 7, 2))
	}
	if diff := cmp.Diff([]bool{true, true, true, true, false, false, false}, got); diff != "" {
		t.Error(diff)
	}
}

func TestFreeBytesOfWhatDoesNotExist(t *testing.T) {
	if n, err := freeBytes(filepath.Join(t.TempDir(), "a", "b")); err != nil || n <= 0 {
		t.Errorf("got %d, %v", n, err)
	}
}

func FuzzContainerdConfig(f *testing.F) {
	f.Add(goodFiles["etc/containerd/config.toml"])
	f.Add("imports = ['[']")
	f.Add("plugins = 1")
	f.Fuzz(func(t *testing.T, text string) {
		root := t.TempDir()
		writeFiles(t, root, map[string]string{"c.toml": text})
		h := Host{Root: root}
		_, _ = h.runtimes("/c.toml") // must return
	})
}
