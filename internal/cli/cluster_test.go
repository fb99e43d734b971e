package cli

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bulkhead.dev/bulkhead/internal/cluster"
	"bulkhead.dev/bulkhead/internal/cluster/spec"
)

// TestClusterCommands runs command lines against a machine that has the cluster "demo" with one ordinary node.
func TestClusterCommands(t *testing.T) {
	tests := []struct {
		line           string
		status         int
		stdout, stderr string // regular expressions; empty: nothing was written
	}{
		{"cluster", 0, `(?s)create +Make a cluster.*get-credentials +Let kubectl`, ""},
		{"cluster create new", 0, "", `(?s)^changing cluster new\ncluster new is ready; .*bulkhead cluster get-credentials new\n$`},
		{"cluster create", 2, "", `^bulkhead: "bulkhead cluster create" takes one argument, the cluster's name, and got 0\n`},
		{"cluster create new other", 2, "", `and got 2`},
		{"cluster create New_1", 2, "", `^bulkhead: NAME "New_1": has an upper-case letter.*\nSee "bulkhead cluster create --help"\.\n$`},
		{"cluster create new --node-count -1", 2, "", `^bulkhead: --node-count "-1": `},
		{"cluster create new --node-count two", 2, "", `^bulkhead: --node-count "two": write a whole number\n`},
		{"cluster create new --nodepool-name Pool", 2, "", `^bulkhead: --nodepool-name "Pool": has an upper-case letter`},
		{"cluster create new --workload-runtime gvisor", 2, "", `^bulkhead: --workload-runtime "gvisor": is no workload runtime: write oci`},
		{"cluster create new --config none.yaml", 1, "", `^bulkhead: --config: open none.yaml: no such file`},
		{"cluster create new --config typo.yaml", 1, "", `^bulkhead: --config typo.yaml: .*podSecurity.enforced: unknown key; podSecurity has enforce`},
		{"cluster create demo", 1, "", `^bulkhead: NAME "demo": is taken: take another\n$`},
		{"cluster list", 0, `^NAME +PHASE +KUBERNETES +NODES +CREATED +PROBLEM\ndemo +running +v1\.36\.3 +1 `, ""},
		{"cluster list -o yaml", 0, `(?m)^- created: .*\n  kubernetesVersion: v1\.36\.3\n  name: demo$`, ""},
		{"cluster show demo", 0, `(?s)^name +demo\n.*server +https://10.*POOL.*nodepool1 +oci +1 +- +-\n\n.*demo-nodepool1-0 +nodepool1 +running +10\.88\.7\.10,fd88::10\n.*etcd +12 +yes +0 .*scheduler +- +no +3 +-\n$`, ""},
		{"cluster show none", 1, "", `^bulkhead: cluster none: not found\n$`},
		{"cluster stop demo", 0, "", `^changing cluster demo\n$`},
		{"cluster delete none", 1, "", `^bulkhead: cluster none: not found\n$`},

		{"nodepool add --name a", 2, "", `^bulkhead: --cluster-name is required\n`},
		{"nodepool add --cluster-name demo", 2, "", `^bulkhead: --name is required\n`},
		{"nodepool add --cluster-name demo --name 1st", 2, "", `^bulkhead: --name "1st": doesn't begin with a letter`},
		{"nodepool add --cluster-name demo --name toolonganame1", 2, "", `more than 12`},
		{"nodepool add --cluster-name demo --name a --node-taints x", 2, "", `^bulkhead: --node-taints "x": is no taint`},
		{"nodepool add --cluster-name demo --name a --labels x", 2, "", `^bulkhead: --labels "x": x must be formatted as key=value\n`},
		{"nodepool add --cluster-name none --name a", 1, "", `cluster none: not found`},
		{"nodepool list", 2, "", `--cluster-name is required`},
		{"nodepool list --cluster-name demo", 0, `^POOL +RUNTIME +NODES +LABELS +TAINTS\nnodepool1 +oci +1 +- +-\n$`, ""},
		{"nodepool show --cluster-name demo --name nodepool1", 0, `(?s)^POOL.*nodepool1.*NODE .*demo-nodepool1-0`, ""},
		{"nodepool show --cluster-name demo --name other", 1, "", `^bulkhead: cluster demo has no pool other; it has nodepool1\n$`},
		{"nodepool scale --cluster-name demo --name nodepool1", 2, "", `^bulkhead: --node-count is required\n`},
		{"nodepool scale --cluster-name demo --name nodepool1 --node-count 101", 2, "", `^bulkhead: --node-count "101": `},

		{"node stop --cluster-name demo demo-nodepool1-0", 0, "", `\nnode demo-nodepool1-0: stopped\n$`},
		{"node partition --cluster-name demo demo-nodepool1-0", 0, "", `\nnode demo-nodepool1-0: cut off from the network, until bulkhead node heal\n$`},
		{"node heal --cluster-name demo demo-nodepool1-0", 0, "", `\nnode demo-nodepool1-0: back on the network\n$`},
		{"node stop --cluster-name demo", 2, "", `takes one argument, the node's name, and got 0`},
		{"node stop demo-nodepool1-0", 2, "", `--cluster-name is required`},
		{"node stop --cluster-name demo other", 1, "", `(?m)^bulkhead: node other: not found$`},

		{"image load --cluster-name demo", 2, "", `takes one or more archives, and got none`},
		{"image load a.tar", 2, "", `--cluster-name is required`},
		{"image list --cluster-name demo -o json", 0, `^\[\]\n$`, ""},
		{"image list", 2, "", `--cluster-name is required`},

		{"supervise", 2, "", `takes one argument, the supervisor's directory, and got 0`},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			t.Chdir(t.TempDir())
			t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "config"))
			if err := os.WriteFile("typo.yaml", []byte("apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterConfig\npodSecurity: {enforced: baseline}\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			m := newFakeManager()
			m.must(t, "cluster create demo")
			got := m.run(t, tt.line)
			if got.status != tt.status {
				t.Errorf("status %d, want %d", got.status, tt.status)
			}
			for _, out := range []struct{ name, got, want string }{{"stdout", got.stdout, tt.stdout}, {"stderr", got.stderr, tt.stderr}} {
				if out.want == "" && out.got != "" || !regexp.MustCompile(out.want).MatchString(out.got) {
					t.Errorf("%s:\n%s\nwant %s", out.name, out.got, out.want)
				}
			}
			if got.status == exitUsage && len(m.clusters) != 1 {
				t.Errorf("a wrong command line changed the clusters: %v", m.clusters)
			}
		})
	}
}

// TestClusterStory goes through a cluster's life, and looks at what the manager was told.
func TestClusterStory(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("c.yaml", []byte("apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterConfig\npodSecurity: {enforce: baseline}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "config"))
	m := newFakeManager()
	m.must(t, "cluster create demo --node-count 2 --nodepool-name system --workload-runtime ocicontainer --config c.yaml --state-dir s --bin-dir b")
	if m.options.StateDir != "s" || m.options.BinDir != "b" {
		t.Errorf("opened with %+v", m.options)
	}
	if m.configs["demo"].PodSecurity.Enforce != spec.Baseline {
		t.Errorf("config %+v", m.configs["demo"])
	}
	m.must(t, "nodepool add --cluster-name demo -n sandbox -c 1 --workload-runtime KataMshvVmIsolation --labels a=b,c=d --node-taints x=y:NoSchedule,z:NoExecute")
	m.must(t, "nodepool scale --cluster-name demo --name sandbox --node-count 0")
	want := []spec.Pool{
		{Name: "system", Count: 2, Runtime: spec.OCI},
		{Name: "sandbox", Runtime: spec.VMIsolation, Labels: map[string]string{"a": "b", "c": "d"}, Taints: []string{"x=y:NoSchedule", "z:NoExecute"}},
	}
	var pools []spec.Pool
	if err := json.Unmarshal([]byte(m.must(t, "nodepool list --cluster-name demo -o json").stdout), &pools); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, pools); diff != "" {
		t.Error(diff)
	}
	if got := m.must(t, "nodepool list --cluster-name demo").stdout; !strings.Contains(got, "a=b,c=d") || !strings.Contains(got, "x=y:NoSchedule,z:NoExecute") {
		t.Error(got)
	}
	m.must(t, "nodepool delete --cluster-name demo --name sandbox")

	for _, step := range []struct{ verb, state string }{{"stop", "stopped"}, {"start", "running"}, {"partition", "partitioned"}, {"heal", "running"}} {
		m.must(t, "node "+step.verb+" --cluster-name demo demo-system-1")
		var nodes []cluster.NodeDetail
		if err := json.Unmarshal([]byte(m.must(t, "node list --cluster-name demo -o json").stdout), &nodes); err != nil {
			t.Fatal(err)
		}
		if len(nodes) != 2 || nodes[0].State != "running" || nodes[1].State != step.state {
			t.Errorf("after %s: %+v", step.verb, nodes)
		}
	}

	m.must(t, "image load --cluster-name demo a.tar b.tar")
	if got := m.must(t, "image list --cluster-name demo").stdout; !regexp.MustCompile(`a\.tar +1\.0 MiB +1\nb\.tar`).MatchString(got) {
		t.Error(got)
	}
	for _, step := range []struct {
		verb  string
		phase spec.Phase
	}{{"stop", spec.Stopped}, {"start", spec.Running}, {"update", spec.Running}} {
		m.must(t, "cluster "+step.verb+" demo")
		if got := m.clusters["demo"].Phase; got != step.phase {
			t.Errorf("after %s: %s", step.verb, got)
		}
	}
	if got := m.clusters["demo"].KubernetesVersion; got != "v1.36.4" {
		t.Errorf("after update: %s", got)
	}
	m.must(t, "cluster delete demo")
	if got := m.must(t, "cluster list -o json").stdout; got != "[]\n" {
		t.Errorf("after delete: %s", got)
	}
}

func TestImageBuildIntoCluster(t *testing.T) {
	workDir(t)
	m := newFakeManager()
	m.must(t, "cluster create demo")
	got := m.must(t, "image build --name example.org/x:1 --cluster-name demo root")
	if !strings.HasPrefix(got.stdout, "example.org/x:1@sha256:") {
		t.Error(got.stdout)
	}
	loaded := m.images["demo"]
	if len(loaded) != 1 {
		t.Fatalf("loaded %v", loaded)
	}
	if _, err := os.Stat(loaded[0].Name); err == nil {
		t.Errorf("the archive %s is left", loaded[0].Name)
	}
}

func TestGetCredentials(t *testing.T) {
	dir := t.TempDir()
	first := filepath.Join(dir, "first")
	t.Setenv("KUBECONFIG", first+string(filepath.ListSeparator)+filepath.Join(dir, "second"))
	t.Setenv("HOME", filepath.Join(dir, "home"))
	m := newFakeManager()
	m.must(t, "cluster create demo")
	m.must(t, "cluster create other")

	if got := m.must(t, "cluster get-credentials demo --file -").stdout; !strings.Contains(got, "https://10.88.7.2:6443") {
		t.Errorf("on stdout: %q", got)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("--file - wrote %v, %v", entries, err)
	}

	m.must(t, "cluster get-credentials other")
	if got := m.must(t, "cluster get-credentials demo"); got.stdout != "" || got.stderr != "context demo is set in "+first+"\n" {
		t.Errorf("%+v", got)
	}
	if got := m.must(t, "cluster get-credentials demo"); got.stderr != "context demo was set already in "+first+"\n" {
		t.Errorf("%+v", got)
	}
	text := readFile(t, first)
	for _, want := range []string{"current-context: demo", "name: other"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}

	m.must(t, "cluster delete demo")
	if text := readFile(t, first); strings.Contains(text, "demo") || !strings.Contains(text, "name: other") {
		t.Errorf("after delete:\n%s", text)
	}

	t.Setenv("KUBECONFIG", "")
	m.must(t, "cluster get-credentials other")
	if text := readFile(t, filepath.Join(dir, "home/.kube/config")); !strings.Contains(text, "name: other") {
		t.Errorf("in the home directory:\n%s", text)
	}
	m.must(t, "cluster get-credentials other --file "+filepath.Join(dir, "mine"))
	if text := readFile(t, filepath.Join(dir, "mine")); !strings.Contains(text, "name: other") {
		t.Errorf("in --file:\n%s", text)
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestInterrupt: an interrupt reaches the manager, is acknowledged, and fails the command.
func TestInterrupt(t *testing.T) {
	m := newFakeManager()
	ctx, cancel := context.WithCancel(t.Context())
	m.during = func(ctx context.Context) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}
	got := m.runContext(ctx, "cluster create demo")
	if got.status != exitFailed || !strings.Contains(got.stderr, "interrupted: cleaning up") || !strings.Contains(got.stderr, "\nbulkhead: interrupted: ") || !strings.Contains(got.stderr, context.Canceled.Error()) {
		t.Errorf("%+v", got)
	}
	if len(m.clusters) > 0 {
		t.Errorf("left %v", m.clusters)
	}
}

func TestStateDirVariable(t *testing.T) {
	m := newFakeManager()
	t.Setenv(stateDirVariable, "") // whatever the tests' own environment says
	m.must(t, "cluster list")
	if m.options.StateDir != defaultStateDir {
		t.Errorf("without the variable: %s", m.options.StateDir)
	}
	t.Setenv(stateDirVariable, "/from/environment")
	m.must(t, "cluster list")
	if m.options.StateDir != "/from/environment" {
		t.Errorf("with the variable: %s", m.options.StateDir)
	}
	m.must(t, "cluster list --state-dir /from/flag")
	if m.options.StateDir != "/from/flag" {
		t.Errorf("with the flag: %s", m.options.StateDir)
	}
}

func TestCompletion(t *testing.T) {
	m := newFakeManager()
	m.must(t, "cluster create demo")
	m.must(t, "cluster create other")
	m.must(t, "nodepool add --cluster-name demo --name sandbox")
	for line, want := range map[string][]string{
		"cluster stop ":                              {"demo", "other"},
		"cluster stop demo ":                         nil,
		"node stop --cluster-name ":                  {"demo", "other"},
		"node stop --cluster-name demo ":             {"demo-nodepool1-0", "demo-sandbox-0"},
		"nodepool scale --cluster-name demo --name ": {"nodepool1", "sandbox"},
		"cluster create x --workload-runtime ":       {"oci", "vm-isolation"},
		"feature register ":                          {"EmulatedVMIsolation"},
	} {
		args := append([]string{"__complete"}, strings.Split(line, " ")...)
		var stdout, stderr strings.Builder
		run(t.Context(), m.open, args, strings.NewReader(""), &stdout, &stderr)
		var got []string
		for word := range strings.Lines(stdout.String()) {
			if word = strings.TrimSpace(word); word != "" && !strings.HasPrefix(word, ":") {
				got = append(got, word)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}
