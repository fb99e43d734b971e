//go:build vm

package vm

import (
	"archive/tar"
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead.dev/bulkhead/test/kit"
)

// image imports an image whose lowest layer is the base image's, with the layers on top. It is called before the leak check,
// since containerd keeps an image's snapshots.
func image(t *testing.T, name string, layers ...[]kit.Entry) string {
	t.Helper()
	base, err := kit.BaseLayer(suite.dir + "/testprog")
	if err != nil {
		t.Fatal(err)
	}
	stack := []v1.Layer{base}
	for _, entries := range layers {
		layer, err := kit.Layer(entries...)
		if err != nil {
			t.Fatal(err)
		}
		stack = append(stack, layer)
	}
	reference := "bulkhead.test/" + name + ":1"
	if err := suite.node.Import(testContext(t), reference, kit.BaseConfig(), stack...); err != nil {
		t.Fatal(err)
	}
	return reference
}

func sh(script string) []string { return []string{"/bin/sh", "-c", script} }

// TestHundredLayers stacks as many layers as an image may reasonably have, each of which adds a file, replaces one of the layer
// below and removes one of the layer below.
func TestHundredLayers(t *testing.T) {
	const count = 99 // and the base image's layer
	var layers [][]kit.Entry
	for i := range count {
		entries := []kit.Entry{
			kit.Dir("layers"), kit.File(fmt.Sprintf("layers/own-%d", i), fmt.Sprint(i)), kit.File("layers/top", fmt.Sprint(i)),
			kit.File(fmt.Sprintf("layers/brief-%d", i), "x"),
		}
		if i > 0 {
			entries = append(entries, kit.Whiteout(fmt.Sprintf("layers/brief-%d", i-1)))
		}
		layers = append(layers, entries)
	}
	reference := image(t, "hundred", layers...)
	ctx, _ := shared(t)
	got := output(t, inPod(t, ctx, kit.Spec{Image: reference, Args: sh("cd /layers; cat top; echo; ls own-* | wc -l; ls -d brief-*; cat own-0 own-50 own-98")}))
	if diff := cmp.Diff("98\n99\nbrief-98\n05098", got); diff != "" {
		t.Errorf("what is in the image (-want +got):\n%s", diff)
	}
}

func TestLayers(t *testing.T) {
	reference := image(t, "layers",
		[]kit.Entry{
			kit.Dir("d"), kit.Dir("d/opaque"), kit.File("d/opaque/below", "below"), kit.File("d/gone", "gone"), kit.File("d/kept", "kept"),
			kit.Dir("d/removed"), kit.File("d/removed/child", "x"),
			kit.File("d/one", "linked"), kit.HardLink("d/two", "d/one"), kit.HardLink("d/three", "d/one"),
			kit.Symlink("d/dangling", "nowhere"), kit.File("d/becomes-dir", "file"),
			{Name: "d/fifo", Kind: tar.TypeFifo, Mode: 0o600}, {Name: "d/empty"},
			{Name: "d/suid", Body: []byte("x"), Mode: 0o4755}, {Name: "d/owned", Body: []byte("x"), UID: 1000, GID: 2000, Mode: 0o640},
			{Name: "d/high", Body: []byte("x"), UID: 3_000_000_000, GID: 70_000},
			{Name: "d/attributes", Body: []byte("x"), Xattrs: map[string]string{"user.word": "value", "security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}},
			{Name: "d/sticky", Kind: tar.TypeDir, Mode: 0o1777},
			kit.File("d/"+strings.Repeat("n", 255), "long name"),
			kit.File("d/Ünïcödé \n \"quoted\"", "odd name"),
		},
		[]kit.Entry{
			kit.Dir("d"), kit.Dir("d/opaque"), kit.Opaque("d/opaque"), kit.File("d/opaque/above", "above"), kit.Whiteout("d/gone"),
			kit.Whiteout("d/removed"), kit.Whiteout("d/becomes-dir"),
		},
		[]kit.Entry{
			kit.Dir("d"), kit.Dir("d/removed"), kit.File("d/removed/again", "again"), kit.Dir("d/becomes-dir"), kit.File("d/becomes-dir/in", "in"),
		},
	)
	ctx, _ := shared(t)
	c := launch(t, ctx, kit.Spec{Pod: suite.pod, Image: reference})
	for name, test := range map[string]struct{ script, want string }{
		"opaque directory":       {"ls /d/opaque", "above"},
		"whiteout":               {"ls /d/gone 2>/dev/null; cat /d/kept", "kept"},
		"removed and made again": {"ls /d/removed", "again"},
		"file becomes directory": {"cat /d/becomes-dir/in", "in"},
		"hard links":             {"stat -c %h /d/one; test /d/one -ef /d/three && echo same", "3\nsame"},
		"dangling symlink":       {"readlink /d/dangling", "nowhere"},
		"fifo":                   {"stat -c '%F %a' /d/fifo", "fifo 600"},
		"empty file":             {"stat -c '%F %s' /d/empty", "regular empty file 0"},
		"set-user-id":            {"stat -c %a /d/suid", "4755"},
		"sticky":                 {"stat -c %a /d/sticky", "1777"},
		"owner":                  {"stat -c '%u %g %a' /d/owned /d/high", "1000 2000 640\n3000000000 70000 644"},
		"times":                  {"stat -c %Y /d/owned", "1700000000"},
		"user xattr":             {"testprog xattr /d/attributes user.word", "value"},
		"file capability":        {"testprog xattr /d/attributes security.capability | wc -c", "21"},
		"long name":              {"cat /d/n*", "long name"},
		"odd name":               {"cat /d/Ü*", "odd name"},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, output(t, exec(t, ctx, c, sh(test.script)...))); diff != "" {
				t.Errorf("%s (-want +got):\n%s", test.script, diff)
			}
		})
	}
	// What a container changes, of what is in lower layers too, is its own.
	t.Run("writes", func(t *testing.T) {
		script := "cd /d; echo new > kept; rm one; mv opaque moved; rm -r removed; mkdir removed; echo x > removed/x; chown 5:6 owned; cat kept; ls -d one moved/above removed/* 2>/dev/null; stat -c '%u %g' owned"
		if diff := cmp.Diff("new\nmoved/above\nremoved/x\n5 6", output(t, exec(t, ctx, c, sh(script)...))); diff != "" {
			t.Errorf("after changes (-want +got):\n%s", diff)
		}
		if got := output(t, inPod(t, ctx, kit.Spec{Image: reference, Args: sh("cat /d/kept; ls -d /d/one /d/opaque")})); got != "kept/d/one\n/d/opaque" {
			t.Errorf("another container of the image sees %q", got)
		}
	})
}

// TestLargeFile has a file in a layer whose size, with BULKHEAD_TEST_LONG, needs more than 32 bits.
func TestLargeFile(t *testing.T) {
	size := int64(64<<20 + 12345)
	if os.Getenv("BULKHEAD_TEST_LONG") != "" {
		size += 4 << 30
	}
	reference := image(t, "large", []kit.Entry{{Name: "large", Body: []byte("head"), Zeros: size - 4}, kit.File("after", "after")})
	ctx, _ := shared(t)
	got := output(t, inPod(t, ctx, kit.Spec{Image: reference, Args: sh("stat -c %s /large; head -c 4 /large; tail -c 1000000 /large | sha256sum | cut -c1-64; cat after")}))
	if want := fmt.Sprintf("%d\nhead%x\nafter", size, sha256.Sum256(make([]byte, 1_000_000))); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestReadOnlyRoot(t *testing.T) {
	ctx, _ := shared(t)
	for name, spec := range map[string]kit.Spec{
		"by the spec":     {Options: []oci.SpecOpts{oci.WithRootFSReadonly()}},
		"by the snapshot": {View: true, Options: []oci.SpecOpts{oci.WithRootFSReadonly()}},
	} {
		t.Run(name, func(t *testing.T) {
			spec.Args = sh("echo x > /x; mkdir /y; rm /etc/passwd; ls /x /y; cat /etc/passwd | head -1; mount -o remount,rw /; echo x > /z; ls /z")
			got := inPod(t, ctx, spec)
			if got.Stdout != "root:x:0:0:root:/root:/bin/sh\n" || strings.Count(got.Stderr, "Read-only file system") < 3 {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// TestWriteMuch fills part of the writable layer and reads it back.
func TestWriteMuch(t *testing.T) {
	ctx, _ := shared(t)
	got := output(t, inPod(t, ctx, kit.Spec{Args: sh("testprog pattern 33554432 > /big && sha256sum < /big | cut -d' ' -f1; cp /big /big2 && cmp /big /big2 && sync && echo same")}))
	if want := fmt.Sprintf("%x\nsame", sha256.Sum256(numbered(32<<20))); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// TestErofsSnapshotter uses images that containerd has made itself, where its snapshotter of that kind can be loaded.
func TestErofsSnapshotter(t *testing.T) {
	onlyVM(t, "whether containerd mounts EROFS for runc is not ours to test")
	ctx := checked(t)
	base, err := suite.node.Client.GetImage(ctx, kit.BaseImage)
	if err != nil {
		t.Fatal(err)
	}
	if err := base.Unpack(ctx, "erofs", client.WithUnpackDuplicationSuppressor(nil)); err != nil {
		t.Skipf("containerd can't unpack with its erofs snapshotter here: %v", err)
	}
	result, err := suite.node.Run(ctx, kit.Spec{Runtime: suite.runtime, Snapshotter: "erofs", Args: sh("echo x > /x && cat /x && head -1 /etc/passwd")})
	if err != nil {
		t.Fatal(err)
	}
	if got := output(t, result); got != "x\nroot:x:0:0:root:/root:/bin/sh" {
		t.Errorf("got %q", got)
	}
}

// TestMounts makes mounts of each kind a container may ask for.
func TestMounts(t *testing.T) {
	ctx, _ := shared(t)
	host := t.TempDir()
	writeFile(t, host+"/file", "from the host")
	writeFile(t, host+"/sub/deep", "deep")
	readonly := t.TempDir()
	writeFile(t, readonly+"/file", "kept")
	single := t.TempDir() + "/single"
	writeFile(t, single, "single")
	bind := func(source, target string, options ...string) specs.Mount {
		return specs.Mount{Type: "bind", Source: source, Destination: target, Options: append([]string{"rbind"}, options...)}
	}
	c := launch(t, ctx, kit.Spec{Pod: suite.pod, Options: []oci.SpecOpts{oci.WithMounts([]specs.Mount{
		bind(host, "/mnt/rw", "rw"), bind(readonly, "/mnt/ro", "ro"), bind(single, "/etc/single.conf", "ro"),
		{Type: "tmpfs", Source: "tmpfs", Destination: "/mnt/tmpfs", Options: []string{"nosuid", "noexec", "size=1024k", "mode=1770"}},
	})}})
	for name, test := range map[string]struct{ script, want string }{
		"read":            {"cat /mnt/rw/file /mnt/rw/sub/deep /etc/single.conf", "from the hostdeepsingle"},
		"write":           {"echo guest > /mnt/rw/new && mkdir -p /mnt/rw/a/b && mv /mnt/rw/new /mnt/rw/a/b/moved && chmod 700 /mnt/rw/a && cat /mnt/rw/a/b/moved", "guest"},
		"read-only":       {"echo x > /mnt/ro/file; echo x > /mnt/ro/new; rm /mnt/ro/file; echo x > /etc/single.conf; cat /mnt/ro/file; ls /mnt/ro", "keptfile"},
		"remount refused": {"mount -o remount,rw,bind /mnt/ro 2>/dev/null; echo x > /mnt/ro/file; cat /mnt/ro/file", "kept"},
		"tmpfs":           {"stat -c %a /mnt/tmpfs; df -k /mnt/tmpfs | tail -1 | awk '{print $2}'; dd if=/dev/zero of=/mnt/tmpfs/x bs=1k count=2000 2>/dev/null || echo full; rm -f /mnt/tmpfs/x", "1770\n1024\nfull"},
		"noexec":          {"cp /bin/testprog /mnt/tmpfs/p; /mnt/tmpfs/p exit 0 2>/dev/null; echo $?; rm -f /mnt/tmpfs/p", "126"},
		"no escape":       {"ls /mnt/rw/../../etc/passwd; ls -d /mnt/rw/../..", "/mnt/rw/../../etc/passwd\n/mnt/rw/../.."},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(test.want, output(t, exec(t, ctx, c, sh(test.script+"; true")...))); diff != "" {
				t.Errorf("%s (-want +got):\n%s", test.script, diff)
			}
		})
	}
	if got := readFile(t, host+"/a/b/moved"); got != "guest\n" {
		t.Errorf("the host sees %q in the file the container has written", got)
	}
	if got := readFile(t, readonly+"/file"); got != "kept" {
		t.Errorf("the container has changed a read-only file into %q", got)
	}
	writeFile(t, host+"/later", "later")
	if got := output(t, exec(t, ctx, c, "/bin/cat", "/mnt/rw/later")); got != "later" {
		t.Errorf("a file made later on the host reads %q in the container", got)
	}
}
