package guestimage

import (
	"bytes"
	"debug/elf"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func writeAgent(t *testing.T, spec elfSpec) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(name, elfBytes(spec), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func testOptions(t *testing.T) Options {
	t.Helper()
	return Options{Agent: writeAgent(t, elfSpec{}), KernelPackage: "linux-image-cloud-amd64", Progress: &bytes.Buffer{}}
}

func TestAssemble(t *testing.T) {
	c, err := assemble(t.Context(), testOptions(t), wholeRepository(t))
	if err != nil {
		t.Fatal(err)
	}
	if string(c.kernel) != "the kernel" || c.manifest.KernelVersion != testRelease {
		t.Errorf("kernel %q, version %q", c.kernel, c.manifest.KernelVersion)
	}
	entries, err := unpackInitramfs(c.initramfs)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.name)
		if e.name == "etc/modules.list" {
			list := strings.Fields(string(e.data))
			if list[0] != "/lib/modules/virtio_ring.ko" || list[1] != "/lib/modules/virtio.ko" {
				t.Errorf("the channel's modules don't come first: %v", list)
			}
			if i, j := slices.Index(list, "/lib/modules/extra_dep.ko"), slices.Index(list, "/lib/modules/erofs.ko"); i < 0 || i > j {
				t.Errorf("a dependency comes after what needs it: %v", list)
			}
			for _, m := range c.manifest.Modules {
				if !slices.Contains(list, "/lib/modules/"+m+".ko") {
					t.Errorf("the list lacks %s", m)
				}
			}
		}
		if e.name == "init" && e.mode != unix.S_IFREG|0o755 {
			t.Errorf("init has mode %o", e.mode)
		}
	}
	names = slices.DeleteFunc(names, func(n string) bool { return strings.HasPrefix(n, "lib/modules/") })
	want := []string{
		"dev", "dev/console", "etc", "etc/modules.list", "init", "lib", "lib/modules",
		"lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu/libc.so.6", "lib/x86_64-linux-gnu/libdirect.so.1", "lib/x86_64-linux-gnu/libindirect.so.3",
		"lib64", "lib64/ld-linux-x86-64.so.2", "proc", "root", "run", "sys", "tmp", "usr", "usr/bin", "usr/bin/crun", "var",
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
	for _, unwanted := range []string{"unwanted", "ext4", "rng_core"} {
		if slices.Contains(c.manifest.Modules, unwanted) {
			t.Errorf("module %s is in the image", unwanted)
		}
	}
	again, err := assemble(t.Context(), testOptions(t), wholeRepository(t))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(c.initramfs, again.initramfs) || cmp.Diff(c.manifest, again.manifest) != "" {
		t.Error("two images of the same inputs differ")
	}
}

func TestAssembleErrors(t *testing.T) {
	dir := "lib/modules/" + testRelease + "/kernel/"
	tests := []struct {
		name, want string
		spoil      func(fakePackages, *Options)
	}{
		{"no agent", "read the agent: open /nowhere/agent", func(_ fakePackages, o *Options) { o.Agent = "/nowhere/agent" }},
		{"agent that needs a loader", "is not static: it needs " + testLoader, func(_ fakePackages, o *Options) { o.Agent = writeAgent(t, elfSpec{interpreter: testLoader}) }},
		{"agent of another machine", "the agent is for EM_AARCH64 and the runtime for EM_X86_64", func(_ fakePackages, o *Options) { o.Agent = writeAgent(t, elfSpec{machine: elf.EM_AARCH64}) }},
		{"no such kernel package", "no package linux-image-none", func(_ fakePackages, o *Options) { o.KernelPackage = "linux-image-none" }},
		{"no kernel in it", "has 0 kernels in /boot", func(f fakePackages, _ *Options) {
			delete(f["linux-image-"+testRelease].files, "boot/vmlinuz-"+testRelease)
		}},
		{"module missing", "kernel module fuse is neither built in nor in the package", func(f fakePackages, _ *Options) {
			delete(f["linux-image-"+testRelease].files, dir+"fuse.ko")
		}},
		{"dependency missing", "kernel module erofs → extra_dep is neither", func(f fakePackages, _ *Options) {
			delete(f["linux-image-"+testRelease].files, dir+"extra_dep.ko")
		}},
		{"circle", "depend on each other: erofs → extra_dep → erofs", func(f fakePackages, _ *Options) {
			f["linux-image-"+testRelease].files[dir+"extra_dep.ko"] = module("extra_dep", "erofs")
		}},
		{"module is no ELF file", "kernel/fuse.ko: read as an ELF file", func(f fakePackages, _ *Options) {
			f["linux-image-"+testRelease].files[dir+"fuse.ko"] = "text"
		}},
		{"no modules.builtin", "has no modules.builtin", func(f fakePackages, _ *Options) {
			delete(f["linux-image-"+testRelease].files, "lib/modules/"+testRelease+"/modules.builtin")
		}},
		{"library missing", "crun needs libindirect.so.3, which is in none of the packages", func(f fakePackages, _ *Options) {
			delete(f["libindirect"].files, "usr/lib/x86_64-linux-gnu/libindirect.so.3")
		}},
		{"loader missing", "crun needs lib64/ld-linux-x86-64.so.2", func(f fakePackages, _ *Options) {
			delete(f["libc6"].files, "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			repository, o := wholeRepository(t), testOptions(t)
			tt.spoil(repository, &o)
			_, err := assemble(t.Context(), o, repository)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// installed is an image in a directory of its own.
func installed(t *testing.T) (dir string, c content) {
	t.Helper()
	c, err := assemble(t.Context(), testOptions(t), wholeRepository(t))
	if err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(t.TempDir(), "state", "guest")
	if err := install(dir, c); err != nil {
		t.Fatal(err)
	}
	return dir, c
}

func TestInstallReplacesWhole(t *testing.T) {
	dir, c := installed(t)
	// Something that isn't part of the next image must be gone with the old one.
	if err := os.WriteFile(filepath.Join(dir, "old"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := replaceable(dir); err != nil {
		t.Fatal(err)
	}
	c.kernel = []byte("another kernel")
	c.manifest.Kernel = fileOf(c.kernel)
	if err := install(dir, c); err != nil {
		t.Fatal(err)
	}
	img, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(img.Kernel); err != nil || string(data) != "another kernel" {
		t.Errorf("kernel %q, %v", data, err)
	}
	for parent, want := range map[string][]string{dir: {"initramfs", "kernel", "manifest.json"}, filepath.Dir(dir): {"guest"}} {
		var names []string
		list, err := os.ReadDir(parent)
		for _, e := range list {
			names = append(names, e.Name())
		}
		if diff := cmp.Diff(want, names); err != nil || diff != "" {
			t.Errorf("%s: %v\n%s", parent, err, diff)
		}
	}
	for _, name := range []string{img.Dir, img.Kernel, img.Initramfs} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm()&0o044 != 0o044 {
			t.Errorf("%s: the VMM's user can't read it: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestBuildKeepsForeignDirectories(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.tex"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := Build(t.Context(), Options{Dir: dir, Agent: writeAgent(t, elfSpec{})})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "holds other files") {
		t.Errorf("got %v", err)
	}
	if err := Build(t.Context(), Options{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("without a directory: %v", err)
	}
}
