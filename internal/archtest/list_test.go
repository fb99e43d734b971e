package archtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// module is the path of the root module.
const module = "bulkhead.dev/bulkhead"

// listed is what is used of go list's answer about a package.
type listed struct {
	ImportPath, Name string
	Standard         bool
	Imports, Deps    []string
	Module           *struct{ Path string }
}

// packages returns all packages of the root module and what they depend on, by import path. Tests aren't counted.
var packages = sync.OnceValues(func() (map[string]listed, error) {
	cmd := exec.Command("go", "list", "-deps", "-tags=grpcnotrace", "-json=ImportPath,Name,Standard,Imports,Deps,Module", "./...")
	cmd.Dir = root
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	out, err := cmd.Output()
	if err != nil {
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			err = errors.Join(err, errors.New(string(exit.Stderr)))
		}
		return nil, err
	}
	all := map[string]listed{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		all[p.ImportPath] = p
	}
})

// root is the root module's directory.
var root = filepath.Join("..", "..")

func allPackages(t *testing.T) map[string]listed {
	t.Helper()
	all, err := packages()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// own says whether the package is of the root module, and returns its path in it.
func own(path string) (string, bool) {
	return strings.CutPrefix(path, module+"/")
}

// matches says whether a package's path is the pattern or, with "/..." at its end, it or anything below it.
func matches(pattern, path string) bool {
	if below, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == below || strings.HasPrefix(path, below+"/")
	}
	return path == pattern
}

func matchesAny(patterns []string, path string) bool {
	for _, p := range patterns {
		if matches(p, path) {
			return true
		}
	}
	return false
}
