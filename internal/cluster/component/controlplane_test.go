package component

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"bulkhead.dev/bulkhead/internal/cluster/fabric"
	"bulkhead.dev/bulkhead/internal/cluster/pki"
	"bulkhead.dev/bulkhead/internal/cluster/spec"
	"bulkhead.dev/bulkhead/internal/cluster/supervise"
)

func controlPlane(t *testing.T, change func(*ControlPlaneOptions)) ([]supervise.Process, map[string][]byte, ControlPlaneOptions) {
	t.Helper()
	o := ControlPlaneOptions{
		Dir: t.TempDir(), Sockets: "/run/bulkhead-0123abcd", Bin: "/opt/bulkhead",
		Network: fabric.Network{ID: "0123abcd", Subnet: 7, IPv6: true}, Config: spec.Default(),
	}
	if change != nil {
		change(&o)
	}
	processes, files, err := ControlPlane(o)
	if err != nil {
		t.Fatal(err)
	}
	return processes, files, o
}

// Whatever file a component is told to read, somebody writes.
func TestControlPlaneReadsWhatIsWritten(t *testing.T) {
	processes, files, o := controlPlane(t, nil)
	if _, err := pki.Ensure(o.Dir, pki.Names{Cluster: "c", ControlPlane: o.Network.ControlPlaneAddrs(), APIServer: APIServerURL(o.Network)}, time.Now()); err != nil {
		t.Fatal(err)
	}
	made := []string{"etcd", "kms-keys.json", "nodes", "registry", "logs/audit.log"} // by the components themselves
	count := 0
	for _, p := range processes {
		for _, arg := range p.Args[2:] {
			_, path, ok := strings.Cut(arg, "="+o.Dir+"/")
			if !ok || slices.Contains(made, path) {
				continue
			}
			count++
			if _, written := files[filepath.Join(o.Dir, path)]; written {
				continue
			}
			if _, err := os.Stat(filepath.Join(o.Dir, path)); err != nil {
				t.Errorf("%s is told %s: %v", p.Name, arg, err)
			}
		}
	}
	if count < 30 {
		t.Errorf("only %d arguments are files: the test doesn't see them", count)
	}
}

func TestControlPlaneOrder(t *testing.T) {
	processes, _, _ := controlPlane(t, nil)
	var seen []string
	for _, p := range processes {
		for _, a := range p.After {
			if !slices.Contains(seen, a) {
				t.Errorf("%s comes after %s, which isn't before it", p.Name, a)
			}
		}
		if slices.Contains(seen, p.Name) || p.Log == "" || !filepath.IsAbs(p.Args[0]) {
			t.Errorf("%s: twice, without a log, or without a whole path", p.Name)
		}
		seen = append(seen, p.Name)
	}
	want := []string{Etcd, KMS, APIServer, ControllerManager, Scheduler, CoreDNS, MetricsServer, Provisioner, Registry}
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("processes (-want +got):\n%s", diff)
	}
}

// All that people wrote into the cluster's configuration arrives.
func TestAdmissionConfig(t *testing.T) {
	_, files, o := controlPlane(t, func(o *ControlPlaneOptions) {
		o.Config.PodSecurity.Enforce, o.Config.PodSecurity.EnforceVersion = spec.Baseline, "v1.30"
		o.Config.PodSecurity.ExemptNamespaces = []string{"kube-system", "build"}
	})
	var got admissionConfiguration
	if err := yaml.UnmarshalStrict(files[o.config("admission.yaml")], &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"enforce": "baseline", "enforce-version": "v1.30", "audit": "restricted", "audit-version": "latest", "warn": "baseline", "warn-version": "latest",
	}
	if len(got.Plugins) != 1 || got.Plugins[0].Name != "PodSecurity" {
		t.Fatalf("plugins: %+v", got.Plugins)
	}
	if diff := cmp.Diff(want, got.Plugins[0].Configuration.Defaults); diff != "" {
		t.Errorf("defaults (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"kube-system", "build"}, got.Plugins[0].Configuration.Exemptions.Namespaces); diff != "" {
		t.Errorf("exempt (-want +got):\n%s", diff)
	}
}

func TestCorefile(t *testing.T) {
	for _, c := range []struct {
		name      string
		resolvers []netip.Addr
		ipv6      bool
		has, not  []string
	}{
		{"alone", nil, false, []string{"bind 10.88.7.2\n", "kubernetes cluster.local", `kubeconfig "/`}, []string{"forward"}},
		{"dual stack", nil, true, []string{"bind 10.88.7.2 fd88:123:abcd::2\n"}, nil},
		{
			"with resolvers", []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}, false,
			[]string{"forward . 192.0.2.1:53 [2001:db8::1]:53 {"}, nil,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, files, o := controlPlane(t, func(o *ControlPlaneOptions) { o.Resolvers, o.Network.IPv6 = c.resolvers, c.ipv6 })
			text := string(files[o.config("Corefile")])
			for _, want := range c.has {
				if !strings.Contains(text, want) {
					t.Errorf("%q is not in\n%s", want, text)
				}
			}
			for _, wrong := range c.not {
				if strings.Contains(text, wrong) {
					t.Errorf("%q is in\n%s", wrong, text)
				}
			}
		})
	}
}

func TestResolvers(t *testing.T) {
	got := Resolvers("# by hand\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver ::1\nsearch example.org\nnameserver 2001:db8::1\nnameserver\nnameserver x\n")
	want := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// Who may push decides what the cluster's pods run: the host may, not its nodes and pods.
func TestRegistryTakesPushesFromTheHost(t *testing.T) {
	processes, _, _ := controlPlane(t, nil)
	i := slices.IndexFunc(processes, func(p supervise.Process) bool { return p.Name == Registry })
	if i < 0 || !slices.Contains(processes[i].Args, "--push-from=10.88.7.1/32,fd88:123:abcd::1/128") {
		t.Errorf("the registry's arguments are %v", processes[i].Args)
	}
}
