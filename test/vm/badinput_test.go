//go:build vm

package vm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/test/cell"
	"bulkhead.dev/bulkhead/test/kit"
)

// refused creates and starts a plain container that can't be, and checks the error that containerd's client sees.
func refused(t *testing.T, spec kit.Spec, names ...string) {
	t.Helper()
	ctx := checked(t)
	spec.Runtime = suite.runtime
	c, err := suite.node.Launch(ctx, spec)
	if err == nil {
		remove(t, c)
	}
	clearError(t, err, c, names...)
	if n := strings.Count(err.Error(), "\n"); n > 100 {
		t.Errorf("the error has %d lines", n)
	}
}

// TestBadConfiguration has a shim start with a configuration of the runtime, or a guest image, that can't work.
func TestBadConfiguration(t *testing.T) {
	onlyVM(t, "it has no such configuration")
	garbage := filepath.Join(t.TempDir(), "garbage")
	writeFile(t, garbage, strings.Repeat("this is no kernel\n", 1000))
	if err := os.Chmod(filepath.Dir(garbage), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		overrides map[string]string
		names     []string
	}{
		"missing kernel":      {map[string]string{"guest.kernel": `"/nowhere/kernel"`}, []string{"/nowhere/kernel"}},
		"missing initramfs":   {map[string]string{"guest.initramfs": `"/nowhere/initramfs"`}, []string{"/nowhere/initramfs"}},
		"corrupt kernel":      {map[string]string{"guest.kernel": quote(garbage), "guest.boot_timeout": `"20s"`}, nil},
		"corrupt initramfs":   {map[string]string{"guest.initramfs": quote(garbage), "guest.boot_timeout": `"20s"`}, nil},
		"VMM not installed":   {map[string]string{"vmm.binary": `"/nowhere/qemu"`}, []string{"/nowhere/qemu"}},
		"unknown key":         {map[string]string{"guest.colour": `"red"`}, []string{"colour", "runtime.toml:"}},
		"unknown version":     {map[string]string{"version": "99"}, []string{"99"}},
		"value out of range":  {map[string]string{"guest.boot_timeout": `"soon"`}, []string{"boot_timeout", "soon"}},
		"no agent":            {map[string]string{"guest.kernel_args": `["rdinit=/nothing"]`, "guest.boot_timeout": `"20s"`}, nil},
		"boot takes too long": {map[string]string{"guest.boot_timeout": `"1s"`}, []string{"1s"}},
	} {
		t.Run(name, func(t *testing.T) {
			configure(t, test.overrides)
			refused(t, kit.Spec{}, test.names...)
		})
	}
	t.Run("syntax", func(t *testing.T) {
		restore, err := suite.node.Configure("version = \n")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { restoreConfig(t, restore) })
		refused(t, kit.Spec{}, "runtime.toml:1")
	})
}

func quote(s string) string { return `"` + s + `"` }

// configure changes the runtime's configuration for the test.
func configure(t *testing.T, overrides map[string]string) {
	t.Helper()
	restore, err := suite.node.Configure(suite.node.RuntimeConfig(overrides))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { restoreConfig(t, restore) })
}

func restoreConfig(t *testing.T, restore func() error) {
	if err := restore(); err != nil {
		t.Error(err)
	}
}

func TestBadSandbox(t *testing.T) {
	onlyVM(t, "runc has no sandbox to size")
	annotations := func(key, value string) kit.Spec {
		return kit.Spec{Options: []oci.SpecOpts{func(_ context.Context, _ oci.Client, c *container, s *oci.Spec) error {
			s.Annotations = map[string]string{
				"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": c.ID, key: value,
			}
			return nil
		}}}
	}
	for name, test := range map[string]struct {
		spec  kit.Spec
		names []string
	}{
		"memory is no number": {annotations("io.kubernetes.cri.sandbox-memory", "lots"), []string{"sandbox-memory", "lots"}},
		"memory is negative":  {annotations("io.kubernetes.cri.sandbox-memory", "-5"), []string{"sandbox-memory", "-5"}},
		"quota is no number":  {annotations("io.kubernetes.cri.sandbox-cpu-quota", "half"), []string{"sandbox-cpu-quota", "half"}},
	} {
		t.Run(name, func(t *testing.T) { refused(t, test.spec, test.names...) })
	}
}

func TestMissingNetworkNamespace(t *testing.T) {
	refused(t, kit.Spec{Options: []oci.SpecOpts{
		oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: "/run/netns/nowhere"}),
	}}, "/run/netns/nowhere")
}

// TestBadRootFS hands the runtime mounts that no snapshotter would, in the shared pod, and sees that the pod survives them.
func TestBadRootFS(t *testing.T) {
	onlyVM(t, "the kernel refuses them for runc")
	ctx, other := shared(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	writeFile(t, file, strings.Repeat("x", 4096))
	for name, mounts := range map[string][]mount.Mount{
		"layer is a file":   {{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + file + ":" + dir}}},
		"layer is missing":  {{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/nowhere/lower"}}},
		"layer is a device": {{Type: "overlay", Source: "overlay", Options: []string{"lowerdir=/dev/null"}}},
		"disk image":        {{Type: "ext4", Source: file, Options: []string{"loop"}}},
		"unknown type":      {{Type: "nfs", Source: "server:/export"}},
		"file of noise":     {{Type: "erofs", Source: file, Options: []string{"ro", "loop"}}},
	} {
		t.Run(name, func(t *testing.T) {
			id := kit.NewID()
			c, err := suite.node.Client.NewContainer(ctx, id, client.WithRuntime(suite.runtime, nil), client.WithNewSpec(
				oci.WithDefaultSpec(), oci.WithProcessArgs("/bin/true"), oci.WithCgroup("/"+cell.Token()+"/"+id),
				oci.WithAnnotations(map[string]string{
					"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": suite.pod.ID(),
				})))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Delete(ctx)
			task, err := c.NewTask(ctx, nullIO, client.WithRootFS(mounts))
			if err == nil {
				// Some runtimes look at a disk only when it is mounted.
				err = task.Start(ctx)
				_, deleted := task.Delete(ctx, client.WithProcessKill)
				err = errors.Join(err, deleted)
			}
			clearError(t, err, task)
		})
	}
	if got := output(t, exec(t, ctx, other, "/bin/echo", "alive")); got != "alive" {
		t.Errorf("the other container answers %q", got)
	}
}

// TestDiskFull has no room for the conversion of an image's layers.
func TestDiskFull(t *testing.T) {
	onlyVM(t, "runc converts nothing")
	ctx, other := shared(t)
	layers := suite.node.Path("bulkhead/layers")
	if err := unix.Mount("tmpfs", layers, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(layers, 0); err != nil {
			t.Errorf("something still uses the layers of a container that couldn't be: %v", err)
		}
	}()
	c, err := suite.node.Launch(ctx, kit.Spec{Runtime: suite.runtime, Pod: suite.pod})
	if err == nil {
		remove(t, c)
	}
	clearError(t, err, c, "no space left")
	entries, err := os.ReadDir(layers)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil && info.Size() > 64<<10 {
			t.Errorf("%s (%d bytes) was left of the conversion", entry.Name(), info.Size())
		}
	}
	if got := output(t, exec(t, ctx, other, "/bin/echo", "alive")); got != "alive" {
		t.Errorf("the other container answers %q", got)
	}
}

// TestRefusedMounts asks for what can't be given to a VM.
func TestRefusedMounts(t *testing.T) {
	onlyVM(t, "runc can give all of it")
	ctx, _ := shared(t)
	socket := filepath.Join(suite.node.Path("tmp"), "s")
	for name, test := range map[string]struct {
		options []oci.SpecOpts
		names   string
	}{
		"socket":             {[]oci.SpecOpts{oci.WithMounts([]specs.Mount{{Type: "bind", Source: suite.node.Socket(), Destination: "/s", Options: []string{"bind"}}})}, suite.node.Socket()},
		"missing":            {[]oci.SpecOpts{oci.WithMounts([]specs.Mount{{Type: "bind", Source: socket, Destination: "/s", Options: []string{"bind"}}})}, socket},
		"shared propagation": {[]oci.SpecOpts{oci.WithMounts([]specs.Mount{{Type: "bind", Source: t.TempDir(), Destination: "/s", Options: []string{"rbind", "rshared"}}})}, "/s"},
		"hooks":              {[]oci.SpecOpts{change(func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststart: []specs.Hook{{Path: "/bin/true"}}} })}, "hook"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := suite.node.Launch(ctx, kit.Spec{Runtime: suite.runtime, Pod: suite.pod, Options: test.options})
			if err == nil {
				remove(t, c)
			}
			clearError(t, err, c, test.names)
		})
	}
}
