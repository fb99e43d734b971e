//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What Kubernetes 1.25 brought or made the rule. Ephemeral containers are in TestDebug, NetworkPolicy's endPort in TestPolicyIngressEndPort.

// Pods by what the Pod Security Standards say to them.
const (
	// hostPod is privileged: baseline forbids host namespaces.
	hostPod = `
apiVersion: v1
kind: Pod
metadata: {name: host}
spec:
  hostNetwork: true
  containers: [{name: main, image: none}]
`
	// basePod is what baseline allows and restricted forbids.
	basePod = `
apiVersion: v1
kind: Pod
metadata: {name: base}
spec:
  containers: [{name: main, image: none}]
`
	restrictedPod = `
apiVersion: v1
kind: Pod
metadata: {name: restricted}
spec:
  securityContext: {runAsNonRoot: true, runAsUser: 1000, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: main
    image: none
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
`
)

// Pod Security Admission takes its defaults from the cluster's configuration (see clusterConfig), and labels over them.
func TestPodSecurity(t *testing.T) {
	const refused, warned = "is forbidden: violates PodSecurity", "Warning: would violate PodSecurity"
	made := map[string]client{}
	for _, c := range []struct {
		name, namespace string
		labels          []string
		pod             string
		// refusedBy and warnedBy are levels.
		refusedBy, warnedBy string
	}{
		{"the default refuses privileged pods", "psa-default", nil, hostPod, "baseline:latest", ""},
		{"the default warns of what isn't restricted", "psa-default", nil, basePod, "", "restricted:latest"},
		{"the default lets restricted pods in", "psa-default", nil, restrictedPod, "", ""},
		{"an exempt namespace takes everything", "exempt", nil, hostPod, "", ""},
		{"enforce by label, stricter", "psa-strict", []string{"enforce=restricted"}, basePod, "restricted:latest", ""},
		{"enforce by label, laxer", "psa-lax", []string{"enforce=privileged", "warn=baseline"}, hostPod, "", "baseline:latest"},
		{"warn by label", "psa-quiet", []string{"warn=privileged"}, basePod, "", ""},
		{"a version by label", "psa-version", []string{"enforce=restricted", "enforce-version=v1.30"}, basePod, "restricted:v1.30", ""},
	} {
		k, ok := made[c.namespace]
		if !ok {
			k = newNamespace(t, c.namespace)
			made[c.namespace] = k
		}
		t.Run(c.name, func(t *testing.T) {
			for _, label := range c.labels {
				client{}.run(t, "label", "namespace", c.namespace, "pod-security.kubernetes.io/"+label)
			}
			r := k.feed(c.pod, "apply", "--dry-run=server", "-f", "-")
			if (r.code != 0) != (c.refusedBy != "") || c.refusedBy != "" && !strings.Contains(r.stderr, fmt.Sprintf("%s %q", refused, c.refusedBy)) {
				t.Errorf("exit code %d, %q; should be refused by %q", r.code, r.stderr, c.refusedBy)
			}
			if (c.warnedBy != "") != strings.Contains(r.stderr, warned) || c.warnedBy != "" && !strings.Contains(r.stderr, fmt.Sprintf("%s %q", warned, c.warnedBy)) {
				t.Errorf("it says %q; should warn of %q", r.stderr, c.warnedBy)
			}
		})
	}
}

// The third mode, audit, leaves its notes in the API server's audit log.
func TestPodSecurityAudit(t *testing.T) {
	k := newNamespace(t, "psa-audit")
	for _, c := range []struct {
		name, pod string
		noted     bool
	}{{"base", basePod, true}, {"restricted", restrictedPod, false}} {
		if err := k.feed(c.pod, "create", "--dry-run=server", "-f", "-").failure(); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() string {
			event, ok := audited(t, "psa-audit", c.name)
			if !ok {
				return "the audit log has nothing of pod " + c.name
			}
			note, noted := event.Annotations["pod-security.kubernetes.io/audit-violations"]
			if noted != c.noted || noted && !strings.Contains(note, `would violate PodSecurity "restricted:latest"`) {
				return fmt.Sprintf("the annotations of pod %s are %v", c.name, event.Annotations)
			}
			return ""
		})
	}
}

type auditEvent struct {
	Verb      string
	ObjectRef struct{ Namespace, Resource, Name string }

	Annotations map[string]string
}

// audited returns the event of a pod's creation.
func audited(t *testing.T, namespace, pod string) (auditEvent, bool) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(clusterDir(clusterName), "logs", "audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		if !bytes.Contains(line, []byte(namespace)) {
			continue
		}
		var e auditEvent
		if json.Unmarshal(line, &e) == nil && e.Verb == "create" && e.ObjectRef.Resource == "pods" && e.ObjectRef.Namespace == namespace && e.ObjectRef.Name == pod {
			return e, true
		}
	}
	return auditEvent{}, false
}

// Pods that say nothing of seccomp have the runtime's default profile: their processes and those that are executed in them.
func TestSeccompDefault(t *testing.T) {
	k := shared(t)
	for _, pod := range sharedPods() {
		for _, process := range []string{"self", "$(pidof testprog | tr ' ' '\\n' | sort -n | head -n 1)"} {
			status := k.exec(t, pod, "sh", "-c", "grep ^Seccomp: /proc/"+process+"/status")
			if strings.TrimSpace(strings.TrimPrefix(status, "Seccomp:")) != "2" {
				t.Errorf("%s, process %s: %q; mode 2 is a filter", pod, process, status)
			}
		}
		// What only the profile forbids: capabilities have nothing to do with keyrings.
		if calls := k.exec(t, pod, "testprog", "syscalls"); !strings.Contains(calls, "keyctl EPERM") {
			t.Errorf("%s: forbidden system calls: %q", pod, calls)
		}
	}
}

// A pod that writes more to its node's disk than its limit is evicted; one that writes as much within its limit is not.
func TestEphemeralStorageLimit(t *testing.T) {
	k := client{evictionNamespace}.explained(t)
	for _, pod := range []string{greedyOrdinary, greedySandboxed} {
		k.await(t, "jsonpath={.status.reason}=Evicted", "pod/"+pod)
		if message := k.get(t, "pod/"+pod, "{.status.message}"); !strings.Contains(message, "ephemeral") {
			t.Errorf("%s is evicted because: %q", pod, message)
		}
	}
	if phase := k.get(t, "pod/"+modestOrdinary, "{.status.phase}"); phase != "Running" {
		t.Errorf("the pod within its limit is %s", phase)
	}
}

const crd = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: fleets.e2e.bulkhead.dev}
spec:
  group: e2e.bulkhead.dev
  names: {kind: Fleet, plural: fleets, singular: fleet}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            x-kubernetes-validations:
            - rule: self.least <= self.ships && self.ships <= self.most
              message: ships must be between least and most
            - rule: oldSelf.name == self.name
              message: a fleet keeps its name
            required: [name, least, ships, most]
            properties:
              name: {type: string}
              least: {type: integer}
              ships: {type: integer}
              most: {type: integer}
`

// The rules of a custom resource hold at its creation, and over its changes.
func TestCELValidation(t *testing.T) {
	k := newNamespace(t, "cel")
	k.apply(t, crd)
	t.Cleanup(func() {
		if err := k.feed(crd, "delete", "--wait=false", "-f", "-").failure(); err != nil {
			t.Error(err)
		}
	})
	k.await(t, "condition=Established", "crd/fleets.e2e.bulkhead.dev")
	fleet := func(name string, ships int) string {
		return fmt.Sprintf("apiVersion: e2e.bulkhead.dev/v1\nkind: Fleet\nmetadata: {name: one}\nspec: {name: %s, least: 1, ships: %d, most: 5}\n", name, ships)
	}
	if r := k.feed(fleet("red", 6), "apply", "-f", "-"); r.code == 0 || !strings.Contains(r.stderr, "ships must be between least and most") {
		t.Errorf("an object against the rule: exit code %d, %q", r.code, r.stderr)
	}
	k.apply(t, fleet("red", 5))
	if r := k.feed(fleet("blue", 5), "apply", "-f", "-"); r.code == 0 || !strings.Contains(r.stderr, "a fleet keeps its name") {
		t.Errorf("a change against the rule: exit code %d, %q", r.code, r.stderr)
	}
	k.apply(t, fleet("red", 2))
}

// etcd's files have a ConfigMap's words, and of a Secret only what the KMS provider made of them.
func TestSecretsAreEncryptedAtRest(t *testing.T) {
	k := newNamespace(t, "secrets")
	k.run(t, "create", "configmap", "open", "--from-literal=text=words-of-the-configmap")
	k.run(t, "create", "secret", "generic", "closed", "--from-literal=text=words-of-the-secret")
	inFiles := func(words string) bool {
		found := false
		err := filepath.WalkDir(filepath.Join(clusterDir(clusterName), "etcd"), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			found = found || bytes.Contains(data, []byte(words))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	eventually(t, func() string {
		if !inFiles("words-of-the-configmap") {
			return "etcd's files have not even the ConfigMap's words"
		}
		return ""
	})
	if !inFiles("/registry/secrets/secrets/closed") || !inFiles("k8s:enc:kms:v2:bulkhead:") {
		t.Error("etcd's files have no record of a Secret that the KMS provider encrypted")
	}
	for _, words := range []string{"words-of-the-secret", "d29yZHMtb2YtdGhlLXNlY3JldA"} {
		if inFiles(words) {
			t.Errorf("etcd's files have the Secret's %q", words)
		}
	}
	if text := k.run(t, "get", "secret", "closed", "-o", "go-template={{.data.text | base64decode}}"); text != "words-of-the-secret" {
		t.Errorf("the Secret reads %q", text)
	}
}
