//go:build e2e

package e2e

import (
	"encoding/json"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"bulkhead.dev/bulkhead/test/kit"
)

// What was loaded is on all nodes.
func TestImageList(t *testing.T) {
	var images []struct {
		Name  string
		Size  int64
		Nodes []string
	}
	text := mustBulkhead(t, "image", "list", "--cluster-name", clusterName, "-o", "json")
	if err := json.Unmarshal([]byte(text), &images); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	for _, want := range []string{busybox, kit.BaseImage} {
		found := false
		for _, i := range images {
			if i.Name == want {
				found = true
				if len(i.Nodes) != 2 || i.Size <= 0 {
					t.Errorf("%s is on %v, with %d bytes", want, i.Nodes, i.Size)
				}
			}
		}
		if !found {
			t.Errorf("the list doesn't have %s:\n%s", want, text)
		}
	}
}

// Archives that are none are refused, and nothing is loaded of the others.
func TestImageLoadRefuses(t *testing.T) {
	for _, file := range []string{"/nowhere.tar", "/bin/busybox"} {
		if r := bulkhead(t.Context(), "image", "load", "--cluster-name", clusterName, file); r.code == 0 || !strings.Contains(r.stderr, file) {
			t.Errorf("%s: exit code %d, %q", file, r.code, r.stderr)
		}
	}
}

// The cluster's registry is a mirror of docker.io (see clusterConfig): what is pushed there under docker.io's name is pulled
// by that name.
func TestRegistryMirror(t *testing.T) {
	k := newNamespace(t, "mirror")
	image, err := tarball.ImageFromPath(suite.busybox, nil)
	if err != nil {
		t.Fatal(err)
	}
	// Another image than the one that was loaded: that one's layers and name are on the nodes.
	if image, err = mutate.Config(image, v1.Config{Cmd: []string{"sleep", "3600"}, Env: []string{"PATH=/bin", "MIRRORED=yes"}}); err != nil {
		t.Fatal(err)
	}
	registry := netip.AddrPortFrom(controlPlane(t), 5000)
	reference, err := name.NewTag(registry.String()+"/docker.io/library/mirrored:1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(reference, image, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	for pod, class := range map[string]string{"ordinary": "", "sandboxed": classBulkhead} {
		manifest := strings.ReplaceAll(plainPod(t, pod, class), kit.BaseImage, "mirrored:1\n    imagePullPolicy: Always")
		k.apply(t, strings.ReplaceAll(manifest, "    command: [testprog, serve, \"8080\"]\n", ""))
	}
	k.ready(t, "ordinary", "sandboxed")
	for _, pod := range []string{"ordinary", "sandboxed"} {
		if name := k.get(t, "pod/"+pod, "{.status.containerStatuses[0].image}"); name != "docker.io/library/mirrored:1" {
			t.Errorf("%s: the image is %q", pod, name)
		}
		if mirrored := k.exec(t, pod, "sh", "-c", "echo $MIRRORED"); mirrored != "yes" {
			t.Errorf("%s: its environment isn't the image's", pod)
		}
	}
}

// controlPlane is the address of the API server and the registry: the second of the cluster's subnet.
func controlPlane(t *testing.T) netip.Addr {
	t.Helper()
	subnets := show(t, clusterName).Subnets
	i := slices.IndexFunc(subnets, func(s string) bool { return netip.MustParsePrefix(s).Addr().Is4() })
	if i < 0 {
		t.Fatalf("the cluster's subnets are %v", subnets)
	}
	return netip.MustParsePrefix(subnets[i]).Masked().Addr().Next().Next()
}

// A program becomes an image and runs.
func TestImageBuild(t *testing.T) {
	k := newNamespace(t, "build")
	archive := filepath.Join(t.TempDir(), "built.tar")
	mustBulkhead(t, "image", "build", "--name", "bulkhead.test/built:1", "-o", archive, "--cmd", "lookup", "--cmd", "localhost", filepath.Join(suite.dir, "testprog"))
	mustBulkhead(t, "image", "load", "--cluster-name", clusterName, archive)
	k.run(t, "run", "built", "--image=bulkhead.test/built:1", "--restart=Never")
	k.await(t, "jsonpath={.status.phase}=Succeeded", "pod/built")
	if logs := k.run(t, "logs", "built"); !strings.HasPrefix(logs, "localhost 127.0.0.1") {
		t.Errorf("it says %q", logs)
	}
}
