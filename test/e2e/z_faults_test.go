//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bulkhead.dev/bulkhead/test/leak"
)

// containers are the containers of the shared pods, by number and count of restarts: what tells whether they lived on.
func containers(t *testing.T) []string {
	t.Helper()
	all := strings.Fields(client{sharedNamespace}.run(t, "get", "pods", "-l", "app=shared", "-o",
		"jsonpath={range .items[*].status.containerStatuses[*]}{.containerID}/{.restartCount} {end}"))
	slices.Sort(all)
	return all
}

// alive fails the test unless the cluster comes to be ready, with the same containers as before.
func alive(t *testing.T, k client, before []string) {
	t.Helper()
	eventually(t, func() string {
		if err := k.try("get", "--raw", "/readyz").failure(); err != nil {
			return err.Error()
		}
		return ""
	})
	k.await(t, "condition=Ready", "nodes", "--all")
	k.ready(t, sharedPods()...)
	if diff := cmp.Diff(before, containers(t)); diff != "" {
		t.Errorf("containers (-before +after):\n%s", diff)
	}
}

// healthy is alive, and also wants processes in all pods, and services.
func healthy(t *testing.T, k client, before []string) {
	t.Helper()
	alive(t, k, before)
	var group sync.WaitGroup
	for _, from := range sharedPods() {
		group.Go(func() {
			deadline := time.Now().Add(generous)
			for {
				r := k.try("exec", from, "-c", mainContainer, "--", "testprog", "probe", patient, "tcp:kept:80")
				if strings.HasPrefix(r.stdout, "tcp:kept:80 ok") {
					return
				}
				if time.Now().After(deadline) {
					t.Errorf("service from %s: %q, %v", from, r.stdout, r.failure())
					return
				}
			}
		})
	}
	group.Wait()
}

// keep makes a service for healthy. It stays for the tests that follow: the name of another one would stand for this one's
// address until DNS caches forget it.
func keep(t *testing.T, k client) {
	t.Helper()
	k.apply(t, `
apiVersion: v1
kind: Service
metadata: {name: kept}
spec: {selector: {kind: ordinary}, ports: [{port: 80, targetPort: web}]}
`)
}

// kill ends a component by force and waits until another process does its work.
func kill(t *testing.T, node string, c component) {
	t.Helper()
	find := func() component {
		all := show(t, clusterName).of(t, node)
		i := slices.IndexFunc(all, func(other component) bool { return other.Name == c.Name })
		if i < 0 {
			t.Fatalf("there is no %s any more", c.Name)
		}
		return all[i]
	}
	c = find()
	if c.PID <= 0 || !c.Ready {
		t.Fatalf("%s doesn't run: %+v", c.Name, c)
	}
	if err := syscall.Kill(c.PID, syscall.SIGKILL); err != nil {
		t.Fatalf("kill %s: %v", c.Name, err)
	}
	eventually(t, func() string {
		now := find()
		if now.PID == c.PID || now.PID == 0 || !now.Ready || now.Restarts <= c.Restarts {
			return fmt.Sprintf("%s was %+v, is %+v", c.Name, c, now)
		}
		return ""
	})
}

// Every component is killed, one after the other. Each is started again, pods live on, and nothing that was stored is lost.
func TestComponentsAreKilled(t *testing.T) {
	k := shared(t)
	keep(t, k)
	before := containers(t)
	shown := show(t, clusterName)
	node := shown.Nodes[0].Name
	if len(shown.Components) < 8 || len(shown.Nodes[0].Components) < 4 {
		t.Errorf("too few components are shown: %+v", shown)
	}
	for i, of := range []string{"", node} {
		for _, c := range shown.of(t, of) {
			t.Run(c.Name, func(t *testing.T) {
				name := fmt.Sprintf("stored-%d-%s", i, c.Name)
				k.run(t, "create", "configmap", name, "--from-literal=text="+name)
				kill(t, of, c)
				alive(t, k, before)
				if text := k.get(t, "configmap/"+name, "{.data.text}"); text != name {
					t.Errorf("what was stored before the kill reads %q", text)
				}
				k.run(t, "delete", "configmap", name)
			})
		}
	}
	healthy(t, k, before)
	// What the components do is done again: a new pod of each kind, with a volume, a policy-aware network and metrics.
	n := newNamespace(t, "after-faults")
	n.apply(t, plainPod(t, "ordinary", ""))
	n.apply(t, plainPod(t, "sandboxed", classBulkhead))
	n.apply(t, claimManifest)
	n.apply(t, fmt.Sprintf(claimPod, "claimant", "", "sleep 3600"))
	n.ready(t, "ordinary", "sandboxed", "claimant")
}

// supervisors are the processes that keep the components of the control plane and of a node running.
func supervisors(t *testing.T, node string) []int {
	t.Helper()
	all, err := leak.Processes()
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, dir := range []string{"controlplane", filepath.Join("nodes", node, "supervisor")} {
		for _, p := range all {
			if strings.HasSuffix(p.Command, " supervise "+filepath.Join(clusterDir(clusterName), dir)) {
				pids = append(pids, p.PID)
			}
		}
	}
	if len(pids) != 2 {
		t.Fatalf("the supervisors are %v among %+v", pids, all)
	}
	return pids
}

// A supervisor's components live on without it, and are adopted by the next.
func TestSupervisorsAreKilled(t *testing.T) {
	k := shared(t)
	keep(t, k)
	before, was := containers(t), show(t, clusterName)
	node := was.Nodes[0].Name
	for _, pid := range supervisors(t, node) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	k.run(t, "get", "--raw", "/readyz")
	mustBulkhead(t, "cluster", "start", clusterName)
	pids := func(shown shownCluster) map[string]int {
		all := map[string]int{}
		for _, of := range []string{"", node} {
			for _, c := range shown.of(t, of) {
				all[of+"/"+c.Name] = c.PID
			}
		}
		return all
	}
	if diff := cmp.Diff(pids(was), pids(show(t, clusterName))); diff != "" {
		t.Errorf("components' processes (-before +after):\n%s", diff)
	}
	healthy(t, k, before)
	// They are supervised again.
	kill(t, "", component{Name: "kube-scheduler"})
	kill(t, node, component{Name: "kube-proxy"})
	healthy(t, k, before)
}

// A node that is cut off is not ready after a while, and its pods live on; when it is back, so is all.
func TestPartition(t *testing.T) {
	long(t, "Kubernetes takes most of a minute to call a node NotReady")
	k := shared(t)
	keep(t, k)
	before := containers(t)
	node := show(t, clusterName).Nodes[1].Name
	mustBulkhead(t, "node", "partition", "--cluster-name", clusterName, node)
	k.await(t, "condition=Ready=Unknown", "node/"+node)
	mustBulkhead(t, "node", "heal", "--cluster-name", clusterName, node)
	healthy(t, k, before)
}

// A cluster that was stopped leaves no processes, and comes back with its objects, pods and volumes.
func TestStopAndStart(t *testing.T) {
	k := shared(t)
	keep(t, k)
	n := newNamespace(t, "restart")
	n.apply(t, claimManifest)
	n.apply(t, strings.Replace(fmt.Sprintf(claimPod, "claimant", "", "echo once >> /data/log; sleep 3600"), "Never", "Always", 1))
	n.run(t, "create", "deployment", "replicas", "--image=bulkhead.test/base:1", "--replicas=2", "--", "testprog", "pause")
	n.run(t, "create", "secret", "generic", "kept", "--from-literal=text=kept")
	n.await(t, "condition=Available", "deployment/replicas")
	n.ready(t, "claimant")
	uids := k.run(t, "get", "pods", "-l", "app=shared", "-o", "jsonpath={.items[*].metadata.uid}")

	mustBulkhead(t, "cluster", "stop", clusterName)
	stopped(t, "the stop")
	cmd := startBulkhead(t, "API server ready", "cluster", "start", clusterName)
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the start was interrupted and ended with 0")
	}
	stopped(t, "a start that was interrupted")
	mustBulkhead(t, "cluster", "start", clusterName)

	k.await(t, "condition=Ready", "nodes", "--all")
	k.ready(t, sharedPods()...)
	healthy(t, k, containers(t))
	if now := k.run(t, "get", "pods", "-l", "app=shared", "-o", "jsonpath={.items[*].metadata.uid}"); now != uids {
		t.Errorf("the shared pods were %s, are %s", uids, now)
	}
	n.await(t, "condition=Available", "deployment/replicas")
	n.ready(t, "claimant")
	if text := n.run(t, "get", "secret", "kept", "-o", "go-template={{.data.text | base64decode}}"); text != "kept" {
		t.Errorf("the Secret reads %q", text)
	}
	eventually(t, func() string {
		r := n.try("exec", "claimant", "--", "cat", "/data/log")
		// The start that was interrupted may have come as far as the pod, too.
		if r.stdout != "once\nonce\n" && r.stdout != "once\nonce\nonce\n" {
			return fmt.Sprintf("the volume's file is %q, %v", r.stdout, r.failure())
		}
		return ""
	})
}

// stopped fails the test if the cluster isn't recorded as stopped, or something of it runs.
func stopped(t *testing.T, after string) {
	t.Helper()
	all, err := leak.Processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if strings.Contains(p.Command, suite.state) || strings.Contains(p.Command, clusterID(clusterName)) {
			t.Errorf("still there after %s: process %d, %s", after, p.PID, p.Command)
		}
	}
	if phase := show(t, clusterName).Phase; !strings.EqualFold(phase, "stopped") {
		t.Errorf("after %s the cluster is %s", after, phase)
	}
}

// startBulkhead starts a command and returns when it has said the text.
func startBulkhead(t *testing.T, until string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*generous)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, filepath.Join(suite.bin, "bulkhead"), args...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		said.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), until) {
			go func() { // the pipe must not fill
				for lines.Scan() {
					t.Log(lines.Text())
				}
			}()
			return cmd
		}
	}
	t.Fatalf("%s didn't say %q, but:\n%s%v", strings.Join(args, " "), until, said.String(), cmd.Wait())
	return nil
}

// nothingOf fails the test for each thing of the cluster "second" that is there and wasn't before.
func nothingOf(t *testing.T, before leak.Things) {
	t.Helper()
	eventually(t, func() string {
		after, err := leak.Take(scope())
		if err != nil {
			t.Fatal(err)
		}
		if left := onlyOf(before.Missing(after), "second"); len(left) > 0 {
			return "left behind:\n  " + strings.Join(left, "\n  ")
		}
		return ""
	})
}

// A create that is interrupted undoes what it did, however far it had come.
func TestCreateIsInterrupted(t *testing.T) {
	before, err := leak.Take(scope())
	if err != nil {
		t.Fatal(err)
	}
	for _, until := range []string{"network: bridge", "control plane: starting", "API server ready"} {
		t.Run(until, func(t *testing.T) {
			cmd := startBulkhead(t, until, "cluster", "create", "second")
			if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err == nil {
				t.Error("it was interrupted and ended with 0")
			}
			nothingOf(t, before)
			if list := mustBulkhead(t, "cluster", "list"); strings.Contains(list, "second") {
				t.Errorf("it is listed:\n%s", list)
			}
		})
	}
}

// What a create that was killed has left is repaired: by delete, or by another create.
func TestCreateIsKilled(t *testing.T) {
	before, err := leak.Take(scope())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		until  string
		repair [][]string
	}{
		{"network: bridge", [][]string{{"cluster", "delete", "second"}}},
		{"node second-nodepool1-0: starting", [][]string{{"cluster", "create", "second"}, {"cluster", "delete", "second"}}},
	} {
		t.Run(c.until, func(t *testing.T) {
			cmd := startBulkhead(t, c.until, "cluster", "create", "second")
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait() // it was killed
			if r := bulkhead(t.Context(), "cluster", "stop", "second"); r.code <= 0 || !strings.Contains(r.stderr, "half-made") {
				t.Errorf("stop of what is half made: exit code %d, %q", r.code, r.stderr)
			}
			for _, args := range c.repair {
				mustBulkhead(t, args...)
			}
			nothingOf(t, before)
		})
	}
}

// Clusters side by side have networks of their own and don't notice each other.
func TestThreeClusters(t *testing.T) {
	long(t, "two more clusters are made")
	k := shared(t)
	keep(t, k)
	containersBefore := containers(t)
	before, err := leak.Take(scope())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"second", "third"} {
		mustBulkhead(t, "cluster", "create", name)
		t.Cleanup(func() {
			if err := bulkhead(context.Background(), "cluster", "delete", name).failure(); err != nil {
				t.Error(err)
			}
			if name == "second" {
				nothingOf(t, before)
			}
		})
	}
	if second, third := show(t, "second"), show(t, "third"); second.Subnets[0] == third.Subnets[0] || second.Subnets[0] == show(t, clusterName).Subnets[0] {
		t.Errorf("clusters share a subnet: %v, %v", second.Subnets, third.Subnets)
	}
	for _, name := range []string{"second", "third"} {
		file := filepath.Join(t.TempDir(), "config")
		mustBulkhead(t, "cluster", "get-credentials", name, "--file", file)
		mustBulkhead(t, "image", "load", "--cluster-name", name, suite.base)
		cmd := func(args ...string) result {
			return run(exec.Command(filepath.Join(suite.bin, "bulkhead-kube"), append([]string{"kubectl", "--kubeconfig", file}, args...)...))
		}
		for _, args := range [][]string{
			{"run", "one", "--image=bulkhead.test/base:1"},
			{"wait", "--for=condition=Ready", "--timeout=" + generous.String(), "pod/one"},
			{"exec", "one", "--", "testprog", "lookup", "kubernetes.default"},
		} {
			if err := cmd(args...).failure(); err != nil {
				t.Errorf("cluster %s: %v", name, err)
			}
		}
	}
	healthy(t, k, containersBefore)
}
