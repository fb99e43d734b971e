package archtest

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	// maxFile and maxPackage are lines; generated code and, for packages, tests aren't counted.
	maxFile    = 1000
	maxPackage = 4000
	// minDoc is how long a package's comment is at least: a sentence that says something.
	minDoc = 60
)

// source is a Go file of any module in the tree.
type source struct {
	path      string
	test      bool
	generated bool
	lines     int
	file      *ast.File
}

// directories returns the Go files by directory.
func directories(t *testing.T) map[string][]source {
	t.Helper()
	result := map[string][]source{}
	set := token.NewFileSet()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
			return fs.SkipDir
		}
		if entry.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(set, path, data, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir := filepath.Dir(path)
		result[dir] = append(result[dir], source{
			path: strings.TrimPrefix(path, root+"/"), test: strings.HasSuffix(name, "_test.go"),
			generated: ast.IsGenerated(file), lines: bytes.Count(data, []byte{'\n'}), file: file,
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	for dir, files := range directories(t) {
		name, doc := "", ""
		for _, f := range files {
			// A package of tests alone is documented by one of them.
			if f.test && slices.ContainsFunc(files, func(s source) bool { return !s.test }) {
				continue
			}
			name = f.file.Name.Name
			if f.file.Doc != nil {
				doc += f.file.Doc.Text()
			}
		}
		begins := []string{"Package " + name + " "}
		if name == "main" {
			program := filepath.Base(dir)
			begins = []string{"Command " + program + " ", strings.ToUpper(program[:1]) + program[1:] + " "}
		}
		begun := slices.ContainsFunc(begins, func(b string) bool { return strings.HasPrefix(doc, b) })
		if !begun || len(doc) < minDoc {
			t.Errorf("%s: the package's comment must begin with %q and say what the package is for; it is %q", dir, begins, doc)
		}
	}
}

func TestNothingOutgrowsAReader(t *testing.T) {
	for dir, files := range directories(t) {
		total := 0
		for _, f := range files {
			if f.generated {
				continue
			}
			if f.lines > maxFile {
				t.Errorf("%s has %d lines, more than %d: divide it by what its parts know", f.path, f.lines, maxFile)
			}
			if !f.test {
				total += f.lines
			}
		}
		if total > maxPackage {
			t.Errorf("package %s has %d lines, more than %d: divide it by what its parts know", dir, total, maxPackage)
		}
	}
}

func TestNames(t *testing.T) {
	for dir, files := range directories(t) {
		switch name := files[0].file.Name.Name; name {
		case "util", "utils", "common", "helper", "helpers", "types", "misc", "base", "shared":
			t.Errorf("package %s: the name %q says nothing: name it after what it knows", dir, name)
		}
	}
}

// Code that runs before main can't be given a context, return an error or be left out.
func TestNoInit(t *testing.T) {
	for _, files := range directories(t) {
		for _, f := range files {
			if f.generated {
				continue
			}
			for _, d := range f.file.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
					t.Errorf("%s has an init function", f.path)
				}
			}
		}
	}
}
