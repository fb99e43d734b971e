package cgroup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestPath(t *testing.T) {
	tests := map[string]struct {
		spec, want string
		bad        bool
	}{
		"absolute":            {spec: "/kubepods/pod1/vm", want: "/kubepods/pod1/vm"},
		"relative":            {spec: "default/x", want: "/default/x"},
		"unclean":             {spec: "//a//b/./c/", want: "/a/b/c"},
		"systemd":             {spec: "kubepods-burstable-pod1.slice:cri-containerd:abc", want: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope"},
		"systemd no slice":    {spec: ":runc:abc", want: "/system.slice/runc-abc.scope"},
		"systemd no prefix":   {spec: "system.slice::abc", want: "/system.slice/abc.scope"},
		"systemd root slice":  {spec: "-.slice:p:abc", want: "/p-abc.scope"},
		"systemd slice name":  {spec: "a.slice:p:a-b.slice", want: "/a.slice/a-b.slice"},
		"colons in a path":    {spec: "/a:b:c", want: "/a:b:c"},
		"empty":               {spec: "", bad: true},
		"root":                {spec: "/", bad: true},
		"upwards":             {spec: "/a/../b", bad: true},
		"upwards in slice":    {spec: "..:a:b/..", bad: true},
		"not a slice":         {spec: "a.scope:p:n", bad: true},
		"no name":             {spec: "a.slice:p:", bad: true},
		"empty part of slice": {spec: "a--b.slice:p:n", bad: true},
		"newline":             {spec: "/a\nb", bad: true},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Path(tc.spec)
			if tc.bad {
				if !errdefs.IsInvalidArgument(err) {
					t.Fatalf("Path(%q) = %q, %v; want ErrInvalidArgument", tc.spec, got, err)
				}
				return
			}
			if err != nil || got != tc.want {
				t.Errorf("Path(%q) = %q, %v; want %q", tc.spec, got, err, tc.want)
			}
		})
	}
}

func TestParseMountinfo(t *testing.T) {
	tests := map[string]struct {
		mountinfo string
		want      host
	}{
		"hybrid": {
			mountinfo: `22 27 0:21 / /proc rw,relatime - proc proc rw
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:3 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/lib/agent,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
`,
			want: host{
				{mount: "/sys/fs/cgroup/cpuset", controllers: []string{"cpuset"}},
				{mount: "/sys/fs/cgroup/cpu,cpuacct", controllers: []string{"cpu", "cpuacct"}},
				{mount: "/sys/fs/cgroup/systemd", controllers: []string{"name=systemd"}},
				{mount: "/sys/fs/cgroup/unified", v2: true},
			},
		},
		"v2, mounted twice, a part first": {
			mountinfo: `50 1 0:38 /docker/x /mnt/part\040of rw - cgroup2 cgroup2 rw
51 1 0:38 / /sys/fs/cgroup rw master:1 propagate_from:2 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
52 1 0:38 / /second rw - cgroup2 cgroup2 rw
garbage
`,
			want: host{{mount: "/sys/fs/cgroup", v2: true}},
		},
		"only a part": {
			mountinfo: `50 1 0:38 /docker/x /mnt/part\040of rw - cgroup2 cgroup2 rw` + "\n",
			want:      host{{mount: "/mnt/part of", v2: true}},
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := parseMountinfo(strings.NewReader(tc.mountinfo))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(hierarchy{})); diff != "" {
				t.Errorf("hierarchies (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := parseMountinfo(strings.NewReader("22 27 0:21 / /proc rw - proc proc rw\n")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("no hierarchy: %v, want ErrFailedPrecondition", err)
	}
}

// fakeHost is directories that look like hierarchies: in a real one the kernel makes the files.
func fakeHost(t *testing.T) host {
	t.Helper()
	root := t.TempDir()
	h := host{
		{mount: filepath.Join(root, "memory"), controllers: []string{"memory"}},
		{mount: filepath.Join(root, "unified"), v2: true},
	}
	for _, hierarchy := range h {
		if err := os.Mkdir(hierarchy.mount, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

func TestCreateRemove(t *testing.T) {
	h := fakeHost(t)
	if err := os.Mkdir(filepath.Join(h[0].mount, "pods"), 0o755); err != nil {
		t.Fatal(err)
	}
	c, err := h.create("/pods/a/vm")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Path(); got != "/pods/a/vm" {
		t.Errorf("Path() = %q", got)
	}
	loaded, err := h.load("/pods/a/vm")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(c.dirs, loaded.dirs, cmp.AllowUnexported(dir{}, hierarchy{})); diff != "" {
		t.Errorf("directories created and loaded (-created +loaded):\n%s", diff)
	}
	if pids, err := c.Processes(); err != nil || len(pids) != 0 {
		t.Errorf("Processes() = %v, %v", pids, err)
	}
	for range 2 {
		if err := c.Remove(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(h[0].mount, "pods")); err != nil {
		t.Errorf("the parent that was there before: %v", err)
	}
	for _, gone := range []string{filepath.Join(h[0].mount, "pods/a"), filepath.Join(h[1].mount, "pods")} {
		if _, err := os.Stat(gone); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", gone, err)
		}
	}
	if _, err := h.load("/pods/a/vm"); !errdefs.IsNotFound(err) {
		t.Errorf("load after Remove: %v, want ErrNotFound", err)
	}
}

func TestCreateLeavesNothingOnError(t *testing.T) {
	h := fakeHost(t)
	if err := os.WriteFile(filepath.Join(h[1].mount, "a"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := h.create("/a/vm"); err == nil {
		t.Fatal("create below a file succeeded")
	}
	if _, err := os.Stat(filepath.Join(h[0].mount, "a")); !os.IsNotExist(err) {
		t.Errorf("a directory is left in the first hierarchy: %v", err)
	}
}

func TestInheritCPUSet(t *testing.T) {
	parent, child := t.TempDir(), t.TempDir()
	for name, value := range map[string]string{
		filepath.Join(parent, "cpuset.cpus"): "0-3\n",
		filepath.Join(parent, "cpuset.mems"): "0\n",
		filepath.Join(child, "cpuset.cpus"):  "\n",
		filepath.Join(child, "cpuset.mems"):  "1\n",
	} {
		if err := os.WriteFile(name, []byte(value), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := inheritCPUSet(parent, child); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"cpuset.cpus": "0-3", "cpuset.mems": "1"} {
		got, err := os.ReadFile(filepath.Join(child, file))
		if err != nil || strings.TrimSpace(string(got)) != want {
			t.Errorf("%s = %q, %v; want %q", file, got, err, want)
		}
	}
}

func TestKillRefusesOwnProcess(t *testing.T) {
	h := fakeHost(t)
	c, err := h.create("/own")
	if err != nil {
		t.Fatal(err)
	}
	procs := filepath.Join(h[0].mount, "own/cgroup.procs")
	if err := os.WriteFile(procs, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := write(procs, "0\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.Kill(); err != nil {
		t.Errorf("Kill of nothing but a foreign process: %v", err)
	}
	if err := os.Truncate(procs, 0); err != nil {
		t.Fatal(err)
	}
	c.dirs = c.dirs[:1]
	if err := c.Enter(os.Getpid()); err != nil {
		t.Fatal(err)
	}
	if err := c.Kill(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Kill of the own process: %v, want ErrFailedPrecondition", err)
	}
	if err := c.Enter(0); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Enter(0): %v, want ErrInvalidArgument", err)
	}
}
