package spec

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func demo() Cluster {
	return Cluster{
		Version: 1, Name: "demo", Phase: Running, Created: time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC), Subnet: 7, IPv6: true,
		Pools: []Pool{
			{Name: "nodepool1", Count: 1, Runtime: OCI, Labels: map[string]string{"tier": "web"}, Taints: []string{"sandbox=only:NoSchedule"}},
			{Name: "sandbox", Count: 1, Runtime: VMIsolation},
		},
		Config: Default(), KubernetesVersion: "v1.36.3",
		Nodes: []Node{{Name: "demo-nodepool1-0", Pool: "nodepool1", Index: 0, Stopped: true}, {Name: "demo-sandbox-3", Pool: "sandbox", Index: 3}},
	}
}

// stored is demo in version 1: what once was written must be read for ever.
const stored = `{
  "version": 1,
  "name": "demo",
  "phase": "running",
  "created": "2026-01-31T12:00:00Z",
  "subnet": 7,
  "ipv6": true,
  "pools": [
    {
      "name": "nodepool1",
      "count": 1,
      "workloadRuntime": "oci",
      "labels": {
        "tier": "web"
      },
      "taints": [
        "sandbox=only:NoSchedule"
      ]
    },
    {
      "name": "sandbox",
      "count": 1,
      "workloadRuntime": "vm-isolation"
    }
  ],
  "config": {
    "podSecurity": {
      "enforce": "privileged",
      "enforceVersion": "latest",
      "audit": "restricted",
      "auditVersion": "latest",
      "warn": "baseline",
      "warnVersion": "latest",
      "exemptNamespaces": [
        "kube-system"
      ]
    },
    "registry": {},
    "kubelet": {
      "maxPods": 110
    },
    "vm": {
      "acceleration": "auto",
      "profile": "standard"
    }
  },
  "kubernetesVersion": "v1.36.3",
  "nodes": [
    {
      "name": "demo-nodepool1-0",
      "pool": "nodepool1",
      "index": 0,
      "stopped": true
    },
    {
      "name": "demo-sandbox-3",
      "pool": "sandbox",
      "index": 3
    }
  ]
}
`

func TestWriteAndRead(t *testing.T) {
	dir := t.TempDir()
	c := demo()
	c.Version = 0 // Write sets it
	if err := c.Write(dir); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "cluster.json"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(stored, string(data)); diff != "" {
		t.Error(diff)
	}
	got, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(demo(), got); diff != "" {
		t.Error(diff)
	}
	// A second Write replaces the file and leaves nothing beside it.
	got.Phase = Stopped
	if err := got.Write(dir); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if again, err := Read(dir); err != nil || again.Phase != Stopped {
		t.Errorf("%+v, %v", again, err)
	}
}

func TestWriteRefusesWhatReadWould(t *testing.T) {
	dir := t.TempDir()
	c := demo()
	c.Nodes[1].Index = 0
	if err := c.Write(dir); !errdefs.IsInvalidArgument(err) {
		t.Errorf("error: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, File)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it was written: %v", err)
	}
	if err := demo().Write(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error: %v", err)
	}
}

func TestReadErrors(t *testing.T) {
	with := func(old, fresh string) string { return strings.Replace(stored, old, fresh, 1) }
	tests := []struct {
		name, text, want string
		class            error
	}{
		{"newer version", `{"version": 2, "planets": []}`, "has version 2 and this program reads version 1: use the newer bulkhead that wrote it", errdefs.ErrNotImplemented},
		{"no version", `{}`, "is damaged: its version is 0", errdefs.ErrDataLoss},
		{"empty", "", "is damaged: unexpected end of JSON input", errdefs.ErrDataLoss},
		{"half", stored[:len(stored)/2], "is damaged: unexpected end of JSON input", errdefs.ErrDataLoss},
		{"not JSON", "name: demo", "is damaged: invalid character", errdefs.ErrDataLoss},
		{"unknown field", with(`"subnet"`, `"color": 1, "subnet"`), `is damaged: json: unknown field "color"`, errdefs.ErrDataLoss},
		{"name", with(`"demo"`, `"../demo"`), "is damaged: NAME \"../demo\": has the character '.'", errdefs.ErrDataLoss},
		{"phase", with(`"running"`, `"sleeping"`), `is damaged: phase "sleeping" is unknown`, errdefs.ErrDataLoss},
		{"subnet", with(`7`, `256`), "is damaged: subnet 256 is not from 0 to 255", errdefs.ErrDataLoss},
		{"runtime", with(`"oci"`, `"runc"`), `is damaged: pool "nodepool1": --workload-runtime "runc": `, errdefs.ErrDataLoss},
		{"two pools of a name", with(`"name": "sandbox"`, `"name": "nodepool1"`), `is damaged: two pools are named "nodepool1"`, errdefs.ErrDataLoss},
		{"index twice", with(`"index": 3`, `"index": 0`), `is damaged: node "demo-sandbox-3": its index 0 is taken or out of order`, errdefs.ErrDataLoss},
		{"index too large", with(`"index": 3`, `"index": 100`), `its index 100 is not from 0 to 99`, errdefs.ErrDataLoss},
		{"node of no pool", with(`"pool": "sandbox"`, `"pool": "other"`), `node "demo-sandbox-3": there is no pool "other"`, errdefs.ErrDataLoss},
		{"node's name", with(`"demo-sandbox-3"`, `"demo-sandbox-4"`), `its name should be "demo-sandbox-3"`, errdefs.ErrDataLoss},
		{"config", with(`"maxPods": 110`, `"maxPods": 0`), "is damaged: kubelet.maxPods: 0 is not allowed", errdefs.ErrDataLoss},
		{"huge", stored + strings.Repeat(" ", maxFile), "is damaged: it has more than 1048576 bytes", errdefs.ErrDataLoss},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, File), []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Read(dir)
			if err == nil || !errors.Is(err, tt.class) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("error: %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := Read(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(stored))
	f.Add([]byte(`{"version": 1, "nodes": [{"index": -1}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse("cluster.json", data)
		if err != nil {
			return
		}
		dir := t.TempDir()
		if err := c.Write(dir); err != nil {
			t.Fatalf("what was read can't be written: %v", err)
		}
		again, err := Read(dir)
		if err != nil {
			t.Fatalf("what was written can't be read: %v", err)
		}
		if diff := cmp.Diff(c, again); diff != "" {
			t.Error(diff)
		}
	})
}
