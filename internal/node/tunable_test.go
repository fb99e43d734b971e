package node

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTunables(t *testing.T) {
	k := kernel{sysctls: t.TempDir(), run: t.TempDir()}
	write := func(values map[string]string) {
		t.Helper()
		for name, value := range values {
			path := filepath.Join(k.sysctls, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	check := func(when string, want map[string]string) {
		t.Helper()
		got := make(map[string]string)
		for name := range want {
			value, err := os.ReadFile(filepath.Join(k.sysctls, name))
			if err != nil {
				t.Fatal(err)
			}
			got[name] = strings.TrimSpace(string(value))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", when, diff)
		}
	}
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	nodes := t.TempDir()
	a, b, gone := filepath.Join(nodes, "a"), filepath.Join(nodes, "b"), filepath.Join(nodes, "gone")
	lasts := 0
	last := func() { lasts++ }
	do(errors.Join(os.Mkdir(a, 0o755), os.Mkdir(b, 0o755)))

	// Some kernels lack some values; here are two.
	write(map[string]string{"vm/overcommit_memory": "0", "kernel/panic": "1", "kernel/panic_on_oops": "1"})
	do(k.borrow(a))
	changed := map[string]string{"vm/overcommit_memory": "1", "kernel/panic": "10", "kernel/panic_on_oops": "1"}
	write(changed)
	do(k.borrow(b))
	do(k.borrow(b))
	do(k.borrow(gone)) // without its directory, it has gone without giving back
	do(k.giveBack(a, last))
	do(k.giveBack(a, last))
	check("with a node left", changed)
	if lasts != 0 {
		t.Error("a node is taken for the last")
	}
	write(map[string]string{"kernel/panic": "60"})
	do(k.giveBack(b, last))
	if lasts != 1 {
		t.Errorf("%d calls for the last node", lasts)
	}
	check("after the last", map[string]string{"vm/overcommit_memory": "0", "kernel/panic": "60", "kernel/panic_on_oops": "1"})
	if _, err := os.Lstat(k.record()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the record is left: %v", err)
	}
	do(k.giveBack(b, last))

	do(os.WriteFile(k.record(), []byte("{"), 0o600))
	if err := k.borrow(a); err == nil {
		t.Error("a broken record is taken")
	}
}
