package manifest

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

func TestRender(t *testing.T) {
	out, err := Render(Values{
		ControlPlane: netip.MustParseAddr("10.88.3.2"), ClusterDNS: netip.MustParseAddr("10.96.0.10"), MetricsPort: 4443,
		CA: []byte("pem"), Isolation: "emulated",
	})
	if err != nil {
		t.Fatal(err)
	}
	type object struct {
		APIVersion, Kind string
		Metadata         struct{ Name, Namespace string }
		Handler          string
		Overhead         struct{ PodFixed map[string]string }
		Scheduling       struct{ NodeSelector map[string]string }
		Spec             map[string]any
		Endpoints        []struct{ Addresses []string }
		Subjects         []struct{ Name string }
		RoleRef          struct{ Name string }
	}
	roles, seen := []string{}, map[string]object{}
	for _, doc := range bytes.Split(out, []byte("\n---\n")) {
		var o object
		if err := yaml.Unmarshal(doc, &o); err != nil {
			t.Fatalf("%v in:\n%s", err, doc)
		}
		if o.Kind == "" {
			continue
		}
		key := o.Kind + "/" + o.Metadata.Name
		if _, twice := seen[key]; twice || o.APIVersion == "" || o.Metadata.Name == "" {
			t.Errorf("%s: twice, or without a version or name", key)
		}
		seen[key] = o
		if o.Kind == "ClusterRole" {
			roles = append(roles, o.Metadata.Name)
		}
	}
	// A binding to a role that isn't there is accepted by the API server and gives nothing.
	for key, o := range seen {
		if name := o.RoleRef.Name; name != "" && !slices.Contains(roles, name) && !slices.Contains([]string{
			"system:kubelet-api-admin", "system:auth-delegator", "extension-apiserver-authentication-reader", // Kubernetes' own
		}, name) {
			t.Errorf("%s binds to %s, which nobody defines", key, name)
		}
	}
	for _, c := range RuntimeClasses() {
		o := seen["RuntimeClass/"+c.Name]
		if o.Handler != c.Handler || o.Overhead.PodFixed["memory"] != c.Memory {
			t.Errorf("RuntimeClass %s is %+v", c.Name, o)
		}
		if diff := cmp.Diff(map[string]string{"bulkhead.dev/isolation": "emulated"}, o.Scheduling.NodeSelector); diff != "" {
			t.Errorf("RuntimeClass %s selects (-want +got):\n%s", c.Name, diff)
		}
	}
	if got := seen["EndpointSlice/kube-dns"].Endpoints; len(got) != 1 || got[0].Addresses[0] != "10.88.3.2" {
		t.Errorf("kube-dns has endpoints %v", got)
	}
	if got := seen["Service/kube-dns"].Spec["clusterIP"]; got != "10.96.0.10" {
		t.Errorf("kube-dns has the address %v", got)
	}
	if got := seen["APIService/v1beta1.metrics.k8s.io"].Spec["caBundle"]; got != "cGVt" {
		t.Errorf("metrics API trusts %v", got)
	}
}
