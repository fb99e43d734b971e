//go:build e2e

package e2e

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const (
	trustedFile   = "../../examples/trusted-app.yaml"
	untrustedFile = "../../examples/untrusted-app.yaml"
)

// The story that the project tells: two pods that differ in one line, and two kernels.
func TestStory(t *testing.T) {
	k := newNamespace(t, "story")
	k.run(t, "apply", "-f", trustedFile, "-f", untrustedFile)
	k.ready(t, "trusted-app", "untrusted-app")

	trusted := k.run(t, "exec", "trusted-app", "--", "uname", "-r")
	untrusted := k.run(t, "exec", "untrusted-app", "--", "uname", "-r")
	var node unix.Utsname
	if err := unix.Uname(&node); err != nil {
		t.Fatal(err)
	}
	if host := unix.ByteSliceToString(node.Release[:]); trusted != host {
		t.Errorf("the trusted pod runs on kernel %s; the node's is %s", trusted, host)
	}
	if untrusted == trusted || untrusted == "" {
		t.Errorf("the untrusted pod runs on kernel %q, the trusted one on %q", untrusted, trusted)
	}
	for _, pod := range []string{"trusted-app", "untrusted-app"} {
		eventually(t, func() string {
			if logs := k.run(t, "logs", pod); !strings.HasPrefix(logs, ".\n.") {
				return pod + " has logged " + logs
			}
			return ""
		})
	}
}

// The examples differ in what they are to show, and in their names.
func TestExamplesDifferInTheRuntimeClass(t *testing.T) {
	read := func(path string) []string {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return slices.DeleteFunc(strings.Split(string(data), "\n"), func(line string) bool { return strings.HasPrefix(line, "#") })
	}
	without := func(lines, others []string) []string {
		return slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return slices.Contains(others, line) })
	}
	trusted, untrusted := read(trustedFile), read(untrustedFile)
	if diff := cmp.Diff([]string{"  name: trusted-app"}, without(trusted, untrusted)); diff != "" {
		t.Errorf("only in the trusted one (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"  name: untrusted-app", "  runtimeClassName: " + classMSHV}, without(untrusted, trusted)); diff != "" {
		t.Errorf("only in the untrusted one (-want +got):\n%s", diff)
	}
}

// runtimeClass is node.k8s.io/v1's, as far as it is looked at.
type runtimeClass struct {
	Handler  string
	Overhead struct{ PodFixed map[string]string }

	Scheduling struct{ NodeSelector map[string]string }
}

// Each class runs pods (the shared ones and the story's), on nodes with VMs, and its overhead is added to them.
func TestRuntimeClasses(t *testing.T) {
	k := shared(t)
	// The third class has no pod of its own here; Kubernetes fills a pod in without running it.
	class := func(name string) runtimeClass {
		t.Helper()
		var c runtimeClass
		if err := json.Unmarshal([]byte(k.run(t, "get", "runtimeclass", name, "-o", "json")), &c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, c := range []struct {
		name string
		// get returns a pod of the class as JSON.
		get func() string
	}{
		{classBulkhead, func() string { return k.run(t, "get", "pod", sandboxed0, "-o", "json") }},
		{classKata, func() string { return k.run(t, "get", "pod", sandboxed1, "-o", "json") }},
		{classMSHV, func() string {
			return k.feed(plainPod(t, "dry", classMSHV), "apply", "--dry-run=server", "-f", "-", "-o", "json").stdout
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			want := class(c.name)
			if want.Overhead.PodFixed["memory"] == "" || want.Overhead.PodFixed["cpu"] == "" {
				t.Errorf("the class has the overhead %v", want.Overhead.PodFixed)
			}
			if isolation := want.Scheduling.NodeSelector["bulkhead.dev/isolation"]; isolation != "emulated" && isolation != "hardware" {
				t.Errorf("the class selects nodes by %v", want.Scheduling.NodeSelector)
			}
			var pod struct {
				Spec struct {
					Overhead     map[string]string
					NodeSelector map[string]string
				}
			}
			if err := json.Unmarshal([]byte(c.get()), &pod); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want.Overhead.PodFixed, pod.Spec.Overhead); diff != "" {
				t.Errorf("the pod's overhead (-class +pod):\n%s", diff)
			}
			if diff := cmp.Diff(want.Scheduling.NodeSelector, pod.Spec.NodeSelector); diff != "" {
				t.Errorf("the pod's node selector (-class +pod):\n%s", diff)
			}
		})
	}
	host := k.exec(t, ordinary0, "uname", "-r")
	for _, pod := range []string{sandboxed0, sandboxed1} {
		if guest := k.exec(t, pod, "uname", "-r"); guest == host {
			t.Errorf("%s runs on kernel %s, as %s does", pod, guest, ordinary0)
		}
	}
	if one, other := k.get(t, "pod/"+sandboxed0, "{.spec.nodeName}"), k.get(t, "pod/"+sandboxed1, "{.spec.nodeName}"); one == other {
		t.Errorf("both sandboxed pods are on %s", one)
	}
}
