//go:build e2e

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/test/leak"
)

// What can't be done is refused with the parameter and the reason, and before anything is made.
func TestRefusals(t *testing.T) {
	write := func(name, content string) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	unknownKey := write("unknown.yaml", "apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterConfig\npodSecurity: {enforced: baseline}\n")
	badLevel := write("level.yaml", "apiVersion: bulkhead.dev/v1alpha1\nkind: ClusterConfig\npodSecurity: {enforce: strict}\n")
	before, err := leak.Take(scope())
	if err != nil {
		t.Fatal(err)
	}
	create := func(args ...string) []string { return append([]string{"cluster", "create"}, args...) }
	for _, c := range []struct {
		name string
		args []string
		says []string
	}{
		{"a name that is taken", create(clusterName), []string{clusterName, "already", "cluster delete"}},
		{"a name with capitals", create("Second"), []string{"Second"}},
		{"a name with a path", create("../second"), []string{"../second"}},
		{"an empty name", create(""), []string{"name"}},
		{"a name that is too long", create(strings.Repeat("a", 64)), []string{"aaaa"}},
		{"a pool's name with capitals", create("second", "--nodepool-name", "Pool"), []string{"--nodepool-name", "Pool"}},
		{"a pool's name of 13 letters", create("second", "--nodepool-name", "abcdefghijklm"), []string{"--nodepool-name", "abcdefghijklm"}},
		{"a runtime that isn't there", create("second", "--workload-runtime", "kvm"), []string{"--workload-runtime", "kvm", "vm-isolation"}},
		{"fewer nodes than none", create("second", "--node-count", "-1"), []string{"--node-count", "-1"}},
		{"more nodes than can be", create("second", "--node-count", "1000"), []string{"--node-count", "1000"}},
		{"a configuration that isn't there", create("second", "--config", "/nowhere.yaml"), []string{"--config", "/nowhere.yaml"}},
		{"a configuration with an unknown key", create("second", "--config", unknownKey), []string{unknownKey, "podSecurity", "enforced"}},
		{"a configuration with an unknown level", create("second", "--config", badLevel), []string{badLevel, "podSecurity.enforce", "baseline"}},
		{"a cluster that isn't there", []string{"cluster", "stop", "second"}, []string{"second", clusterName}},
		{"a pool that is there", []string{"nodepool", "add", "--cluster-name", clusterName, "--name", "nodepool1"}, []string{"nodepool1"}},
		{"a pool that isn't there", []string{"nodepool", "scale", "--cluster-name", clusterName, "--name", "other", "--node-count", "1"}, []string{"other"}},
		{"a node that isn't there", []string{"node", "stop", "--cluster-name", clusterName, "e2e-nodepool1-7"}, []string{"e2e-nodepool1-7"}},
		{"a feature that isn't there", []string{"feature", "register", "Nonsense"}, []string{"Nonsense", "EmulatedVMIsolation"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), generous)
			defer cancel()
			r := bulkhead(ctx, c.args...)
			if r.code <= 0 {
				t.Errorf("exit code %d", r.code)
			}
			for _, text := range c.says {
				if !strings.Contains(r.stderr, text) {
					t.Errorf("it doesn't say %q: %q", text, r.stderr)
				}
			}
		})
	}
	t.Run("nothing was made", func(t *testing.T) {
		left, err := leak.Wait(before, scope())
		if err != nil {
			t.Fatal(err)
		}
		for _, thing := range onlyOf(left, "second") {
			t.Errorf("left behind: %s", thing)
		}
	})
}

// onlyOf returns the things that belong to a cluster, by its name or its number. The cluster that the tests share lives on
// meanwhile, and makes and removes things of its own.
func onlyOf(things []string, cluster string) []string {
	var own []string
	for _, thing := range things {
		if strings.Contains(thing, clusterDir(cluster)) || strings.Contains(thing, "/."+cluster) || strings.Contains(thing, clusterID(cluster)[:6]) {
			own = append(own, thing)
		}
	}
	return own
}

// Without hardware, VMs are a preview feature that has to be asked for.
func TestFeatureThatIsNotRegistered(t *testing.T) {
	k := shared(t)
	if isolation := k.get(t, "runtimeclass/"+classBulkhead, `{.scheduling.nodeSelector.bulkhead\.dev/isolation}`); isolation != "emulated" {
		t.Skipf("the nodes' isolation is %s: no feature is needed", isolation)
	}
	state := filepath.Join(suite.dir, "other-state")
	if err := os.Mkdir(state, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(state, "guest"), os.DirFS(filepath.Join(suite.state, "guest"))); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), generous)
	defer cancel()
	r := bulkhead(ctx, "cluster", "create", "second", "--workload-runtime", "KataMshvVmIsolation", "--state-dir", state)
	for _, text := range []string{"--workload-runtime", "EmulatedVMIsolation", "bulkhead feature register EmulatedVMIsolation"} {
		if r.code <= 0 || !strings.Contains(r.stderr, text) {
			t.Errorf("exit code %d; it doesn't say %q: %q", r.code, text, r.stderr)
		}
	}
	if entries, err := os.ReadDir(filepath.Join(state, "clusters")); !os.IsNotExist(err) {
		t.Errorf("it made %v, %v", entries, err)
	}
	if listed := mustBulkhead(t, "feature", "show", "EmulatedVMIsolation", "--state-dir", state); !strings.Contains(listed, "NotRegistered") {
		t.Errorf("the feature is shown as %q", listed)
	}
	if listed := mustBulkhead(t, "feature", "list"); !strings.Contains(listed, "Registered") || strings.Contains(listed, "NotRegistered") {
		t.Errorf("where it is registered, the feature is listed as %q", listed)
	}
}

// A disk without room for a cluster is found out about before anything is made.
func TestDiskFull(t *testing.T) {
	state := filepath.Join(suite.dir, "full-state")
	if err := os.Mkdir(state, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", state, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(state, 0); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), generous)
	defer cancel()
	r := bulkhead(ctx, "cluster", "create", "second", "--state-dir", state)
	if r.code <= 0 || !strings.Contains(r.stderr, "--state-dir") || !strings.Contains(r.stderr, "64 MiB left") {
		t.Errorf("exit code %d, %q", r.code, r.stderr)
	}
	if entries, err := os.ReadDir(state); err != nil || len(entries) > 0 {
		t.Errorf("it made %v, %v", entries, err)
	}
}

func TestNotRoot(t *testing.T) {
	cmd := exec.Command(filepath.Join(suite.bin, "bulkhead"), "cluster", "create", "second")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if r := run(cmd); r.code <= 0 || !strings.Contains(r.stderr, "root") {
		t.Errorf("exit code %d, %q", r.code, r.stderr)
	}
}

// Credentials are merged into what a kubeconfig has, and deleted from it no sooner than the cluster.
func TestGetCredentials(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config")
	const other = `apiVersion: v1
kind: Config
clusters: [{name: other, cluster: {server: "https://other.example"}}]
contexts: [{name: other, context: {cluster: other, user: other}}]
current-context: other
users: [{name: other, user: {token: abc}}]
`
	if err := os.WriteFile(file, []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	mustBulkhead(t, "cluster", "get-credentials", clusterName, "--file", file)
	config := func(args ...string) string {
		return strings.TrimSpace(run(exec.Command(filepath.Join(suite.bin, "bulkhead-kube"), append([]string{"kubectl", "--kubeconfig", file}, args...)...)).stdout)
	}
	if context := config("config", "current-context"); context != clusterName {
		t.Errorf("the current context is %q", context)
	}
	if diff := cmp.Diff("e2e\nother", config("config", "get-contexts", "-o", "name")); diff != "" {
		t.Errorf("contexts (-want +got):\n%s", diff)
	}
	if version := config("version"); !strings.Contains(version, "Server Version: v1.36.") {
		t.Errorf("kubectl says %q", version)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v, %v", info.Mode(), err)
	}
}
