//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A running cluster gains a pool, which grows, loses a node and goes. Its nodes are stopped and started.
func TestNodePool(t *testing.T) {
	k := newNamespace(t, "pools")
	member := func(noun, verb string, args ...string) string {
		t.Helper()
		return mustBulkhead(t, append([]string{noun, verb, "--cluster-name", clusterName}, args...)...)
	}
	member("nodepool", "add", "--name", "extra", "--node-count", "1", "--workload-runtime", "OCIContainer", "--labels", "tier=extra", "--node-taints", "tier=extra:NoSchedule")
	removed := false
	t.Cleanup(func() {
		if !removed { // the test has failed: the others want the cluster as it was
			if err := bulkhead(context.Background(), "nodepool", "delete", "--cluster-name", clusterName, "--name", "extra").failure(); err != nil {
				t.Error(err)
			}
		}
	})
	nodes := func() []string {
		t.Helper()
		return strings.Fields(k.run(t, "get", "nodes", "-l", "bulkhead.dev/pool=extra", "-o", "jsonpath={.items[*].metadata.name}"))
	}
	if n := nodes(); len(n) != 1 || !strings.HasPrefix(n[0], "e2e-extra-") {
		t.Fatalf("the pool's nodes are %v", n)
	}
	first := nodes()[0]
	if labels := k.get(t, "node/"+first, `{.metadata.labels.tier} {.metadata.labels.bulkhead\.dev/pool} {.metadata.labels.bulkhead\.dev/isolation}.`); labels != "extra extra ." {
		t.Errorf("the node's labels are %q", labels)
	}
	if taint := k.get(t, "node/"+first, "{.spec.taints[?(@.key=='tier')].value}"); taint != "extra" {
		t.Errorf("the node's taint is %q", taint)
	}
	t.Run("its pods and the others' reach each other", func(t *testing.T) { poolPods(t, k, first) })
	t.Run("a node is stopped and started", func(t *testing.T) { poolNodeRestart(t, k, first) })

	member("nodepool", "scale", "--name", "extra", "--node-count", "2")
	if n := nodes(); len(n) != 2 || n[0] != first {
		t.Errorf("after growing, the pool's nodes are %v", n)
	}
	member("nodepool", "scale", "--name", "extra", "--node-count", "1")
	if diff := cmp.Diff([]string{first}, nodes()); diff != "" {
		t.Errorf("after shrinking, the pool's nodes are (-want +got):\n%s", diff)
	}
	member("nodepool", "delete", "--name", "extra")
	removed = true
	if nodes := k.run(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"); nodes != "e2e-nodepool1-0 e2e-nodepool1-1" {
		t.Errorf("after the pool's deletion the nodes are %s", nodes)
	}
	if names := member("nodepool", "list"); strings.Contains(names, "extra") {
		t.Errorf("the pool is still listed:\n%s", names)
	}
	if left, err := os.ReadDir(filepath.Join(clusterDir(clusterName), "nodes")); err != nil || len(left) != 2 {
		t.Errorf("the directories of the nodes are %v, %v", left, err)
	}
}

const poolPod = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  nodeSelector: {tier: extra}
  tolerations: [{key: tier, value: extra}]
  containers:
  - {name: main, image: bulkhead.test/base:1, command: [testprog, serve, "8080"]}
`

// poolPods runs a pod on the new node, whose image came with the node, and asks it from the old nodes and the other way round.
func poolPods(t *testing.T, k client, node string) {
	k.apply(t, fmt.Sprintf(poolPod, "inside"))
	k.ready(t, "inside")
	if on := k.get(t, "pod/inside", "{.spec.nodeName}"); on != node {
		t.Fatalf("the pod is on %s", on)
	}
	s := shared(t)
	want := map[string]string{}
	for _, ip := range k.podIPs(t, "inside") {
		want[target("tcp", ip, 8080)] = "inside"
	}
	var targets []string
	for name := range want {
		targets = append(targets, name)
	}
	for _, from := range sharedPods() {
		eventually(t, func() string { return cmp.Diff(want, s.probe(t, from, patient, targets...)) })
	}
	want, targets = map[string]string{}, nil
	for _, pod := range sharedPods() {
		for _, ip := range s.podIPs(t, pod) {
			want[target("tcp", ip, 8080)] = pod
			targets = append(targets, target("tcp", ip, 8080))
		}
	}
	eventually(t, func() string { return cmp.Diff(want, k.probe(t, "inside", patient, targets...)) })
	// A pod for a VM has no node in this pool.
	k.apply(t, strings.Replace(fmt.Sprintf(poolPod, "misplaced"), "spec:", "spec:\n  runtimeClassName: "+classBulkhead, 1))
	k.await(t, "jsonpath={.status.conditions[?(@.type=='PodScheduled')].reason}=Unschedulable", "pod/misplaced")
	k.run(t, "delete", "pod", "misplaced")
}

// poolNodeRestart stops a node that has a pod, and starts it: the pod runs again, and the others have noticed nothing.
func poolNodeRestart(t *testing.T, k client, node string) {
	before := containers(t)
	uid := k.get(t, "pod/inside", "{.metadata.uid}")
	mustBulkhead(t, "node", "stop", "--cluster-name", clusterName, node)
	state := func() string {
		for _, n := range show(t, clusterName).Nodes {
			if n.Name == node {
				return n.State
			}
		}
		return "gone"
	}
	if s := state(); s != "stopped" {
		t.Errorf("after the stop the node is %s", s)
	}
	mustBulkhead(t, "node", "start", "--cluster-name", clusterName, node)
	if s := state(); s != "running" {
		t.Errorf("after the start the node is %s", s)
	}
	k.await(t, "condition=Ready", "node/"+node)
	k.ready(t, "inside")
	if now := k.get(t, "pod/inside", "{.metadata.uid}"); now != uid {
		t.Error("the pod is another one")
	}
	eventually(t, func() string {
		r := k.try("exec", "inside", "--", "hostname")
		if r.stdout != "inside\n" {
			return fmt.Sprintf("exec after the node's start: %v %q", r.failure(), r.stdout)
		}
		return ""
	})
	if diff := cmp.Diff(before, containers(t)); diff != "" {
		t.Errorf("pods on other nodes (-before +after):\n%s", diff)
	}
}
