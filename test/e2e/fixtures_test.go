//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"text/template"

	"bulkhead.dev/bulkhead/test/kit"
)

const (
	sharedNamespace   = "shared"
	evictionNamespace = "eviction"
	mainContainer     = "main"
	shellContainer    = "shell"
)

// The shared pods: two ordinary and two sandboxed, of each kind one on each node. All answer on the ports of "serve" and have
// a second container that answers the lines of its stdin.
const (
	ordinary0, ordinary1   = "ordinary-0", "ordinary-1"
	sandboxed0, sandboxed1 = "sandboxed-0", "sandboxed-1"
)

// The pods that write to their nodes' disks, see TestEphemeralStorageLimit.
const greedyOrdinary, modestOrdinary, greedySandboxed = "greedy-ordinary", "modest-ordinary", "greedy-sandboxed"

// sharedPods are all of them.
func sharedPods() []string { return []string{ordinary0, ordinary1, sandboxed0, sandboxed1} }

// runtimeClasses of a cluster. The shared sandboxed pods and the example have one each.
const (
	classBulkhead = "bulkhead"
	classKata     = "kata-vm-isolation"
	classMSHV     = "kata-mshv-vm-isolation"
)

// pod is what the tests' pods differ in.
type pod struct {
	Name string
	// Kind is a label: pods of one kind are on different nodes. Class is a RuntimeClass, or empty.
	Kind, Class string
	// SharePIDs: its containers see each other's processes.
	SharePIDs bool
}

func fixturePods() []pod {
	return []pod{
		{Name: ordinary0, Kind: "ordinary"}, {Name: ordinary1, Kind: "ordinary"},
		{Name: sandboxed0, Kind: "sandboxed", Class: classBulkhead}, {Name: sandboxed1, Kind: "sandboxed", Class: classKata, SharePIDs: true},
	}
}

// fixtureTemplate is applied when the cluster is there; nobody waits for it but the tests that use it.
const fixtureTemplate = `
{{- range .Pods }}
---
apiVersion: v1
kind: Pod
metadata:
  name: {{ .Name }}
  namespace: {{ $.Shared }}
  labels: {app: shared, kind: {{ .Kind }}, pod: {{ .Name }}}
spec:
  terminationGracePeriodSeconds: 1
  {{- if .Class }}
  runtimeClassName: {{ .Class }}
  {{- end }}
  shareProcessNamespace: {{ .SharePIDs }}
  affinity:
    podAntiAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector: {matchLabels: {kind: {{ .Kind }}}}
  containers:
  - name: ` + mainContainer + `
    image: {{ $.Image }}
    command: [testprog, serve, "8080", "8081", "8082", "9000"]
    ports: [{name: web, containerPort: 8080}]
    readinessProbe: {tcpSocket: {port: web}}
    resources: {limits: {cpu: 200m, memory: 128Mi}, requests: {cpu: 50m, memory: 32Mi}}
  - name: ` + shellContainer + `
    image: {{ $.Image }}
    stdin: true
    command: [sh, -c, "echo began; while read -r line; do echo got $line; done"]
    resources: {limits: {cpu: 100m, memory: 64Mi}, requests: {cpu: 10m, memory: 16Mi}}
{{- end }}
{{- range .Writers }}
---
# It writes 60 MiB: more than it may, or less. The kubelet looks every now and then.
apiVersion: v1
kind: Pod
metadata: {name: {{ .Name }}, namespace: {{ $.Eviction }}}
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  {{- if .Class }}
  runtimeClassName: {{ .Class }}
  {{- end }}
  containers:
  - name: ` + mainContainer + `
    image: {{ $.Image }}
    command: [sh, -c, "dd if=/dev/zero of=/scratch/fill bs=1M count=60 && sleep 3600"]
    resources: {limits: {memory: 64Mi, ephemeral-storage: {{ .Limit }}}}
    volumeMounts: [{name: scratch, mountPath: /scratch}]
  volumes: [{name: scratch, emptyDir: {}}]
{{- end }}
`

// writer is a pod of the eviction namespace.
type writer struct{ Name, Class, Limit string }

func writers() []writer {
	return []writer{
		{greedyOrdinary, "", "20Mi"}, {modestOrdinary, "", "200Mi"},
		{greedySandboxed, classBulkhead, "20Mi"},
	}
}

func applyFixtures(ctx context.Context) error {
	manifest, err := render(fixtureTemplate, map[string]any{
		"Shared": sharedNamespace, "Eviction": evictionNamespace, "Pods": fixturePods(), "Writers": writers(), "Image": kit.BaseImage,
	})
	if err != nil {
		return err
	}
	for _, name := range []string{sharedNamespace, evictionNamespace} {
		if err := createNamespace(ctx, name); err != nil {
			return err
		}
	}
	cmd := client{}.command(ctx, "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	return run(cmd).failure()
}

// createNamespace returns when pods can be made in it: they need the account that a controller adds to each.
func createNamespace(ctx context.Context, name string) error {
	if err := run(client{}.command(ctx, "create", "namespace", name)).failure(); err != nil {
		return err
	}
	return run(client{name}.command(ctx, "wait", "--for=create", "--timeout="+generous.String(), "serviceaccount/default")).failure()
}

// render fills a manifest's template.
func render(text string, data any) (string, error) {
	t, err := template.New("manifest").Option("missingkey=error").Parse(text)
	if err != nil {
		return "", fmt.Errorf("parse the template of a manifest: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, data); err != nil {
		return "", fmt.Errorf("fill the template of a manifest: %w", err)
	}
	return b.String(), nil
}

// shared waits for the shared pods and returns kubectl for them.
func shared(t *testing.T) client {
	t.Helper()
	k := client{sharedNamespace}.explained(t)
	k.ready(t, sharedPods()...)
	return k
}

// podTemplate is a pod that only waits.
const podTemplate = `
apiVersion: v1
kind: Pod
metadata: {name: {{ .Name }}, labels: {app: {{ .Name }}}}
spec:
  terminationGracePeriodSeconds: 1
  {{- if .Class }}
  runtimeClassName: {{ .Class }}
  {{- end }}
  containers:
  - name: ` + mainContainer + `
    image: ` + kit.BaseImage + `
    command: [testprog, serve, "8080"]
    resources: {limits: {memory: 64Mi}}
`

// plainPod is the manifest of a pod of podTemplate. A class "" makes an ordinary one.
func plainPod(t *testing.T, name, class string) string {
	t.Helper()
	manifest, err := render(podTemplate, pod{Name: name, Class: class})
	if err != nil {
		t.Fatal(err)
	}
	return manifest
}
