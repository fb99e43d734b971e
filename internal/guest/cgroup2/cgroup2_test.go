package cgroup2

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/testing/protocmp"

	guestapi "bulkhead.dev/bulkhead/api/guest"
)

var update = flag.Bool("update", false, "write the golden files")

// fakeCgroup copies the files of a cgroup, as a kernel showed them, to a directory where they can be written.
func fakeCgroup(t *testing.T, name string) Group {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", name))); err != nil {
		t.Fatal(err)
	}
	return Group(dir)
}

func TestStats(t *testing.T) {
	for _, name := range []string{"busy", "bare"} {
		t.Run(name, func(t *testing.T) {
			got, err := fakeCgroup(t, name).Stats()
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".json")
			if *update {
				b, _ := protojson.MarshalOptions{Multiline: true}.Marshal(got)
				if err := os.WriteFile(golden, append(b, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			b, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			want := &guestapi.StatsResponse{}
			if err := protojson.Unmarshal(b, want); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	if _, err := Group(filepath.Join(t.TempDir(), "none")).Stats(); err == nil {
		t.Error("no error for a cgroup that isn't there")
	}
}

func FuzzParseStats(f *testing.F) {
	f.Add([]byte("usage_usec 1\nuser_usec x\n"), []byte("8:0 rbytes=1 wbytes=2\n"), []byte("max\n"))
	f.Fuzz(func(t *testing.T, flat, io, value []byte) {
		parseStats(map[string][]byte{"cpu.stat": flat, "memory.stat": flat, "memory.events": flat, "io.stat": io, "memory.max": value})
	})
}

func ptr[T any](v T) *T { return &v }

func TestSettings(t *testing.T) {
	for name, tc := range map[string]struct {
		resources specs.LinuxResources
		want      []setting
	}{
		"nothing": {},
		"CPU": {
			specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr[uint64](1024), Quota: ptr[int64](150000), Period: ptr[uint64](100000), Cpus: "0-1", Mems: "0"}},
			[]setting{{"cpu.weight", "39"}, {"cpu.max", "150000 100000"}, {"cpuset.cpus", "0-1"}, {"cpuset.mems", "0"}},
		},
		"no CPU limit":     {specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr[int64](-1)}}, []setting{{"cpu.max", "max 100000"}}},
		"fewest shares":    {specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr[uint64](1)}}, []setting{{"cpu.weight", "1"}}},
		"most shares":      {specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr[uint64](1 << 40)}}, []setting{{"cpu.weight", "10000"}}},
		"shares unchanged": {specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr[uint64](0)}}, nil},
		"memory": {
			specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](1 << 20), Reservation: ptr[int64](1 << 10)}},
			[]setting{{"memory.max", "1048576"}, {"memory.low", "1024"}},
		},
		"memory and swap": {
			specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](100), Swap: ptr[int64](150)}},
			[]setting{{"memory.swap.max", "50"}, {"memory.max", "100"}},
		},
		"no swap":         {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](100), Swap: ptr[int64](100)}}, []setting{{"memory.swap.max", "max"}, {"memory.max", "100"}}},
		"no memory limit": {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](-1), Swap: ptr[int64](-1)}}, []setting{{"memory.swap.max", "max"}, {"memory.max", "max"}}},
		"pids":            {specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](10)}}, []setting{{"pids.max", "10"}}},
		"huge pages":      {specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4096}}}, []setting{{"hugetlb.2MB.max", "4096"}}},
		"unified":         {specs.LinuxResources{Unified: map[string]string{"memory.oom.group": "1", "memory.high": "5"}}, []setting{{"memory.high", "5"}, {"memory.oom.group", "1"}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := settings(&tc.resources)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, got, cmp.AllowUnexported(setting{})); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	for _, r := range []specs.LinuxResources{
		{Unified: map[string]string{"cgroup.procs": "1"}},
		{Unified: map[string]string{"../memory.max": "1"}},
		{Unified: map[string]string{"x": "1"}},
		{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "../x"}}},
	} {
		if _, err := settings(&r); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

func TestUpdate(t *testing.T) {
	c := fakeCgroup(t, "busy")
	resources := func(limit int64) []byte {
		b, _ := json.Marshal(specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}})
		return b
	}
	if err := c.Update(resources(64 << 20)); err != nil {
		t.Fatal(err)
	}
	if b, _ := c.read("memory.max"); string(b) != "67108864" {
		t.Errorf("memory.max = %q", b)
	}
	if err := c.Update(resources(4096)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("limit below usage: %v", err)
	}
	if err := c.Update([]byte("{")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("garbage: %v", err)
	}
}

func TestProcesses(t *testing.T) {
	c := Group(t.TempDir())
	for dir, procs := range map[string]string{"": "7\n8\n", "a": "9\n", "a/b": "10\nx\n-3\n"} {
		path := filepath.Join(string(c), dir)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(path, "cgroup.procs"), []byte(procs), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := c.Processes()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]int{7, 8, 9, 10}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestWatcher(t *testing.T) {
	reports := make(chan string, 8)
	w, err := NewWatcher(func(container string) { reports <- container })
	if err != nil {
		t.Fatal(err)
	}
	c := fakeCgroup(t, "busy") // with a kill already
	events := filepath.Join(string(c), "memory.events")
	write := func(kills string) {
		t.Helper()
		if err := os.WriteFile(events, []byte("oom 1\noom_kill "+kills+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("0")
	watch, err := w.Add("c1", c)
	if err != nil {
		t.Fatal(err)
	}
	write("2")
	if got := <-reports; got != "c1" {
		t.Errorf("report of %q", got)
	}
	w.Check(watch) // nothing new
	w.Remove(watch)
	select {
	case got := <-reports:
		t.Errorf("second report of %q", got)
	default:
	}
	if _, err := w.Add("none", Group(t.TempDir())); err == nil {
		t.Error("a cgroup without memory.events is watched")
	}
}
