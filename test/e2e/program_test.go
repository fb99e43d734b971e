//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// result is how a program ended and what it wrote.
type result struct {
	args           []string
	stdout, stderr string
	// code is -1 if it was ended by a signal or could not be started.
	code int
	err  error
}

// failure is an error with all that the program said, or nil if it ended with 0.
func (r result) failure() error {
	if r.err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w: %s", strings.Join(r.args, " "), r.err, strings.TrimSpace(r.stdout+r.stderr))
}

// run runs a program to its end.
func run(cmd *exec.Cmd) result {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := result{args: cmd.Args, stdout: stdout.String(), stderr: stderr.String(), err: err, code: cmd.ProcessState.ExitCode()}
	r.args[0] = filepath.Base(r.args[0])
	return r
}

// bulkhead runs the program under test.
func bulkhead(ctx context.Context, args ...string) result {
	return run(exec.CommandContext(ctx, filepath.Join(suite.bin, "bulkhead"), args...))
}

// mustBulkhead runs it in a test, which ends if it fails.
func mustBulkhead(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*generous)
	defer cancel()
	r := bulkhead(ctx, args...)
	if err := r.failure(); err != nil {
		t.Fatal(err)
	}
	return r.stdout
}

// shownCluster is what the tests read of "cluster show -o json".
type shownCluster struct {
	Name, Phase string
	Subnets     []string
	Nodes       []struct {
		Name, Pool, State string
		Addresses         []string
		Components        []component
	}
	Components []component
}

// component is a process of the control plane or of a node.
type component struct {
	Name, Phase   string
	PID, Restarts int
	Ready         bool
}

// show asks for the cluster's state.
func show(t *testing.T, name string) shownCluster {
	t.Helper()
	var shown shownCluster
	text := mustBulkhead(t, "cluster", "show", name, "-o", "json")
	if err := json.Unmarshal([]byte(text), &shown); err != nil {
		t.Fatalf("cluster show: %v in:\n%s", err, text)
	}
	return shown
}

// of returns the components of the control plane, for "", or of a node.
func (c shownCluster) of(t *testing.T, node string) []component {
	t.Helper()
	if node == "" {
		return c.Components
	}
	for _, n := range c.Nodes {
		if n.Name == node {
			return n.Components
		}
	}
	t.Fatalf("cluster show: there is no node %s", node)
	return nil
}

// client is kubectl in a namespace, as the cluster's administrator.
type client struct{ namespace string }

func (k client) command(ctx context.Context, args ...string) *exec.Cmd {
	all := []string{"kubectl", "--kubeconfig", suite.kubeconfig}
	if k.namespace != "" {
		all = append(all, "--namespace", k.namespace)
	}
	return exec.CommandContext(ctx, filepath.Join(suite.bin, "bulkhead-kube"), append(all, args...)...)
}

// try runs kubectl, which may fail.
func (k client) try(args ...string) result { return k.feed("", args...) }

// feed is try with an input.
func (k client) feed(stdin string, args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), generous)
	defer cancel()
	cmd := k.command(ctx, args...)
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	return run(cmd)
}

// run runs kubectl in a test, which ends if it fails, and returns its output without the space around it.
func (k client) run(t *testing.T, args ...string) string {
	t.Helper()
	r := k.try(args...)
	if err := r.failure(); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(r.stdout)
}

// apply creates or changes the objects of a manifest.
func (k client) apply(t *testing.T, manifest string) {
	t.Helper()
	if err := k.feed(manifest, "apply", "-f", "-").failure(); err != nil {
		t.Fatalf("%v\nof:\n%s", err, manifest)
	}
}

// get reads a field of an object by a JSONPath.
func (k client) get(t *testing.T, object, path string) string {
	t.Helper()
	return k.run(t, "get", object, "-o", "jsonpath="+path)
}

// await waits until the objects are in a condition: as kubectl wait --for has it.
func (k client) await(t *testing.T, condition string, objects ...string) {
	t.Helper()
	args := append([]string{"wait", "--for=" + condition, "--timeout=" + generous.String()}, objects...)
	ctx, cancel := context.WithTimeout(context.Background(), generous+generous/6)
	defer cancel()
	if err := run(k.command(ctx, args...)).failure(); err != nil {
		t.Fatal(err)
	}
}

// ready waits for pods.
func (k client) ready(t *testing.T, pods ...string) {
	t.Helper()
	for i := range pods {
		pods[i] = "pod/" + strings.TrimPrefix(pods[i], "pod/")
	}
	k.await(t, "condition=Ready", pods...)
}

// exec runs a program in a pod's first container.
func (k client) exec(t *testing.T, pod string, args ...string) string {
	t.Helper()
	return k.run(t, append([]string{"exec", pod, "-c", mainContainer, "--"}, args...)...)
}

// newNamespace makes a namespace for a test, which is deleted after it. If the test fails, what happened in it is told.
func newNamespace(t *testing.T, name string) client {
	t.Helper()
	if err := limited(func(ctx context.Context) error { return createNamespace(ctx, name) }); err != nil {
		t.Fatal(err)
	}
	k := client{name}
	t.Cleanup(func() {
		k.explain(t)
		if err := (client{}).try("delete", "namespace", name, "--wait=false").failure(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// explain tells what happened in the namespace, if the test has failed.
func (k client) explain(t *testing.T) {
	t.Helper()
	if !t.Failed() {
		return
	}
	for _, args := range [][]string{
		{"get", "pods", "-o", "wide"}, {"describe", "pods"}, {"get", "events", "--sort-by=.lastTimestamp"}, {"get", "nodes", "-o", "wide"},
	} {
		r := k.try(args...)
		t.Logf("kubectl %s:\n%s%s", strings.Join(args, " "), r.stdout, r.stderr)
	}
	for pod := range strings.FieldsSeq(k.try("get", "pods", "-o", "name").stdout) {
		r := k.try("logs", "--all-containers", "--prefix", "--tail=20", pod)
		t.Logf("logs of %s:\n%s%s", pod, r.stdout, r.stderr)
	}
	t.Log(tails())
}

// explained is explain for tests that use what others use too.
func (k client) explained(t *testing.T) client {
	t.Helper()
	t.Cleanup(func() { k.explain(t) })
	return k
}

// tails returns the last lines of the logs of all of the cluster's components.
func tails() string {
	const lines = 25
	var paths []string
	for _, pattern := range []string{"*.log", "*/*.log", "*/*/*.log", "*/*/*/*.log"} {
		found, err := filepath.Glob(filepath.Join(clusterDir(clusterName), pattern))
		if err == nil {
			paths = append(paths, found...)
		}
	}
	var b strings.Builder
	for _, path := range paths {
		if filepath.Base(path) == "audit.log" {
			continue // it is long, and who asked for what is in the others where it matters
		}
		data, err := os.ReadFile(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			fmt.Fprintf(&b, "== %s: %v\n", path, err)
			continue
		}
		all := slices.Collect(strings.Lines(string(data)))
		fmt.Fprintf(&b, "== end of %s\n", strings.TrimPrefix(path, clusterDir(clusterName)+"/"))
		for _, line := range all[max(0, len(all)-lines):] {
			if len(line) > 400 {
				line = line[:400] + "…\n"
			}
			b.WriteString(line)
		}
	}
	return b.String()
}
