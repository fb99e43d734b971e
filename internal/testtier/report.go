package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

	output  map[string]*strings.Builder // by package and test
	inside  map[string]*tally           // by package
	slow    []timed
	skipped []string
}

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
	r.output, r.inside = map[string]*strings.Builder{}, map[string]*tally{}
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

// summarize names the skipped and the slowest tests.
func (r *report) summarize() {
	for _, s := range r.skipped {
		fmt.Fprintf(r.Out, "skipped: %s\n", s)
	}
	slices.SortFunc(r.slow, func(a, b timed) int { return int(b.took - a.took) })
	for _, s := range r.slow[:min(slowest, len(r.slow))] {
		fmt.Fprintf(r.Out, "slow: %6.1fs %s\n", s.took.Seconds(), s.name)
	}
}

func (r *report) counts() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", r.Passed, r.Failed, r.Skipped)
}

func (r *report) add(other *report) {
	r.Passed, r.Failed, r.Skipped = r.Passed+other.Passed, r.Failed+other.Failed, r.Skipped+other.Skipped
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
