package archtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// budgets of the programs, as `make bin` builds them.
var budgets = []struct {
	name string
	// size is in MiB.
	size int64
	// modules is how many other modules our own packages in it import directly.
	modules int
}{
	{name: "containerd-shim-bulkhead-v2", size: 16, modules: 20},
	{name: "bulkhead", size: 18, modules: 20},
	{name: "bulkhead-guest", size: 14, modules: 8},
}

func TestProgramSizes(t *testing.T) {
	for _, b := range budgets {
		t.Run(b.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), b.name)
			cmd := exec.Command("go", "build", "-trimpath", "-tags", "grpcnotrace", "-ldflags", "-s -w", "-o", out, "./cmd/"+b.name)
			cmd.Dir = root
			cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
			if output, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("build %s: %v\n%s", b.name, err, output)
			}
			info, err := os.Stat(out)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %.1f MiB", b.name, float64(info.Size())/(1<<20))
			if info.Size() > b.size<<20 {
				t.Errorf("%s has %d bytes, more than %d MiB: see what is linked with go tool nm -size, or change the budget with a reason",
					b.name, info.Size(), b.size)
			}
		})
	}
}

func TestDirectDependencies(t *testing.T) {
	all := allPackages(t)
	for _, b := range budgets {
		main := module + "/cmd/" + b.name
		found := map[string]bool{}
		for _, path := range append(all[main].Deps, main) {
			if _, ok := own(path); !ok {
				continue
			}
			for _, i := range all[path].Imports {
				if m := all[i].Module; m != nil && m.Path != module {
					found[m.Path] = true
				}
			}
		}
		names := make([]string, 0, len(found))
		for m := range found {
			names = append(names, m)
		}
		slices.Sort(names)
		t.Logf("%s: %d modules", b.name, len(names))
		if len(names) > b.modules {
			t.Errorf("%s imports %d modules, more than %d:\n%s", b.name, len(names), b.modules, strings.Join(names, "\n"))
		}
	}
}
