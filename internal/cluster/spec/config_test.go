package spec

import (
	"errors"
	"maps"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

const head = "apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterConfig\n"

func TestLoad(t *testing.T) {
	base := func(change func(*Config)) Config {
		c := Default()
		change(&c)
		return c
	}
	tests := []struct {
		name, text string
		want       Config
	}{
		{"only the head", head, Default()},
		{"document markers", "---\n" + head + "...\n", Default()},
		{"JSON", `{"apiVersion": "bulkhead.dev/v1alpha1", "kind": "ClusterConfig", "kubelet": {"maxPods": 20}}`, base(func(c *Config) { c.Kubelet.MaxPods = 20 })},
		{"pod security", head + "podSecurity:\n  enforce: baseline\n  enforceVersion: v1.36\n  warn: baseline\n", base(func(c *Config) {
			c.PodSecurity.Enforce, c.PodSecurity.EnforceVersion, c.PodSecurity.Warn = "baseline", "v1.36", "baseline"
		})},
		{"kube-system stays exempt", head + "podSecurity: {exemptNamespaces: [mine, other]}\n", base(func(c *Config) {
			c.PodSecurity.ExemptNamespaces = []string{"kube-system", "mine", "other"}
		})},
		{"kube-system is there once", head + "podSecurity: {exemptNamespaces: [mine, kube-system]}\n", base(func(c *Config) {
			c.PodSecurity.ExemptNamespaces = []string{"mine", "kube-system"}
		})},
		{"mirrors", head + `
registry:
  mirrors:
    docker.io: [https://mirror.example/v2/hub, local]
    "*": [local]
    registry.example:5000: ["http://[fd00::1]:5000"]
`, base(func(c *Config) {
			c.Registry.Mirrors = map[string][]string{
				"docker.io": {"https://mirror.example/v2/hub", "local"}, "*": {"local"}, "registry.example:5000": {"http://[fd00::1]:5000"},
			}
		})},
		{"vm", head + "vm:\n  acceleration: emulated\n  profile: aks\n", base(func(c *Config) { c.VM = VM{Acceleration: "emulated", Profile: "aks"} })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Load(strings.NewReader(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestLoadErrors(t *testing.T) {
	tests := []struct{ name, text, want string }{
		{"empty", "", "it is empty: it must begin with apiVersion: bulkhead.dev/v1alpha1 and kind: ClusterConfig"},
		{"comments only", "# nothing\n", "it is empty"},
		{"nothing", "---\n", "line 2: it is nothing: it must be a mapping"},
		{"list", "- a\n", "line 1: it is a list: it must be a mapping"},
		{"no YAML", head + "vm: {\n", "yaml: line "},
		{"two documents", head + "---\n" + head, "line 3: a second document begins: there may be only one"},
		{"no apiVersion", "kind: ClusterConfig\n", "apiVersion: is missing: write apiVersion: bulkhead.dev/v1alpha1"},
		{"no kind", "apiVersion: bulkhead.dev/v1alpha1\n", "kind: is missing: write kind: ClusterConfig"},
		{"another kind", "apiVersion: bulkhead.dev/v1alpha1\nkind: Cluster\nnodes: []\n", `line 2: kind: "Cluster" is not known: this program reads ClusterConfig`},
		{"another version", "apiVersion: bulkhead.dev/v2\nkind: ClusterConfig\n", `line 1: apiVersion: "bulkhead.dev/v2" is not known: this program reads bulkhead.dev/v1alpha1`},
		{"unknown key", head + "pools: []\n", "line 3: pools: unknown key; at the top there are apiVersion, kind, podSecurity, registry, kubelet, vm"},
		{"unknown inner key", head + "kubelet:\n  maxPod: 3\n", "line 4: kubelet.maxPod: unknown key; kubelet has maxPods"},
		{"Go's name of a key", head + "PodSecurity: {}\n", "line 3: PodSecurity: unknown key"},
		{"embedded field", head + "Config: {}\n", "line 3: Config: unknown key"},
		{"key twice", head + "vm: {}\nvm: {}\n", "line 4: vm: is there twice"},
		{"host twice", head + "registry:\n  mirrors:\n    a.b: [local]\n    a.b: [local]\n", `line 6: registry.mirrors["a.b"]: is there twice`},
		{"merge key", head + "vm: {<<: {profile: aks}}\n", `is no key: keys are strings`},
		{"alias", head + "registry: {mirrors: {a: &x [local], b: *x}}\n", `line 3: registry.mirrors.a: anchors and aliases are not allowed`},
		{"number for a string", head + "vm: {profile: 1}\n", `line 3: vm.profile: "1" is no string: put it in quotes if it is meant as one`},
		{"string for a number", head + "kubelet: {maxPods: \"10\"}\n", `line 3: kubelet.maxPods: "10" is no whole number`},
		{"fraction", head + "kubelet: {maxPods: 1.5}\n", `line 3: kubelet.maxPods: "1.5" is no whole number`},
		{"nothing for a mapping", head + "vm:\n", "line 3: vm: nothing is no mapping"},
		{"mapping for a list", head + "podSecurity: {exemptNamespaces: {a: b}}\n", "line 3: podSecurity.exemptNamespaces: a mapping is no list"},
		{"mapping in a list", head + "podSecurity: {exemptNamespaces: [a, {}]}\n", "line 3: podSecurity.exemptNamespaces[1]: a mapping is no string"},
		{"level", head + "podSecurity: {enforce: strict}\n", `podSecurity.enforce: "strict" is not allowed: write one of privileged, baseline, restricted`},
		{"level's version", head + "podSecurity: {auditVersion: '1.36'}\n", `podSecurity.auditVersion: "1.36" is not allowed: write "latest" or a minor version`},
		{"namespace", head + "podSecurity: {exemptNamespaces: [My]}\n", `podSecurity.exemptNamespaces[0]: "My" is not allowed: write the name of a namespace`},
		{"too many pods", head + "kubelet: {maxPods: 254}\n", "kubelet.maxPods: 254 is not allowed: write a number from 1 to 253"},
		{"no pods", head + "kubelet: {maxPods: 0}\n", "kubelet.maxPods: 0 is not allowed"},
		{"acceleration", head + "vm: {acceleration: kvm}\n", `vm.acceleration: "kvm" is not allowed: write one of auto, hardware, emulated`},
		{"profile", head + "vm: {profile: big}\n", `vm.profile: "big" is not allowed: write one of standard, aks`},
		{"mirror's host", head + "registry: {mirrors: {'https://docker.io': [local]}}\n", `registry.mirrors["https://docker.io"]: is no host`},
		{"host with a path", head + "registry: {mirrors: {'../x': [local]}}\n", `registry.mirrors["../x"]: is no host`},
		{"no mirrors", head + "registry: {mirrors: {docker.io: []}}\n", `registry.mirrors["docker.io"]: has no mirrors`},
		{"mirror without a scheme", head + "registry: {mirrors: {docker.io: [local, mirror.example]}}\n", `registry.mirrors["docker.io"][1]: "mirror.example" is not allowed: write a URL`},
		{"mirror with a password", head + "registry: {mirrors: {docker.io: ['https://me:secret@mirror.example']}}\n", `is not allowed: write a URL`},
		{"huge", head + strings.Repeat("#", maxFile), "it has more than 1048576 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Load(strings.NewReader(tt.text))
			if err == nil || !strings.HasPrefix(err.Error(), "read cluster config: ") || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("error: %v, want %q", err, tt.want)
			}
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("class of %v", err)
			}
		})
	}
	if _, err := Load(brokenReader{}); !errors.Is(err, errBroken) {
		t.Errorf("error: %v", err)
	}
}

var errBroken = errors.New("broken")

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errBroken }

func FuzzLoad(f *testing.F) {
	f.Add(head + "registry:\n  mirrors:\n    docker.io: [https://mirror.example, local]\n")
	f.Add(head + "vm: {<<: *x}\n")
	f.Add(head + "? [a]\n: b\n")
	f.Add("a: &a [*a]\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Load(strings.NewReader(text))
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("class of %v", err)
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Errorf("what was read is invalid: %v", err)
		}
	})
}

const reference = "../../../docs/reference/"

// row is a row of a table of the reference: key, type, default, meaning.
var row = regexp.MustCompile("(?m)^\\| `([a-zA-Z.]+)` \\| [a-z ]+ \\| `([^`]*)` \\| .+ \\|$")

// keys lists the path of every key of the format, in its order.
func keys(t reflect.Type, parent string) []string {
	var all []string
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous || len(f.Index) > 1 && parent != "":
		case f.Type.Kind() == reflect.Struct:
			all = append(all, keys(f.Type, parent+name+".")...)
		default:
			all = append(all, parent+name)
		}
	}
	return all
}

func TestReferenceListsEveryKey(t *testing.T) {
	page, err := os.ReadFile(reference + "cluster-config.md")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	values := map[string]string{}
	for _, m := range row.FindAllStringSubmatch(string(page), -1) {
		got = append(got, m[1])
		values[m[1]] = m[2]
	}
	if diff := cmp.Diff(keys(reflect.TypeFor[document](), ""), got); diff != "" {
		t.Fatalf("keys of the code (-) and of cluster-config.md (+):\n%s", diff)
	}
	// The defaults in the tables, each put under its parents, are the configuration without a file.
	var text strings.Builder
	parent := ""
	for _, key := range got {
		section, name, found := strings.Cut(key, ".")
		if !found {
			text.WriteString(key + ": " + values[key] + "\n")
			continue
		}
		if section != parent {
			text.WriteString(section + ":\n")
			parent = section
		}
		text.WriteString("  " + name + ": " + values[key] + "\n")
	}
	documented, err := Load(strings.NewReader(text.String()))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text.String())
	}
	if diff := cmp.Diff(Default(), empty(documented)); diff != "" {
		t.Errorf("defaults of the code (-) and of cluster-config.md (+):\n%s", diff)
	}
}

// empty makes "no mirrors" of "none", for comparison.
func empty(c Config) Config {
	if len(c.Registry.Mirrors) == 0 {
		c.Registry.Mirrors = nil
	}
	return c
}

func TestExampleIsTheDefaults(t *testing.T) {
	data, err := os.ReadFile(reference + "cluster-config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c, err := Load(strings.NewReader(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), empty(c)); diff != "" {
		t.Errorf("defaults (-) and example (+):\n%s", diff)
	}
	root, err := parseYAML(string(data))
	if err != nil {
		t.Fatal(err)
	}
	written := map[string]bool{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key := root.Content[i].Value
		written[key] = true
		for j := 0; j+1 < len(root.Content[i+1].Content); j += 2 {
			written[key+"."+root.Content[i+1].Content[j].Value] = true
		}
	}
	for _, key := range keys(reflect.TypeFor[document](), "") {
		if !written[key] {
			t.Errorf("the example lacks %s; it has %v", key, maps.Collect(maps.All(written)))
		}
	}
}

// The example in the page is a file that can be read.
func TestExamplesOfThePage(t *testing.T) {
	page, err := os.ReadFile(reference + "cluster-config.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	if len(found) == 0 {
		t.Fatal("the page has no example")
	}
	for _, m := range found {
		if _, err := Load(strings.NewReader(m[1])); err != nil {
			t.Errorf("%v in\n%s", err, m[1])
		}
	}
}
