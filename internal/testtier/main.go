// Command testtier runs the tests of a tier and says what became of them.
//
// Tests are divided into tiers by build tag: no tag is the unit tier, `root` needs root, `vm` boots VMs, `e2e` makes a
// cluster. Above the unit tier only the tests that the tag adds are run, never cached. A tier that can't run says why and
// fails: it never counts as passed. The tier `fuzz` runs every fuzz target on a number of inputs;
// one with "//testtier:slow N" in its comment gets the Nth part of them.
//
//	testtier [-bin DIR] [-guest DIR] [-fuzzinputs N] unit|root|vm|e2e|fuzz ...
//
//	go list ── which files, which tests does the tier add ── go test -json ── report
//	                                                              └─ failed tests of root, vm and e2e, once more ─┘
//
// In the tiers that wait for kernels, emulated VMs and whole clusters, one slow moment of the machine can fail a test. There, tests
// that failed are run again by name, once. One that then passes counts as passed and is named as flaky, so that it is neither
// lost nor in the way of the other results.
//
// The last line of the output is "N passed, N failed, N skipped" over all tiers that were asked for, with ", N flaky" after
// it if there were such tests; the flaky ones are among the passed.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"time"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run returns the exit code: 0 if all passed, 1 if a test or tier failed, 2 for wrong usage.
func run(args []string, stdout, stderr io.Writer) int {
	env := environment{Modules: []string{".", "kube", "test"}, Stderr: stderr}
	fuzzInputs := 20000
	flags := flag.NewFlagSet("testtier", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&env.Bin, "bin", "bin", "directory with the built programs")
	flags.StringVar(&env.Guest, "guest", ".state/guest", "directory with the guest image")
	flags.IntVar(&fuzzInputs, "fuzzinputs", fuzzInputs, "how many inputs each fuzz target gets")
	flags.StringVar(&env.Run, "run", "", "only tests whose name matches this expression")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	var tiers []tier
	for _, name := range flags.Args() {
		t, ok := tierNamed(name)
		if !ok {
			fmt.Fprintf(stderr, "testtier: there is no tier %q: write unit, root, vm, e2e or fuzz\n", name)
			return 2
		}
		tiers = append(tiers, t)
	}
	if len(tiers) == 0 {
		fmt.Fprintln(stderr, "testtier: say which tiers: unit, root, vm, e2e, fuzz")
		return 2
	}

	total := &report{}
	for _, t := range tiers {
		fmt.Fprintf(stdout, "=== tier %s: %s\n", t.Name, t.About)
		began := time.Now()
		r := &report{Out: stdout, Slow: t.Slow}
		if err := t.run(env, fuzzInputs, r); err != nil {
			fmt.Fprintf(stdout, "FAIL tier %s can't run: %v\n", t.Name, err)
			r.Failed++
		}
		r.summarize()
		fmt.Fprintf(stdout, "tier %s: %s in %v\n\n", t.Name, r.counts(), time.Since(began).Round(100*time.Millisecond))
		total.add(r)
	}
	fmt.Fprintln(stdout, total.counts())
	if total.Failed > 0 {
		return 1
	}
	return 0
}
