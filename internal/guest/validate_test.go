package guest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestValidID(t *testing.T) {
	for id, want := range map[string]bool{
		"a": true, "0123456789abcdef": true, "A.b_c-d+e": true, strings.Repeat("x", 128): true,
		"": false, ".": false, "..": false, ".a": false, "-rf": false, "a/b": false, "a b": false, "a\x00": false, "ä": false,
		strings.Repeat("x", 129): false,
	} {
		if got := validID(id); got != want {
			t.Errorf("%q: %v", id, got)
		}
	}
}

func TestSysctlPath(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward":            "net/ipv4/ip_forward",
		"net/ipv4/ip_forward":            "net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/1.rp_filter": "net/ipv4/conf/eth0.1/rp_filter",
		"net/ipv4/conf/eth0.1/rp_filter": "net/ipv4/conf/eth0.1/rp_filter",
	} {
		if got, err := sysctlPath(name); err != nil || got != want {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"", ".", "..", "kernel", "net..x", ".net.x", "net.x.", "net/../x", "/net/x", "../x", "a//b", "a.b\x00", "net./../x", strings.Repeat("a.", 200) + "b"} {
		if got, err := sysctlPath(name); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
}

func FuzzSysctlPath(f *testing.F) {
	f.Add("net.ipv4.conf.eth0/1.rp_filter")
	f.Add("a/../b")
	f.Fuzz(func(t *testing.T, name string) {
		path, err := sysctlPath(name)
		if err == nil && (!filepath.IsLocal(path) || filepath.Clean(path) != path) {
			t.Errorf("%q leads to %q", name, path)
		}
	})
}

func TestSetSysctls(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "sys")
	if err := os.MkdirAll(filepath.Join(root, "net/ipv4"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{filepath.Join(root, "net/ipv4/ip_forward"): "0", filepath.Join(dir, "secret"): "s"} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../../../secret", filepath.Join(root, "net/ipv4/link")); err != nil {
		t.Fatal(err)
	}
	if err := setSysctls(root, map[string]string{"net.ipv4.ip_forward": "1"}); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(filepath.Join(root, "net/ipv4/ip_forward")); string(b) != "1" {
		t.Errorf("ip_forward = %q", b)
	}
	if err := setSysctls(root, map[string]string{"net.ipv4.missing": "1"}); !errdefs.IsNotFound(err) {
		t.Errorf("missing: %v", err)
	}
	for _, name := range []string{"net.ipv4.link", "../secret", "net/../../secret"} {
		if err := setSysctls(root, map[string]string{name: "x"}); err == nil {
			t.Errorf("%q: no error", name)
		}
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "secret")); string(b) != "s" {
		t.Error("a sysctl's name led out of the root")
	}
}

func TestMountOptions(t *testing.T) {
	flags, data, err := mountOptions([]string{"rbind", "ro", "nosuid", "size=1m", "mode=1777"})
	if err != nil || flags != 3 || data != "size=1m,mode=1777" {
		t.Errorf("%#x, %q, %v", flags, data, err)
	}
	for _, o := range []string{"shared", "size", "size=1,upperdir=/x", "lowerdir=/", "context=x", ""} {
		if _, _, err := mountOptions([]string{o}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", o, err)
		}
	}
}

func TestModulesList(t *testing.T) {
	channel, rest, err := parseModulesList([]byte("/lib/a.ko\n\n# comment\n /lib/virtio-console.ko \n/lib/b.ko\n"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]string{{"/lib/a.ko", "/lib/virtio-console.ko"}, {"/lib/b.ko"}}, [][]string{channel, rest}); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if _, _, err := parseModulesList([]byte("a.ko\n")); err == nil {
		t.Error("a relative path is taken")
	}
}

func TestParseAddress(t *testing.T) {
	for address, want := range map[string]int{"scsi:0": 0, "scsi:255": 255, "scsi:16383": 16383} {
		if got, err := parseAddress(address); err != nil || got != want {
			t.Errorf("%q: %d, %v", address, got, err)
		}
	}
	for _, address := range []string{"", "scsi:", "scsi:-1", "scsi:01", "scsi:16384", "scsi:*", "scsi:1/..", "virtio:1", "1"} {
		if _, err := parseAddress(address); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func TestFindNode(t *testing.T) {
	s := scsi{sys: t.TempDir(), dev: t.TempDir()}
	if _, err := s.node(3); !errdefs.IsNotFound(err) {
		t.Errorf("no device: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(s.sys, "bus/scsi/devices/2:0:0:3/block/sdx"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := s.node(3); !errdefs.IsNotFound(err) {
		t.Errorf("no node: %v", err)
	}
	node := filepath.Join(s.dev, "sdx")
	if err := os.WriteFile(node, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := s.node(3); err != nil || got != node {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := s.node(33); !errdefs.IsNotFound(err) {
		t.Errorf("another LUN: %v", err)
	}
}

func TestMeminfo(t *testing.T) {
	total, available := parseMeminfo([]byte("MemTotal:         157816 kB\nMemFree:          118632 kB\nMemAvailable:     124244 kB\nx\n"))
	if total != 157816<<10 || available != 124244<<10 {
		t.Errorf("%d, %d", total, available)
	}
}

func TestRuntimeMessages(t *testing.T) {
	for message, class := range map[string]error{
		"executable file `nonesuch` not found in $PATH: No such file or directory": errdefs.ErrNotFound,
		"chdir `/nonesuch`: No such file or directory":                             errdefs.ErrInvalidArgument,
		"open executable: Permission denied":                                       errdefs.ErrPermissionDenied,
		"setresuid(4294967295): Invalid argument":                                  errdefs.ErrInvalidArgument,
		"container `x` is not running":                                             errdefs.ErrFailedPrecondition,
		"mount `tmpfs` to `/x`: Cannot allocate memory":                            errdefs.ErrUnknown,
	} {
		if got := classOf(message); !errors.Is(got, class) {
			t.Errorf("%q: %v", message, got)
		}
	}
	log := `{"msg":"first","level":"error"}
{"msg":"the error","level":"error","time":"t"}
{"msg":"a warning","level":"warning"}
not json
`
	if got := lastMessage([]byte(log)); got != "the error" {
		t.Errorf("%q", got)
	}
	if got := lastMessage([]byte(`{"msg":"only","level":"warning"}`)); got != "only" {
		t.Errorf("%q", got)
	}
}

func FuzzLastMessage(f *testing.F) {
	f.Add([]byte(`{"msg":"a","level":"error"}`))
	f.Fuzz(func(t *testing.T, b []byte) { lastMessage(b) })
}
