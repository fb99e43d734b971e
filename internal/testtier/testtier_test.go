package main

import (
	"bytes"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestReport(t *testing.T) {
	const p = "bulkhead.dev/bulkhead/internal/x"
	for _, c := range []struct {
		name, stream string
		counts       string
		wants        []string // in what is printed
		wantsNot     []string
	}{
		{
			name: "pass, fail and skip",
			stream: `{"Action":"start","Package":"` + p + `"}
{"Action":"run","Package":"` + p + `","Test":"TestA"}
{"Action":"output","Package":"` + p + `","Test":"TestA","Output":"secret of the passed\n"}
{"Action":"pass","Package":"` + p + `","Test":"TestA","Elapsed":0.01}
{"Action":"output","Package":"` + p + `","Test":"TestB","Output":"    x_test.go:1: why it failed\n"}
{"Action":"fail","Package":"` + p + `","Test":"TestB","Elapsed":3}
{"Action":"output","Package":"` + p + `","Test":"TestC","Output":"=== RUN   TestC\n"}
{"Action":"output","Package":"` + p + `","Test":"TestC","Output":"    x_test.go:2: no such thing here\n"}
{"Action":"skip","Package":"` + p + `","Test":"TestC"}
{"Action":"output","Package":"` + p + `","Output":"FAIL\n"}
{"Action":"fail","Package":"` + p + `","Elapsed":3.1}
`,
			counts:   "1 passed, 1 failed, 1 skipped",
			wants:    []string{"--- FAIL internal/x TestB", "why it failed", "skipped: internal/x TestC: x_test.go:2: no such thing here", "slow:    3.0s internal/x TestB"},
			wantsNot: []string{"secret of the passed"},
		},
		{
			name: "does not build",
			stream: `{"ImportPath":"` + p + ` [` + p + `.test]","Action":"build-output","Output":"x.go:1: syntax error\n"}
{"ImportPath":"` + p + ` [` + p + `.test]","Action":"build-fail"}
{"Action":"start","Package":"` + p + `"}
{"Action":"output","Package":"` + p + `","Output":"FAIL [build failed]\n"}
{"Action":"fail","Package":"` + p + `","FailedBuild":"` + p + ` [` + p + `.test]"}
`,
			counts: "0 passed, 1 failed, 0 skipped",
			wants:  []string{"--- FAIL internal/x", "x.go:1: syntax error"},
		},
		{
			name: "dies in the middle of a test",
			stream: `{"Action":"run","Package":"` + p + `","Test":"TestA"}
{"Action":"output","Package":"` + p + `","Test":"TestA","Output":"panic: the reason\n"}
{"Action":"fail","Package":"` + p + `","Elapsed":1}
`,
			counts: "0 passed, 1 failed, 0 skipped",
			wants:  []string{"panic: the reason"},
		},
		{
			name: "no tests", stream: `{"Action":"output","Package":"` + p + `","Output":"? x [no test files]\n"}
{"Action":"skip","Package":"` + p + `","Elapsed":0}
`,
			counts: "0 passed, 0 failed, 0 skipped", wantsNot: []string{"internal/x"},
		},
		{
			name: "fuzzed", stream: `{"Action":"output","Package":"` + p + `","Test":"FuzzA","Output":"fuzz: elapsed: 5s\n"}
{"Action":"pass","Package":"` + p + `","Test":"FuzzA","Elapsed":5}
{"Action":"pass","Package":"` + p + `","Elapsed":5}
`,
			counts: "1 passed, 0 failed, 0 skipped",
		},
		{name: "what the go command says", stream: "go: downloading something\n", counts: "0 passed, 0 failed, 0 skipped", wants: []string{"go: downloading something"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			r := &report{Out: &out, Slow: time.Second}
			if err := r.read(strings.NewReader(c.stream)); err != nil {
				t.Fatal(err)
			}
			r.summarize()
			if r.counts() != c.counts {
				t.Errorf("counts = %q; want %q", r.counts(), c.counts)
			}
			for _, want := range c.wants {
				if !strings.Contains(out.String(), want) {
					t.Errorf("it doesn't say %q:\n%s", want, out.String())
				}
			}
			for _, not := range c.wantsNot {
				if strings.Contains(out.String(), not) {
					t.Errorf("it says %q:\n%s", not, out.String())
				}
			}
		})
	}
}

func TestAddedBy(t *testing.T) {
	for _, c := range []struct {
		constraint string
		root, vm   bool
	}{
		{"//go:build root", true, false},
		{"//go:build vm", false, true},
		{"//go:build root || vm", true, true},
		{"//go:build linux && root", true, false},
		{"//go:build linux", false, false},
		{"//go:build !root", false, false},
		{"// A comment about go:build.", false, false},
		{"", false, false},
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "x.go", c.constraint+"\n\npackage x\n\n//go:build root\n", parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		if got := addedBy(file, "root"); got != c.root {
			t.Errorf("%q: added by root = %v", c.constraint, got)
		}
		if got := addedBy(file, "vm"); got != c.vm {
			t.Errorf("%q: added by vm = %v", c.constraint, got)
		}
	}
}

func TestFunctions(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"a_test.go": "package x\n\nfunc TestUnit() {}\nfunc FuzzIt() {}\nfunc TestMain() {}\n",
		"b_test.go": "//go:build root\n\npackage x\n\nfunc TestRoot() {}\nfunc (t T) TestMethod() {}\nfunc helper() {}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := goPackage{Dir: dir, TestGoFiles: []string{"a_test.go"}, XTestGoFiles: []string{"b_test.go"}}
	for _, c := range []struct {
		prefix, tag string
		want        []string
	}{
		{"Test", "root", []string{"TestRoot"}},
		{"Test", "vm", nil},
		{"Fuzz", "", []string{"FuzzIt"}},
	} {
		got, err := p.functions(c.prefix, c.tag)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("functions(%q, %q) (-want +got):\n%s", c.prefix, c.tag, diff)
		}
	}
}

// A tier that can't run has failed; it is not passed over.
func TestTierThatCannotRun(t *testing.T) {
	var out, errOut bytes.Buffer
	code := run([]string{"-bin", t.TempDir(), "-guest", t.TempDir(), "vm"}, &out, &errOut)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if code != 1 || lines[len(lines)-1] != "0 passed, 1 failed, 0 skipped" || !strings.Contains(out.String(), "tier vm can't run") {
		t.Errorf("exit status %d, output:\n%s", code, out.String())
	}
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{{}, {"e2e"}, {"-nonsense"}} {
		var out, errOut bytes.Buffer
		if code := run(args, &out, &errOut); code != 2 || errOut.Len() == 0 {
			t.Errorf("run(%q) = %d, %q", args, code, errOut.String())
		}
	}
}
