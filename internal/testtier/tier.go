package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// environment is what the tiers run in.
type environment struct {
	// Modules are the directories of the Go modules with tests; those without a go.mod are passed over.
	Modules []string
	// Bin and Guest are what the vm tier needs built.
	Bin, Guest string
	// Run restricts the tests by name; empty: all.
	Run string
	// Stderr takes what the go command says.
	Stderr io.Writer
}

// tier is one kind of tests.
type tier struct {
	Name, About string
	// Tag is the build tag that adds the tier's tests; empty in the unit tier.
	Tag string
	// Flags of go test.
	Flags []string
	// Slow is from when on a test is listed as slow.
	Slow time.Duration
	// Again: tests that failed are run once more.
	Again bool
	// Ready says what is missing to run the tier.
	Ready func(environment) error
}

func tierNamed(name string) (tier, bool) {
	nothing := func(environment) error { return nil }
	for _, t := range []tier{
		{
			Name: "unit", About: "no root, no VM", Slow: 2 * time.Second, Ready: nothing,
			Flags: []string{"-vet=off", "-timeout=5m"},
		},
		{
			Name: "root", About: "real mounts, taps, cgroups, processes", Tag: "root", Slow: 5 * time.Second, Again: true, Ready: rootReady,
			Flags: []string{"-vet=off", "-count=1", "-p=1", "-timeout=15m"},
		},
		{
			Name: "vm", About: "a real containerd, real VMs", Tag: "vm", Slow: 20 * time.Second, Again: true, Ready: vmReady,
			Flags: []string{"-vet=off", "-count=1", "-p=1", "-timeout=40m"},
		},
		{
			Name: "e2e", About: "a real cluster", Tag: "e2e", Slow: 30 * time.Second, Again: true, Ready: e2eReady,
			Flags: []string{"-vet=off", "-count=1", "-p=1", "-timeout=30m"},
		},
		{Name: "fuzz", About: "each fuzz target on a number of inputs", Slow: time.Hour, Ready: nothing},
	} {
		if t.Name == name {
			return t, true
		}
	}
	return tier{}, false
}

func rootReady(environment) error {
	if os.Geteuid() != 0 {
		return errors.New("it needs root")
	}
	return nil
}

func vmReady(env environment) error {
	if err := rootReady(env); err != nil {
		return err
	}
	if err := installed("qemu-system-x86_64", "runc", "mkfs.erofs", "mkfs.ext4"); err != nil {
		return err
	}
	return built(map[string]string{
		filepath.Join(env.Bin, "containerd"):                  "make bin",
		filepath.Join(env.Bin, "containerd-shim-bulkhead-v2"): "make bin",
		filepath.Join(env.Guest, "manifest.json"):             "make guest",
	})
}

func e2eReady(env environment) error {
	if err := vmReady(env); err != nil {
		return err
	}
	if err := installed("nft", "ip"); err != nil {
		return err
	}
	return built(map[string]string{
		filepath.Join(env.Bin, "bulkhead"):      "make bin",
		filepath.Join(env.Bin, "bulkhead-kube"): "make bin",
	})
}

func installed(programs ...string) error {
	for _, program := range programs {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: run make packages", err)
		}
	}
	return nil
}

// built takes files and the targets that make them.
func built(files map[string]string) error {
	for path, target := range files {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("%w: run %s", err, target)
		}
	}
	return nil
}

// run runs the tier in every module and reports each test.
func (t tier) run(env environment, fuzzInputs int, r *report) error {
	if err := t.Ready(env); err != nil {
		return err
	}
	for _, module := range env.Modules {
		if _, err := os.Stat(filepath.Join(module, "go.mod")); err != nil {
			continue
		}
		var err error
		switch {
		case t.Name == "fuzz":
			err = fuzz(env, module, fuzzInputs, r)
		case t.Tag == "":
			err = goTest(env, module, r, append(t.Flags, runFlag(env.Run)...), "./...")
		default:
			err = t.runTagged(env, module, r)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func runFlag(pattern string) []string {
	if pattern == "" {
		return nil
	}
	return []string{"-run=" + pattern}
}

// runTagged runs only the tests that the tier's tag adds.
func (t tier) runTagged(env environment, module string, r *report) error {
	packages, err := list(env, module, t.Tag)
	if err != nil {
		return err
	}
	var names, paths []string
	for _, p := range packages {
		found, err := p.functions("Test", t.Tag)
		if err != nil {
			return err
		}
		if len(found) > 0 {
			names, paths = append(names, found...), append(paths, p.ImportPath)
		}
	}
	if len(paths) == 0 {
		return nil
	}
	slices.Sort(names)
	pattern := "^(" + strings.Join(slices.Compact(names), "|") + ")$"
	if env.Run != "" {
		pattern = env.Run
	}
	flags := append(slices.Clone(t.Flags), "-tags="+t.Tag)
	first := &report{Out: r.Out, Slow: r.Slow}
	err = goTest(env, module, first, append(flags, "-run="+pattern), paths...)
	if err == nil && t.Again {
		err = again(env, module, first, flags)
	}
	r.add(first)
	return err
}

// again runs the tests that failed once more and corrects the report by what comes of it.
func again(env environment, module string, r *report, flags []string) error {
	for _, f := range r.failures() {
		fmt.Fprintf(r.Out, "again %s %s\n", short(f.Package), strings.Join(f.Tests, " "))
		second := &report{Out: r.Out, Slow: r.Slow}
		pattern := "^(" + strings.Join(f.Tests, "|") + ")$"
		if err := goTest(env, module, second, append(slices.Clone(flags), "-run="+pattern), f.Package); err != nil {
			return err
		}
		r.correct(second)
	}
	return nil
}

// fuzz runs each fuzz target by itself, as the go command wants it.
//
// It counts inputs, because a target that is given a time fails with "context deadline exceeded" if the time is over while
// the go command waits for one of its workers (https://go.dev/issue/75804).
func fuzz(env environment, module string, inputs int, r *report) error {
	packages, err := list(env, module, "")
	if err != nil {
		return err
	}
	for _, p := range packages {
		targets, err := p.declarations("Fuzz", "")
		if err != nil {
			return err
		}
		for _, declaration := range targets {
			target := declaration.Name.Name
			slow, err := slowness(declaration)
			if err != nil {
				return err
			}
			if env.Run != "" && !regexp.MustCompile(env.Run).MatchString(target) {
				continue
			}
			fmt.Fprintf(r.Out, "fuzz  %s %s\n", short(p.ImportPath), target)
			flags := []string{"-vet=off", "-run=^$", "-fuzz=^" + target + "$", fmt.Sprintf("-fuzztime=%dx", max(1, inputs/slow)), "-parallel=2"}
			if err := goTest(env, module, r, flags, p.ImportPath); err != nil {
				return err
			}
		}
	}
	return nil
}

// goPackage is what is used of go list's answer.
type goPackage struct {
	ImportPath, Dir           string
	TestGoFiles, XTestGoFiles []string
}

func list(env environment, module, tag string) ([]goPackage, error) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles", "-tags="+tag, "./...")
	cmd.Dir, cmd.Stderr = module, env.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the packages of module %s: %w", module, err)
	}
	var packages []goPackage
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, fmt.Errorf("read the list of packages of module %s: %w", module, err)
		}
		packages = append(packages, p)
	}
}

// functions returns the package's test functions with that prefix. With a tag: only those in files that the tag adds.
func (p goPackage) functions(prefix, tag string) ([]string, error) {
	found, err := p.declarations(prefix, tag)
	var names []string
	for _, f := range found {
		names = append(names, f.Name.Name)
	}
	return names, err
}

func (p goPackage) declarations(prefix, tag string) ([]*ast.FuncDecl, error) {
	var found []*ast.FuncDecl
	for _, name := range slices.Concat(p.TestGoFiles, p.XTestGoFiles) {
		path := filepath.Join(p.Dir, name)
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("parse tests: %w", err)
		}
		if tag != "" && !addedBy(file, tag) {
			continue
		}
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, prefix) && f.Name.Name != "TestMain" {
				found = append(found, f)
			}
		}
	}
	return found, nil
}

// slowDirective, with a number N after it, in the comment on a fuzz target gives it the Nth part of the inputs only.
const slowDirective = "//testtier:slow "

// slowness is the N of a target's slowDirective, or 1.
func slowness(target *ast.FuncDecl) (int, error) {
	if target.Doc == nil {
		return 1, nil
	}
	for _, c := range target.Doc.List {
		text, ok := strings.CutPrefix(c.Text, slowDirective)
		if !ok {
			continue
		}
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return 0, fmt.Errorf("%s: %q: write a number after it, from 1", target.Name.Name, c.Text)
		}
		return n, nil
	}
	return 1, nil
}

// addedBy says whether the file is built with the tag and not without it.
func addedBy(file *ast.File, tag string) bool {
	for _, group := range file.Comments {
		if group.Pos() > file.Package {
			break
		}
		for _, c := range group.List {
			expr, err := constraint.Parse(c.Text)
			if err != nil {
				continue
			}
			// Every tag but the tiers' own is as this machine has it: go list already chose the file.
			with := expr.Eval(func(t string) bool { return t == tag || !isTier(t) })
			without := expr.Eval(func(t string) bool { return !isTier(t) })
			return with && !without
		}
	}
	return false
}

func isTier(tag string) bool { return tag == "root" || tag == "vm" || tag == "e2e" }

// goTest runs go test and feeds the report. Failed tests are in the report; an error means that go test could not be run.
// It builds with -trimpath because the programs are built so: otherwise all of Kubernetes would be compiled once more.
func goTest(env environment, module string, r *report, flags []string, packages ...string) error {
	cmd := exec.Command("go", slices.Concat([]string{"test", "-json", "-trimpath"}, flags, packages)...)
	cmd.Dir, cmd.Stderr = module, env.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("run go test in module %s: %w", module, err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run go test in module %s: %w", module, err)
	}
	failed := r.Failed
	readErr := r.read(out)
	err = cmd.Wait()
	if readErr != nil {
		return fmt.Errorf("read go test's output in module %s: %w", module, readErr)
	}
	if err != nil && r.Failed == failed {
		return fmt.Errorf("go test in module %s: %w", module, err)
	}
	return nil
}
