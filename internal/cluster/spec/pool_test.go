package spec

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestParseRuntime(t *testing.T) {
	for text, want := range map[string]Runtime{
		"oci": OCI, "OCI": OCI, "OCIContainer": OCI, "ocicontainer": OCI,
		"vm-isolation": VMIsolation, "VM-Isolation": VMIsolation, "KataMshvVmIsolation": VMIsolation, "katamshvvmisolation": VMIsolation, "KATAVMISOLATION": VMIsolation,
		"": "", "kata": "", "vm_isolation": "", "oci\n": "",
	} {
		got, err := ParseRuntime(text)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("ParseRuntime(%q) = %q, %v, want %q", text, got, err, want)
		}
	}
	_, err := ParseRuntime("gvisor")
	const want = `--workload-runtime "gvisor": is no workload runtime: write oci (alias OCIContainer) or vm-isolation (aliases KataMshvVmIsolation, KataVmIsolation)`
	if err == nil || err.Error() != want || !errdefs.IsInvalidArgument(err) {
		t.Errorf("error:\n%v\nwant\n%s", err, want)
	}
}

func TestValidatePoolName(t *testing.T) {
	const rule = "; a pool's name has 1 to 12 lower-case letters and digits and begins with a letter: "
	for name, want := range map[string]string{
		"a": "", "nodepool1": "", "abcdefghijkl": "", "z99": "",
		"Pool1":          "has an upper-case letter" + rule + `write "pool1"`,
		"":               "is empty" + rule + `write, for example, "nodepool1"`,
		"1pool":          "doesn't begin with a letter" + rule + `write "pool"`,
		"abcdefghijklm":  "has 13 characters, more than 12" + rule + `write "abcdefghijkl"`,
		"my-pool":        "has the character '-'" + rule + `write "mypool"`,
		"pool 1":         "has the character ' '" + rule + `write "pool1"`,
		"größe":          "has the character 'ö'" + rule + `write "gre"`,
		"123":            "doesn't begin with a letter" + rule + `write, for example, "nodepool1"`,
		"pool\n":         `has the character '\n'` + rule + `write "pool"`,
		"Node_Pool_2026": "has an upper-case letter" + rule + `write "nodepool2026"`,
	} {
		err := ValidatePoolName(name)
		var p *ParameterError
		switch {
		case want == "" && err != nil:
			t.Errorf("%q: %v", name, err)
		case want != "" && (!errors.As(err, &p) || p.Parameter != "--name" || p.Value != name || p.Reason+": "+p.Fix != want):
			t.Errorf("%q: %v, want %s", name, err, want)
		}
	}
}

func TestValidateClusterName(t *testing.T) {
	longest := strings.Repeat("a", maxClusterName)
	if n := len(NodeName(longest, strings.Repeat("p", maxPoolName), MaxNodes-1)); n != 63 {
		t.Errorf("the longest node name has %d characters, want 63", n)
	}
	for name, want := range map[string]string{
		"a": "", "demo": "", "my-cluster-2": "", longest: "",
		"Demo":         `has an upper-case letter; … write "demo"`,
		"my_cluster":   `has the character '_'; … write "my-cluster"`,
		"demo-":        `ends with a hyphen; … write "demo"`,
		"-demo":        `doesn't begin with a letter; … write "demo"`,
		"":             `is empty; … write, for example, "demo"`,
		"../x":         `has the character '.'; … write "x"`,
		"9":            `doesn't begin with a letter; … write, for example, "demo"`,
		longest + "b":  `has 48 characters, more than 47; … write "` + longest + `"`,
		"demo.example": `has the character '.'; … write "demoexample"`,
	} {
		err := ValidateClusterName(name)
		if want == "" {
			if err != nil {
				t.Errorf("%q: %v", name, err)
			}
			continue
		}
		reason, fix, _ := strings.Cut(want, "… ")
		var p *ParameterError
		if !errors.As(err, &p) || p.Parameter != "NAME" || p.Value != name || !strings.HasPrefix(p.Reason, reason) || p.Fix != fix {
			t.Errorf("%q: %v, want %s", name, err, want)
		}
	}
}

// What an error proposes is allowed.
func FuzzNames(f *testing.F) {
	for _, seed := range []string{"", "Pool1", "a-", "-", "9a-b_c", "Ünï"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, name string) {
		for _, validate := range []func(string) error{ValidatePoolName, ValidateClusterName} {
			var p *ParameterError
			if !errors.As(validate(name), &p) {
				continue
			}
			_, proposed, _ := strings.Cut(p.Fix, `"`)
			if err := validate(strings.TrimSuffix(proposed, `"`)); err != nil {
				t.Errorf("for %q it proposes: %s: %v", name, p.Fix, err)
			}
		}
	})
}

func TestForParameter(t *testing.T) {
	original := ValidateClusterName("X")
	if got := ForParameter("--cluster-name", original).Error(); !strings.HasPrefix(got, `--cluster-name "X": has an upper-case`) {
		t.Error(got)
	}
	if !strings.HasPrefix(original.Error(), `NAME "X"`) {
		t.Errorf("the original was changed: %v", original)
	}
	if err := ForParameter("--x", nil); err != nil {
		t.Error(err)
	}
	if err := ForParameter("--x", errdefs.ErrNotFound); !errors.Is(err, errdefs.ErrNotFound) {
		t.Error(err)
	}
}

func TestPoolValidate(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Pool)
		want   string
	}{
		"right":                     {func(*Pool) {}, ""},
		"no nodes":                  {func(p *Pool) { p.Count = 0 }, ""},
		"most nodes":                {func(p *Pool) { p.Count = 100 }, ""},
		"labels":                    {func(p *Pool) { p.Labels = map[string]string{"example.com/tier": "web", "empty": "", "A_b.c": "1.2"} }, ""},
		"taints":                    {func(p *Pool) { p.Taints = []string{"sandbox=only:NoSchedule", "a/b:NoExecute", "x=:PreferNoSchedule"} }, ""},
		"name":                      {func(p *Pool) { p.Name = "X" }, `--name "X": `},
		"negative":                  {func(p *Pool) { p.Count = -1 }, `--node-count "-1": a cluster has 0 to 100 nodes: write a number from 0 to 100`},
		"too many":                  {func(p *Pool) { p.Count = 101 }, `--node-count "101": `},
		"runtime":                   {func(p *Pool) { p.Runtime = "KataVmIsolation" }, `--workload-runtime "KataVmIsolation": `},
		"label's key":               {func(p *Pool) { p.Labels = map[string]string{"a b": "c"} }, `--labels "a b=c": is no label`},
		"label's prefix":            {func(p *Pool) { p.Labels = map[string]string{"/b": "c"} }, `--labels "/b=c": `},
		"label's value":             {func(p *Pool) { p.Labels = map[string]string{"a": "-"} }, `--labels "a=-": `},
		"label of our own":          {func(p *Pool) { p.Labels = map[string]string{"bulkhead.dev/pool": "x"} }, `--labels "bulkhead.dev/pool=x": is set by the cluster`},
		"kubelet's label":           {func(p *Pool) { p.Labels = map[string]string{"kubernetes.io/hostname": "x"} }, `--labels "kubernetes.io/hostname=x": `},
		"label the kubelet refuses": {func(p *Pool) { p.Labels = map[string]string{"node-role.kubernetes.io/web": ""} }, `--labels "node-role.kubernetes.io/web=": `},
		"zone": {func(p *Pool) {
			p.Labels = map[string]string{"topology.kubernetes.io/zone": "a", "node.kubernetes.io/x": "y", "xk8s.io/z": ""}
		}, ""},
		"taint's effect":      {func(p *Pool) { p.Taints = []string{"a=b:Never"} }, `--node-taints "a=b:Never": is no taint`},
		"taint without one":   {func(p *Pool) { p.Taints = []string{"a=b"} }, `--node-taints "a=b": `},
		"taint without a key": {func(p *Pool) { p.Taints = []string{"=b:NoExecute"} }, `--node-taints "=b:NoExecute": `},
	} {
		t.Run(name, func(t *testing.T) {
			p := Pool{Name: "pool", Count: 1, Runtime: OCI}
			tt.change(&p)
			err := p.Validate()
			if (err != nil) != (tt.want != "") || err != nil && !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("error: %v, want %s", err, tt.want)
			}
		})
	}
}

func TestAllocateNode(t *testing.T) {
	c := Cluster{Name: "demo", Pools: []Pool{{Name: "a"}, {Name: "b"}}}
	allocate := func(pool string) {
		t.Helper()
		if _, err := c.AllocateNode(pool); err != nil {
			t.Fatal(err)
		}
	}
	for _, pool := range []string{"a", "b", "a", "b"} {
		allocate(pool)
	}
	c.RemoveNode("demo-b-1")
	c.RemoveNode("demo-b-1")
	c.RemoveNode("demo-a-0")
	allocate("b")
	want := []Node{{Name: "demo-b-0", Pool: "b", Index: 0}, {Name: "demo-a-2", Pool: "a", Index: 2}, {Name: "demo-b-3", Pool: "b", Index: 3}}
	if diff := cmp.Diff(want, c.Nodes); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Node{want[0], want[2]}, c.NodesOf("b")); diff != "" {
		t.Error(diff)
	}
	c.Node("demo-a-2").Stopped = true
	if !c.Nodes[1].Stopped || c.Node("demo-a-1") != nil || c.Pool("c") != nil || c.Pool("b") != &c.Pools[1] {
		t.Error("Node and Pool don't return what is in the cluster")
	}
	for len(c.Nodes) < MaxNodes {
		allocate("a")
	}
	_, err := c.AllocateNode("a")
	if want := `--node-count "101": cluster demo has 100 nodes, the most there may be: scale another pool down first`; err == nil || err.Error() != want {
		t.Errorf("error: %v", err)
	}
	if err := c.validateNodes(); err != nil {
		t.Error(err)
	}
}
