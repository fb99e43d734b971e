package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
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
{"Action":"output","Package":"` + p + `","Output":"main_test.go: left behind: a file\n"}
{"Action":"output","Package":"` + p + `","Output":"FAIL\n"}
{"Action":"fail","Package":"` + p + `","Elapsed":3.1}
`,
			counts:   "1 passed, 1 failed, 1 skipped",
			wants:    []string{"--- FAIL internal/x TestB", "left behind: a file", "why it failed", "skipped: internal/x TestC: x_test.go:2: no such thing here", "slow:    3.0s internal/x TestB"},
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

// stream makes events of "action test" words, and the package's end.
func stream(pkg string, results ...string) string {
	var b strings.Builder
	end := "pass"
	for _, r := range results {
		action, test, _ := strings.Cut(r, " ")
		fmt.Fprintf(&b, "{\"Action\":%q,\"Package\":%q,\"Test\":%q}\n", action, pkg, test)
		if action == "fail" {
			end = "fail"
		}
	}
	fmt.Fprintf(&b, "{\"Action\":%q,\"Package\":%q}\n", end, pkg)
	return b.String()
}

func TestAgain(t *testing.T) {
	const p = "bulkhead.dev/bulkhead/test/x"
	for _, c := range []struct {
		name          string
		first, second string
		failures      []string // what is to be run again
		counts        string
		flaky         []string
	}{
		{
			name:  "a test that passes then is flaky, the others stay",
			first: stream(p, "pass TestA", "fail TestB", "skip TestC", "fail TestD"), second: stream(p, "pass TestB", "fail TestD"),
			failures: []string{"TestB", "TestD"}, counts: "2 passed, 1 failed, 1 skipped, 1 flaky", flaky: []string{"test/x TestB"},
		},
		{
			name:  "subtests",
			first: stream(p, "pass TestA/one", "fail TestA/two", "fail TestA"), second: stream(p, "pass TestA/one", "pass TestA/two", "pass TestA"),
			failures: []string{"TestA"}, counts: "3 passed, 0 failed, 0 skipped, 2 flaky", flaky: []string{"test/x TestA/two", "test/x TestA"},
		},
		{
			name:  "subtests that the first run didn't come to are counted",
			first: stream(p, "fail TestA"), second: stream(p, "pass TestA/one", "skip TestA/two", "fail TestA/three", "fail TestA"),
			failures: []string{"TestA"}, counts: "1 passed, 2 failed, 1 skipped",
		},
		{
			name:  "what fails only the second time has failed",
			first: stream(p, "pass TestA/one", "fail TestA/two", "fail TestA"), second: stream(p, "fail TestA/one", "pass TestA/two", "fail TestA"),
			failures: []string{"TestA"}, counts: "1 passed, 2 failed, 0 skipped, 1 flaky", flaky: []string{"test/x TestA/two"},
		},
		{
			name: "a skip the second time is no pass", first: stream(p, "fail TestA"), second: stream(p, "skip TestA"),
			failures: []string{"TestA"}, counts: "0 passed, 1 failed, 0 skipped",
		},
		{
			name: "TestMain that fails after the tests the second time", first: stream(p, "fail TestA"),
			second:   strings.Replace(stream(p, "pass TestA"), `{"Action":"pass","Package":"`+p+`"}`, `{"Action":"fail","Package":"`+p+`"}`, 1),
			failures: []string{"TestA"}, counts: "1 passed, 1 failed, 0 skipped, 1 flaky", flaky: []string{"test/x TestA"},
		},
		{
			name:  "nothing to run again where the package failed without a test",
			first: `{"Action":"fail","Package":"` + p + `"}` + "\n", counts: "0 passed, 1 failed, 0 skipped",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			first, second := &report{Out: &out, Slow: time.Second}, &report{Out: io.Discard, Slow: time.Second}
			for r, stream := range map[*report]string{first: c.first, second: c.second} {
				if err := r.read(strings.NewReader(stream)); err != nil {
					t.Fatal(err)
				}
			}
			var want []failure
			if c.failures != nil {
				want = []failure{{p, c.failures}}
			}
			if diff := cmp.Diff(want, first.failures()); diff != "" {
				t.Errorf("failures (-want +got):\n%s", diff)
			}
			first.correct(second)
			total := &report{Out: &out}
			total.add(first)
			total.summarize()
			if total.counts() != c.counts {
				t.Errorf("counts = %q; want %q", total.counts(), c.counts)
			}
			for _, test := range c.flaky {
				if !strings.Contains(out.String(), "FLAKY "+test+":") {
					t.Errorf("it doesn't say that %s is flaky:\n%s", test, out.String())
				}
			}
			if got := strings.Count(out.String(), "FLAKY"); got != len(c.flaky) {
				t.Errorf("%d are said to be flaky; want %d:\n%s", got, len(c.flaky), out.String())
			}
		})
	}
}

// The tier itself runs what failed again, and by name: a module whose test fails the first time only.
func TestTierRunsAgain(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"go.mod": "module bulkhead.dev/bulkhead/x\n\ngo 1.26\n",
		"x_test.go": `//go:build e2e

package x

import (
	"os"
	"testing"
)

func TestOnce(t *testing.T) {
	file, err := os.OpenFile("once", os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		file.Close()
		t.Error("the first time")
	}
}

func TestAlways(t *testing.T) {
	file, err := os.OpenFile("runs", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	file.WriteString("x")
}
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	e2e, _ := tierNamed("e2e")
	e2e.Ready = func(environment) error { return nil }
	r := &report{Out: &out, Slow: time.Minute}
	if err := e2e.run(environment{Modules: []string{dir}, Stderr: io.Discard}, 0, r); err != nil {
		t.Fatal(err)
	}
	if want := "2 passed, 0 failed, 0 skipped, 1 flaky"; r.counts() != want {
		t.Errorf("counts = %q; want %q:\n%s", r.counts(), want, out.String())
	}
	if runs, err := os.ReadFile(filepath.Join(dir, "runs")); err != nil || string(runs) != "x" {
		t.Errorf("the test that passed ran %q times (%v)", runs, err)
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
		{"//go:build vm || e2e", false, true},
		{"//go:build e2e", false, false},
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

func TestSlowness(t *testing.T) {
	for comment, want := range map[string]int{
		"":                              1,
		"// FuzzIt is slow.":            1,
		"//testtier:slow 40":            40,
		"// FuzzIt.\n//testtier:slow 4": 4,
		"//testtier:slow many":          0,
		"//testtier:slow 0":             0,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "x.go", "package x\n\n"+comment+"\nfunc FuzzIt() {}\n", parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		got, err := slowness(file.Decls[0].(*ast.FuncDecl))
		if got != want || (err != nil) != (want == 0) {
			t.Errorf("%q: %d, %v", comment, got, err)
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
	for _, args := range [][]string{{}, {"everything"}, {"-nonsense"}} {
		var out, errOut bytes.Buffer
		if code := run(args, &out, &errOut); code != 2 || errOut.Len() == 0 {
			t.Errorf("run(%q) = %d, %q", args, code, errOut.String())
		}
	}
}
