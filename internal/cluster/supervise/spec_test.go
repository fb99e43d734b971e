package supervise

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func good() Spec {
	return Spec{
		Name: "n", NetNS: "/run/netns/x", Cgroup: "/c", Env: []string{"A=1"},
		Processes: []Process{
			{Name: "a", Args: []string{"/a", "x y"}, Log: "/a.log", Ready: &Probe{URL: "https://127.0.0.1:1/x", CA: "/ca"}, StopTimeout: time.Minute},
			{Name: "b", Args: []string{"/b"}, Env: []string{"B="}, Log: "/b.log", After: []string{"a"}, Ready: &Probe{URL: "unix:///s"}},
		},
		Daily: []string{"/d"},
	}
}

func TestSpecIsKept(t *testing.T) {
	dir := t.TempDir()
	wrote, err := writeSpec(dir, good())
	if err != nil {
		t.Fatal(err)
	}
	got, hash, err := readSpec(dir)
	if err != nil || hash != wrote {
		t.Fatalf("hash %s, %v; wrote %s", hash, err, wrote)
	}
	if diff := cmp.Diff(good(), got); diff != "" {
		t.Error(diff)
	}
	info, err := os.Stat(filepath.Join(dir, specFile))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v: environments may hold secrets", info.Mode(), err)
	}
	if again, err := writeSpec(dir, good()); err != nil || again == wrote {
		t.Errorf("written again it can't be told from the first: %v", err)
	}
}

func TestGarbageSpec(t *testing.T) {
	for name, text := range map[string]string{
		"empty":         "",
		"cut off":       `{"name": "x", "processes": [`,
		"another type":  `{"name": 7}`,
		"unknown key":   `{"name": "x", "processes": [], "colour": "red"}`,
		"more after it": `{"name": "x", "processes": []} {}`,
		"invalid":       `{"name": "x", "processes": [{"name": "a", "args": [], "log": "/l"}]}`,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, specFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, _, err := readSpec(dir); err == nil {
			t.Errorf("%s: read as %+v", name, s)
		}
	}
}

func TestValidate(t *testing.T) {
	if err := good().validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Spec){
		"process 0 has no name":         func(s *Spec) { s.Processes[0].Name = "" },
		"two processes have the name a": func(s *Spec) { s.Processes[1].Name = "a" },
		"process a: its arguments":      func(s *Spec) { s.Processes[0].Args = nil },
		"process b: its arguments":      func(s *Spec) { s.Processes[1].Args[0] = "b" },
		"process b: its log":            func(s *Spec) { s.Processes[1].Log = "b.log" },
		"its stop timeout -1ns":         func(s *Spec) { s.Processes[0].StopTimeout = -1 },
		"it comes after c":              func(s *Spec) { s.Processes[1].After = []string{"c"} },
		"process a comes after itself":  func(s *Spec) { s.Processes[0].After = []string{"b"} },
		`"B" can't be`:                  func(s *Spec) { s.Env = []string{"B"} },
		`"=x" can't be`:                 func(s *Spec) { s.Processes[0].Env = []string{"=x"} },
		ownerMark + `=x" can't be`:      func(s *Spec) { s.Env = []string{ownerMark + "=x"} },
		hashMark + `=x" can't be`:       func(s *Spec) { s.Env = []string{hashMark + "=x"} },
		"probe ftp://x":                 func(s *Spec) { s.Processes[0].Ready.URL = "ftp://x" },
		"probe https:///readyz has no":  func(s *Spec) { s.Processes[0].Ready.URL = "https:///readyz" },
		"probe unix://relative has no":  func(s *Spec) { s.Processes[0].Ready.URL = "unix://relative" },
		"probe: parse":                  func(s *Spec) { s.Processes[0].Ready.URL = "http://[" },
	} {
		s := good()
		change(&s)
		if err := s.validate(); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want ErrInvalidArgument with %q", err, want)
		}
	}
}

func TestLevels(t *testing.T) {
	after := func(name string, others ...string) Process { return Process{Name: name, After: others} }
	got, err := levels([]Process{after("c", "b", "a"), after("a"), after("b", "a"), after("x")})
	want := [][]string{{"a", "x"}, {"b"}, {"c"}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	groups := stopOrder(Spec{Processes: []Process{after("b", "a"), after("a")}}, []handle{{name: "a"}, {name: "gone"}, {name: "b"}})
	var names []string
	for _, group := range groups {
		for _, h := range group {
			names = append(names, h.name)
		}
	}
	if !slices.Equal(names, []string{"gone", "b", "a"}) {
		t.Errorf("they are ended in the order %v", names)
	}
}

// What the hash has is what a process is started anew for.
func TestHash(t *testing.T) {
	base := good().hash(good().Processes[0])
	for name, change := range map[string]func(*Spec){
		"arguments": func(s *Spec) { s.Processes[0].Args = []string{"/a", "x", "y"} },
		"its env":   func(s *Spec) { s.Processes[0].Env = []string{"X=1"} },
		"all's env": func(s *Spec) { s.Env = nil },
		"log":       func(s *Spec) { s.Processes[0].Log = "/other" },
		"netns":     func(s *Spec) { s.NetNS = "/run/netns/y" },
		"cgroup":    func(s *Spec) { s.Cgroup = "/d" },
	} {
		s := good()
		change(&s)
		if s.hash(s.Processes[0]) == base {
			t.Errorf("%s changed, and the hash didn't", name)
		}
	}
	s := good()
	s.Name, s.Daily, s.Processes[0].Ready, s.Processes[0].StopTimeout = "other", nil, nil, 1
	if s.hash(s.Processes[0]) != base {
		t.Error("the hash changed with what the process doesn't see")
	}
}

func TestBackoff(t *testing.T) {
	var got []time.Duration
	last := time.Duration(0)
	for range 8 {
		last = backoff(last, time.Second)
		got = append(got, last)
	}
	ms := time.Millisecond
	want := []time.Duration{200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 10000 * ms, 10000 * ms}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if again := backoff(last, 31*time.Second); again != 200*ms {
		t.Errorf("after a long life the pause is %v", again)
	}
}
