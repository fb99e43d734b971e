package multicall

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// echo is a program that says its name and arguments and returns code.
func echo(name, module string, code int) Program {
	return Program{Name: name, Module: module, Run: func(args []string, stdout, _ io.Writer) int {
		fmt.Fprintf(stdout, "%s %q\n", name, args)
		return code
	}}
}

func TestMainPicksTheProgram(t *testing.T) {
	programs := []Program{echo("etcd", "", 0), echo("kubectl", "", 0), echo("kubelet", "", 7)}
	const self = "/usr/bin/bulkhead-kube"
	for _, c := range []struct {
		name   string
		argv   []string
		code   int
		stdout string   // all of it
		stderr []string // parts of it
	}{
		{name: "by the first argument", argv: []string{self, "etcd", "--name", "a"}, stdout: `etcd ["--name" "a"]` + "\n"},
		{name: "the exit code is the program's", argv: []string{self, "kubelet"}, code: 7, stdout: "kubelet []\n"},
		{name: "by the name it is called by", argv: []string{"/opt/bin/kubectl", "get", "pods"}, stdout: `kubectl ["get" "pods"]` + "\n"},
		{name: "a program's own version and help", argv: []string{"kubectl", "version"}, stdout: `kubectl ["version"]` + "\n"},
		{name: "a program named like another's argument", argv: []string{"kubectl", "etcd"}, stdout: `kubectl ["etcd"]` + "\n"},
		{name: "another name of the binary", argv: []string{"./kube", "etcd"}, stdout: "etcd []\n"},
		{name: "none asked for", argv: []string{self}, code: 2, stderr: []string{"usage: bulkhead-kube PROGRAM", "etcd, kubectl, kubelet"}},
		{name: "no command line at all", argv: nil, code: 2, stderr: []string{"usage:"}},
		{
			name: "one that there isn't", argv: []string{self, "etcdctl"}, code: 2,
			stderr: []string{`bulkhead-kube: there is no program "etcdctl"`, "etcd, kubectl, kubelet"},
		},
		{name: "the program's name is exact", argv: []string{self, "Etcd"}, code: 2, stderr: []string{`"Etcd"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := Main(programs, c.argv, nil, &stdout, &stderr); code != c.code {
				t.Errorf("exit code %d; want %d", code, c.code)
			}
			if stdout.String() != c.stdout {
				t.Errorf("stdout is %q; want %q", stdout.String(), c.stdout)
			}
			for _, want := range c.stderr {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("stderr doesn't say %q: %s", want, stderr.String())
				}
			}
			if len(c.stderr) == 0 && stderr.Len() > 0 {
				t.Errorf("stderr says %s", stderr.String())
			}
		})
	}
}

func TestHelp(t *testing.T) {
	for _, word := range []string{"help", "--help", "-h"} {
		var stdout, stderr bytes.Buffer
		code := Main([]Program{echo("etcd", "", 0)}, []string{"bulkhead-kube", word}, nil, &stdout, &stderr)
		if code != 0 || !strings.Contains(stdout.String(), "usage: bulkhead-kube PROGRAM") || stderr.Len() > 0 {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", word, code, stdout.String(), stderr.String())
		}
	}
}

func TestVersion(t *testing.T) {
	programs := []Program{
		echo("etcd", "go.etcd.io/etcd/server/v3", 0), echo("coredns", "github.com/coredns/coredns", 0),
		echo("registry", "", 0), echo("stranger", "example.org/not/linked", 0),
	}
	info := &debug.BuildInfo{
		Main: debug.Module{Path: "bulkhead.dev/bulkhead/kube", Version: "v0.3.0"},
		Deps: []*debug.Module{
			{Path: "github.com/coredns/coredns", Version: "v1.15.0"},
			{Path: "go.etcd.io/etcd/server/v3", Version: "v3.7.0", Replace: &debug.Module{Path: "go.etcd.io/etcd/server/v3", Version: "v3.6.16"}},
		},
	}
	for _, c := range []struct {
		name string
		info *debug.BuildInfo
		want Versions
	}{
		{"modules, one of them replaced", info, Versions{
			Version:  "v0.3.0",
			Programs: map[string]string{"etcd": "v3.6.16", "coredns": "v1.15.0", "registry": "v0.3.0", "stranger": "(devel)"},
		}},
		{"no build information", nil, Versions{
			Version:  "(devel)",
			Programs: map[string]string{"etcd": "(devel)", "coredns": "(devel)", "registry": "(devel)", "stranger": "(devel)"},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := Main(programs, []string{"bulkhead-kube", "version", "-o", "json"}, c.info, &stdout, &stderr); code != 0 {
				t.Fatalf("exit code %d: %s", code, stderr.String())
			}
			var got Versions
			if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
				t.Fatal(err)
			}
			c.want.GoVersion, c.want.Platform = runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	var stdout bytes.Buffer
	if code := Main(programs, []string{"bulkhead-kube", "version"}, info, &stdout, io.Discard); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if lines := strings.Split(stdout.String(), "\n"); len(lines) != 6 || strings.Join(strings.Fields(lines[1]), " ") != "etcd v3.6.16" {
		t.Errorf("as text:\n%s", stdout.String())
	}
}

func TestVersionRefuses(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-o", "yaml"}, `no format "yaml"`},
		{[]string{"etcd"}, `no argument, but there is "etcd"`},
		{[]string{"-x"}, "-x"},
	} {
		var stdout, stderr bytes.Buffer
		code := Main(nil, append([]string{"bulkhead-kube", "version"}, c.args...), nil, &stdout, &stderr)
		if code != 2 || stdout.Len() > 0 || !strings.Contains(stderr.String(), c.want) {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q", c.args, code, stdout.String(), stderr.String())
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left") }

func TestVersionSaysThatItCantBeWritten(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var stderr bytes.Buffer
		code := Main(nil, []string{"bulkhead-kube", "version", "-o", format}, nil, full{}, &stderr)
		if code != 1 || !strings.Contains(stderr.String(), "no space left") {
			t.Errorf("%s: exit code %d, stderr %q", format, code, stderr.String())
		}
	}
}
