//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"bulkhead.dev/bulkhead/test/kit"
)

const claimManifest = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 100Mi}}
`

const claimPod = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  restartPolicy: Never
  %s
  containers:
  - name: ` + mainContainer + `
    image: ` + kit.BaseImage + `
    command: [sh, -c, "%s"]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
`

// A claim gets a volume of the default class when a pod wants it, whose data outlives the pods of both runtimes, and which goes
// with the claim.
func TestStorage(t *testing.T) {
	k := newNamespace(t, "storage")
	k.apply(t, claimManifest)
	for i, pod := range []struct{ class, command string }{
		{"", "echo first >> /data/log"},
		{"runtimeClassName: " + classBulkhead, "echo second >> /data/log"},
		{"", "cat /data/log"},
	} {
		name := fmt.Sprintf("pod-%d", i)
		k.apply(t, fmt.Sprintf(claimPod, name, pod.class, pod.command))
		k.await(t, "jsonpath={.status.phase}=Succeeded", "pod/"+name)
		if i == 2 {
			if log := k.run(t, "logs", name); log != "first\nsecond" {
				t.Errorf("the third pod reads %q", log)
			}
		}
		k.run(t, "delete", "pod", name)
	}
	fallback := k.run(t, "get", "storageclass", "-o",
		`jsonpath={.items[?(@.metadata.annotations.storageclass\.kubernetes\.io/is-default-class=="true")].metadata.name}`)
	if class := k.get(t, "pvc/data", "{.spec.storageClassName}"); class != fallback || class == "" {
		t.Errorf("the claim has the class %q; the default is %q", class, fallback)
	}
	volume := k.get(t, "pvc/data", "{.spec.volumeName}")
	directories := func() []string {
		found, err := filepath.Glob(filepath.Join(clusterDir(clusterName), "nodes", "*", "volumes", "*"+volume+"*"))
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	if found := directories(); len(found) != 1 {
		t.Errorf("the volume's directories are %v", found)
	} else if data, err := os.ReadFile(filepath.Join(found[0], "log")); err != nil || string(data) != "first\nsecond\n" {
		t.Errorf("the volume's file is %q, %v", data, err)
	}
	k.run(t, "delete", "pvc", "data")
	k.await(t, "delete", "pv/"+volume)
	eventually(t, func() string {
		if found := directories(); len(found) > 0 {
			return fmt.Sprintf("the directory of a volume that is gone: %v", found)
		}
		return ""
	})
}
