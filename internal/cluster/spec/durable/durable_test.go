package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a*")
	// What a crash left goes; what only looks like it stays.
	for _, name := range []string{"a*.new-123", "ab.new-123", "a*.new"} {
		must(t, os.WriteFile(filepath.Join(dir, name), nil, 0o600))
	}
	for _, w := range []struct {
		write   func(string, []byte, fs.FileMode) error
		content string
		mode    fs.FileMode
	}{{Write, "one", 0o666}, {Write, "two", 0o600}, {Replace, "three", 0o640}} {
		content, mode := w.content, w.mode
		must(t, w.write(path, []byte(content), mode))
		got, err := os.ReadFile(path)
		must(t, err)
		info, err := os.Stat(path)
		must(t, err)
		if string(got) != content || info.Mode() != mode {
			t.Errorf("%q with mode %v, want %q with %v", got, info.Mode(), content, mode)
		}
	}
	if diff := cmp.Diff([]string{"a*", "a*.new", "ab.new-123"}, names(t, dir)); diff != "" {
		t.Error(diff)
	}
}

func TestWriteFailsAndLeavesAllAsItWas(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "d"), 0o700))
	for _, write := range []func(string, []byte, fs.FileMode) error{Write, Replace} {
		if err := write(filepath.Join(dir, "d"), nil, 0o600); err == nil {
			t.Error("a directory was replaced")
		}
	}
	if diff := cmp.Diff([]string{"d"}, names(t, dir)); diff != "" {
		t.Error(diff)
	}
	if err := Write(filepath.Join(dir, "none", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error: %v", err)
	}
}
