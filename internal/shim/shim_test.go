package shim

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bootstrapapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	runcoptions "github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"bulkhead.dev/bulkhead/internal/config"
	"bulkhead.dev/bulkhead/internal/vmm/jail"
)

// asShim makes a process of the test's binary be the shim, as the shim starts itself.
const asShim = "BULKHEAD_TEST_AS_SHIM"

func TestMain(m *testing.M) {
	jail.Main()
	if os.Getenv(asShim) != "" {
		if err := Run(context.Background(), os.Args[1:], os.Stdin, os.Stdout); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestBootstrap(t *testing.T) {
	dir := "/run/x/s"
	options := &anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: marshal(t, &runtimeoptions.Options{ConfigPath: "/etc/x.toml"})}
	params := &bootstrapapi.BootstrapParams{
		InstanceID: "c1", Namespace: "ns", LogLevel: bootstrapapi.LogLevel_LOG_LEVEL_DEBUG, SocketDir: &dir,
		ContainerdTtrpcAddress: "/run/c.ttrpc", ContainerdGrpcAddress: "/run/c.sock", ContainerdBinary: "/bin/containerd",
	}
	if err := params.AddExtension(options); err != nil {
		t.Fatal(err)
	}
	// An Any whose value is valid text reads as parameters of another ID.
	ambiguous := &anypb.Any{TypeUrl: "runtimeoptions.v1.Options", Value: []byte("plain text")}
	given := arguments{id: "c1", namespace: "flag", address: "/flag", ttrpcAddress: "/env"}
	told := arguments{id: "c1", namespace: "ns", address: "/run/c.sock", ttrpcAddress: "/run/c.ttrpc", publishBinary: "/bin/containerd", debug: true}
	for name, c := range map[string]struct {
		input    []byte
		want     bootstrap
		wantArgs arguments
	}{
		"message": {marshal(t, params), bootstrap{modern: true, socketDir: dir, options: options}, told},
		"message without options": {
			marshal(t, &bootstrapapi.BootstrapParams{InstanceID: "c1"}), bootstrap{modern: true, socketDir: defaultSocketDir}, given,
		},
		"options":           {marshal(t, options), bootstrap{socketDir: defaultSocketDir, options: options}, given},
		"ambiguous options": {marshal(t, ambiguous), bootstrap{socketDir: defaultSocketDir, options: ambiguous}, given},
		"nothing":           {nil, bootstrap{socketDir: defaultSocketDir}, given},
	} {
		t.Run(name, func(t *testing.T) {
			args := given
			got, err := readBootstrap(bytes.NewReader(c.input), &args)
			if err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(got.options, c.want.options) || got.modern != c.want.modern || got.socketDir != c.want.socketDir {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
			if args != c.wantArgs {
				t.Errorf("arguments %+v, want %+v", args, c.wantArgs)
			}
		})
	}
	if _, err := readBootstrap(strings.NewReader("\xff"), &given); !errdefs.IsInvalidArgument(err) {
		t.Errorf("garbage: %v", err)
	}
	if _, err := readBootstrap(bytes.NewReader(make([]byte, maxInput+1)), &given); !errdefs.IsInvalidArgument(err) {
		t.Errorf("too much: %v", err)
	}
}

func TestUnknownExtensionIsNamed(t *testing.T) {
	params := &bootstrapapi.BootstrapParams{InstanceID: "c1"}
	if err := params.AddExtension(&runcoptions.Options{}); err != nil {
		t.Fatal(err)
	}
	bundle := t.TempDir()
	err := start(t.Context(), arguments{id: "c1", namespace: "ns", bundle: bundle}, bytes.NewReader(marshal(t, params)), &bytes.Buffer{})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "containerd.runc.v1.Options") {
		t.Errorf("start: %v", err)
	}
	if entries, _ := os.ReadDir(bundle); len(entries) != 0 {
		t.Errorf("the bundle holds %v", entries)
	}
}

func TestAnswer(t *testing.T) {
	var old, modern bytes.Buffer
	if err := (bootstrap{}).answer(&old, "unix:///s"); err != nil || old.String() != "unix:///s" {
		t.Errorf("older form %q, %v", &old, err)
	}
	if err := (bootstrap{modern: true}).answer(&modern, "unix:///s"); err != nil {
		t.Fatal(err)
	}
	var result bootstrapapi.BootstrapResult
	if err := proto.Unmarshal(modern.Bytes(), &result); err != nil || result.Version != 3 || result.Address != "unix:///s" || result.Protocol != "ttrpc" {
		t.Errorf("result %v, %v", &result, err)
	}
}

func TestGroup(t *testing.T) {
	for name, c := range map[string]struct {
		spec, want string
		err        error
	}{
		"no spec":       {"", "c1", nil},
		"no annotation": {"{}", "c1", nil},
		"of a sandbox":  {`{"annotations":{"io.kubernetes.cri.sandbox-id":"p1"}}`, "p1", nil},
		"a path":        {`{"annotations":{"io.kubernetes.cri.sandbox-id":"../p1"}}`, "", errdefs.ErrInvalidArgument},
		"parent":        {`{"annotations":{"io.kubernetes.cri.sandbox-id":".."}}`, "", errdefs.ErrInvalidArgument},
		"broken":        {`{`, "", errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			bundle := t.TempDir()
			if c.spec != "" {
				if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(c.spec), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := groupOf(arguments{id: "c1", bundle: bundle})
			if got != c.want || !errors.Is(err, c.err) {
				t.Errorf("got %q, %v; want %q, %v", got, err, c.want, c.err)
			}
		})
	}
}

func TestListen(t *testing.T) {
	address := socketAddress(filepath.Join(t.TempDir(), "s"), "/run/containerd.sock", "ns", "c1")
	path := strings.TrimPrefix(address, "unix://")
	l, err := listen(address)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket has mode %v, %v", info.Mode(), err)
	}
	if again, err := listen(address); again != nil || err != nil {
		t.Errorf("a socket that answers: %v, %v; want neither a listener nor an error", again, err)
	}
	l.Close()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("closing removed the socket: %v", err)
	}
	l, err = listen(address) // replaces what a dead shim left
	if err != nil || l == nil {
		t.Fatalf("stale socket: %v, %v", l, err)
	}
	l.Close()
	if err := removeSocket(address); err != nil {
		t.Error(err)
	}
	if err := removeSocket(address); err != nil {
		t.Errorf("no socket: %v", err)
	}
	if answers(address) {
		t.Error("nobody answers")
	}
}

func TestSocketAddressesDiffer(t *testing.T) {
	seen := map[string]bool{}
	for _, parts := range [][3]string{{"a", "b", "c"}, {"a2", "b", "c"}, {"a", "b2", "c"}, {"a", "b", "c2"}} {
		seen[socketAddress("/run/containerd/s", parts[0], parts[1], parts[2])] = true
	}
	if len(seen) != 4 {
		t.Errorf("addresses %v", seen)
	}
	for a := range seen {
		if path := strings.TrimPrefix(a, "unix://"); len(path) > 107 {
			t.Errorf("path %s has %d bytes", path, len(path))
		}
	}
}

func TestInfo(t *testing.T) {
	options := &anypb.Any{TypeUrl: "runtimeoptions.v1.Options"}
	for name, c := range map[string]struct {
		input []byte
		err   error
	}{
		"nothing": {nil, nil},
		"options": {marshal(t, options), nil},
		"another": {marshal(t, &anypb.Any{TypeUrl: "containerd.runc.v1.Options"}), errdefs.ErrInvalidArgument},
		"garbage": {[]byte("\xff"), errdefs.ErrInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := Run(t.Context(), []string{"-info"}, bytes.NewReader(c.input), &out); !errors.Is(err, c.err) {
				t.Fatalf("%v, want %v", err, c.err)
			} else if err != nil {
				return
			}
			var got types.RuntimeInfo
			if err := proto.Unmarshal(out.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			if got.Name != Name || got.Features.GetTypeUrl() != featuresType || got.Annotations[allowMounts] == "" {
				t.Errorf("got %v", &got)
			}
		})
	}
}

func TestArguments(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		err  error
	}{
		"version":        {[]string{"-v"}, nil},
		"no ID":          {[]string{"-namespace", "ns", "start"}, errdefs.ErrInvalidArgument},
		"no namespace":   {[]string{"-id", "c", "start"}, errdefs.ErrInvalidArgument},
		"unknown verb":   {[]string{"-namespace", "ns", "-id", "c", "stop"}, errdefs.ErrInvalidArgument},
		"unknown option": {[]string{"-x"}, errdefs.ErrInvalidArgument},
	} {
		var out bytes.Buffer
		if err := Run(t.Context(), c.args, strings.NewReader(""), &out); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", name, err, c.err)
		}
	}
}

func TestRecordsOfABundle(t *testing.T) {
	bundle := t.TempDir()
	want := sandboxRecord{Version: 1, Dir: "/run/x", Config: config.Default()}
	var got sandboxRecord
	if found, err := readRecord(bundle, sandboxFile, &got); found || err != nil {
		t.Errorf("no record: %v, %v", found, err)
	}
	if err := writeRecord(bundle, sandboxFile, want); err != nil {
		t.Fatal(err)
	}
	if found, err := readRecord(bundle, sandboxFile, &got); !found || err != nil {
		t.Errorf("record: %v, %v", found, err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := os.WriteFile(filepath.Join(bundle, sandboxFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readRecord(bundle, sandboxFile, &got); err == nil {
		t.Error("half a record is read")
	}
	if err := writeRecord(bundle+"/missing", sandboxFile, want); err == nil {
		t.Error("a record is written to nowhere")
	}
}

// TestDirectoryOfASandboxThatDidNotStart goes, unless it holds what a later clean-up needs.
func TestDirectoryOfASandboxThatDidNotStart(t *testing.T) {
	for name, c := range map[string]struct {
		file string
		kept bool
	}{
		"all was undone":    {"qmp.sock", false},
		"something is left": {"sandbox.json", true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "s")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, c.file)
			if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := discardDir(dir); err != nil {
					t.Fatal(err)
				}
			}
			want := error(nil)
			if !c.kept {
				want = os.ErrNotExist
			}
			if _, err := os.Stat(file); !errors.Is(err, want) {
				t.Errorf("afterwards: %v, want %v", err, want)
			}
		})
	}
}

func TestContainerOfADeadSandbox(t *testing.T) {
	bundle := filepath.Join(t.TempDir(), "c1")
	if err := os.Mkdir(bundle, 0o700); err != nil {
		t.Fatal(err)
	}
	spec := `{"annotations":{"io.kubernetes.cri.sandbox-id":"p1","io.kubernetes.cri.container-type":"container"}}`
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	a := arguments{id: "c1", namespace: "ns", bundle: bundle}
	if err := start(t.Context(), a, strings.NewReader(""), &bytes.Buffer{}); !errdefs.IsNotFound(err) {
		t.Errorf("start: %v", err)
	}
	// With its sandbox's address in the sibling bundle it is found.
	sibling := filepath.Join(filepath.Dir(bundle), "p1")
	if err := os.Mkdir(sibling, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := writeFile(sibling, addressFile, []byte("unix://"+path)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := start(t.Context(), a, strings.NewReader(""), &out); err != nil || out.String() != "unix://"+path {
		t.Errorf("start: %q, %v", &out, err)
	}
}
