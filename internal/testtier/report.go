package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// slowest is how many slow tests are named at most, maxOutput how much of one test's output is kept.
const (
	slowest   = 10
	maxOutput = 256 << 10
)

// report counts the results in a stream of go test's JSON events and prints what a reader needs: a line a package, the
// whole output of what failed, why something was skipped, what was slow.
type report struct {
	Out                     io.Writer
	Slow                    time.Duration
	Passed, Failed, Skipped int
	// Flaky are among the passed.
	Flaky int

	output  map[string]*strings.Builder // by package and test
	inside  map[string]*tally           // by package
	results map[result]string           // the action that ended it
	slow    []timed
	skipped []string
	flaky   []string
}

// result names a test or subtest.
type result struct{ Package, Test string }

type tally struct{ passed, failed, skipped int }

type timed struct {
	name string
	took time.Duration
}

// event is one line of `go test -json`, see `go doc test2json`.
type event struct {
	Action, Package, Test, Output string
	ImportPath                    string // of build-output
	FailedBuild                   string
	Elapsed                       float64
}

func (r *report) read(stream io.Reader) error {
	r.output, r.inside, r.results = map[string]*strings.Builder{}, map[string]*tally{}, map[result]string{}
	lines := bufio.NewReader(stream)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil || e.Action == "" {
				fmt.Fprintf(r.Out, "%s", line) // not an event: the go command speaks
			} else {
				r.event(e)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *report) event(e event) {
	switch e.Action {
	case "output":
		r.keep(e.Package+" "+e.Test, e.Output)
	case "build-output":
		r.keep("build "+e.ImportPath, e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.endPackage(e)
		} else {
			r.endTest(e)
		}
	}
}

func (r *report) keep(key, output string) {
	b := r.output[key]
	if b == nil {
		b = &strings.Builder{}
		r.output[key] = b
	}
	if b.Len() < maxOutput {
		b.WriteString(output)
	}
}

func (r *report) take(key string) string {
	defer delete(r.output, key)
	if b := r.output[key]; b != nil {
		return b.String()
	}
	return ""
}

func (r *report) of(pkg string) *tally {
	t := r.inside[pkg]
	if t == nil {
		t = &tally{}
		r.inside[pkg] = t
	}
	return t
}

func (r *report) endTest(e event) {
	output, t := r.take(e.Package+" "+e.Test), r.of(e.Package)
	took := time.Duration(e.Elapsed * float64(time.Second))
	r.results[result{e.Package, e.Test}] = e.Action
	switch e.Action {
	case "pass":
		t.passed++
	case "fail":
		t.failed++
		fmt.Fprintf(r.Out, "--- FAIL %s %s (%v)\n%s", short(e.Package), e.Test, took.Round(10*time.Millisecond), indent(output))
	case "skip":
		t.skipped++
		r.skipped = append(r.skipped, fmt.Sprintf("%s %s: %s", short(e.Package), e.Test, skipReason(output)))
	}
	// A test with subtests is as slow as they are: name the subtests' parent only.
	if took >= r.Slow && !strings.Contains(e.Test, "/") {
		r.slow = append(r.slow, timed{short(e.Package) + " " + e.Test, took})
	}
}

func (r *report) endPackage(e event) {
	output, t := r.take(e.Package+" "), r.of(e.Package)
	took := time.Duration(e.Elapsed * float64(time.Second)).Round(10 * time.Millisecond)
	if e.Action == "fail" && t.failed == 0 {
		// The package didn't build, or its process died between the tests.
		t.failed++
		if e.FailedBuild != "" {
			output = r.take("build "+e.FailedBuild) + output
		}
		for key := range r.output {
			if strings.HasPrefix(key, e.Package+" ") {
				output += r.take(key)
			}
		}
		fmt.Fprintf(r.Out, "--- FAIL %s\n%s", short(e.Package), indent(output))
	} else if e.Action == "fail" {
		// What was said outside any test: TestMain's last words, and those of a process that died.
		fmt.Fprint(r.Out, indent(lastWords(output)))
	}
	switch {
	case e.Action == "fail":
		fmt.Fprintf(r.Out, "FAIL  %-34s %d passed, %d failed  %v\n", short(e.Package), t.passed, t.failed, took)
	case t.passed+t.skipped > 0:
		cached := ""
		if strings.Contains(output, "(cached)") {
			cached = "  (cached)"
		}
		fmt.Fprintf(r.Out, "ok    %-34s %d passed  %v%s\n", short(e.Package), t.passed, took, cached)
	case e.Action == "pass" && strings.Contains(output, "fuzz: "):
		t.passed++
		fmt.Fprintf(r.Out, "ok    %-34s fuzzed  %v\n", short(e.Package), took)
	}
	r.Passed, r.Failed, r.Skipped = r.Passed+t.passed, r.Failed+t.failed, r.Skipped+t.skipped
	delete(r.inside, e.Package)
}

// failure names the tests of a package that failed.
type failure struct {
	Package string
	Tests   []string
}

// failures returns the top-level tests that failed, sorted. What failed without the name of a test, such as a package that
// doesn't build or whose TestMain fails, isn't among them.
func (r *report) failures() []failure {
	byPackage := map[string][]string{}
	for of, action := range r.results {
		if action == "fail" && !strings.Contains(of.Test, "/") {
			byPackage[of.Package] = append(byPackage[of.Package], of.Test)
		}
	}
	var all []failure
	for _, pkg := range slices.Sorted(maps.Keys(byPackage)) {
		all = append(all, failure{pkg, slices.Sorted(slices.Values(byPackage[pkg]))})
	}
	return all
}

// correct takes the results of tests that were run again. What failed and then passed is flaky. A test that is skipped the
// second time stays failed; one that the first run didn't come to, because its parent failed before, is counted now. What
// failed without the name of a test, such as TestMain's last look around, counts as it is.
func (r *report) correct(second *report) {
	unnamed := second.Failed
	for of, action := range second.results {
		if action == "fail" {
			unnamed--
		}
		before := r.results[of]
		switch {
		case before == "fail" && action == "pass":
			r.Failed, r.Passed, r.Flaky = r.Failed-1, r.Passed+1, r.Flaky+1
			r.flaky = append(r.flaky, short(of.Package)+" "+of.Test)
		case before == "pass" && action == "fail":
			r.Failed, r.Passed = r.Failed+1, r.Passed-1
		case before == "" && action == "pass":
			r.Passed++
		case before == "" && action == "fail":
			r.Failed++
		case before == "" && action == "skip":
			r.Skipped++
		default:
			continue // no news
		}
		r.results[of] = action
	}
	r.Failed += unnamed
	r.slow = append(r.slow, second.slow...)
}

// summarize names the flaky, the skipped and the slowest tests.
func (r *report) summarize() {
	slices.Sort(r.flaky)
	for _, f := range r.flaky {
		fmt.Fprintf(r.Out, "FLAKY %s: it failed, and passed when it was run again\n", f)
	}
	for _, s := range r.skipped {
		fmt.Fprintf(r.Out, "skipped: %s\n", s)
	}
	slices.SortFunc(r.slow, func(a, b timed) int { return int(b.took - a.took) })
	for _, s := range r.slow[:min(slowest, len(r.slow))] {
		fmt.Fprintf(r.Out, "slow: %6.1fs %s\n", s.took.Seconds(), s.name)
	}
}

func (r *report) counts() string {
	counts := fmt.Sprintf("%d passed, %d failed, %d skipped", r.Passed, r.Failed, r.Skipped)
	if r.Flaky > 0 {
		counts += fmt.Sprintf(", %d flaky", r.Flaky)
	}
	return counts
}

func (r *report) add(other *report) {
	r.Passed, r.Failed, r.Skipped, r.Flaky = r.Passed+other.Passed, r.Failed+other.Failed, r.Skipped+other.Skipped, r.Flaky+other.Flaky
	r.slow, r.skipped, r.flaky = append(r.slow, other.slow...), append(r.skipped, other.skipped...), append(r.flaky, other.flaky...)
}

// lastWords is a package's output without the lines that go test itself ends with.
func lastWords(output string) string {
	var b strings.Builder
	for line := range strings.Lines(output) {
		word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if word != "FAIL" && word != "PASS" && !strings.HasPrefix(word, "exit status ") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// skipReason is what the test said when it skipped itself.
func skipReason(output string) string {
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "===") && !strings.HasPrefix(line, "---") {
			return line
		}
	}
	return "no reason given"
}

func indent(output string) string {
	var b strings.Builder
	for line := range strings.Lines(output) {
		b.WriteString("    " + strings.TrimRight(line, "\n") + "\n")
	}
	return b.String()
}

func short(pkg string) string {
	return strings.TrimPrefix(pkg, "bulkhead.dev/bulkhead/")
}
