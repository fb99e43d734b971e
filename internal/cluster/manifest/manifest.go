// Package manifest has the Kubernetes objects that every embedded cluster begins with.
//
// They are files of YAML, applied with server-side apply in the order of their names when a cluster is created, started or
// updated, so that a newer Bulkhead brings its newer objects to an old cluster:
//
//	files/*.yaml ── text/template with Values ── kubectl apply --server-side
//
// What runs beside the API server instead of in pods (CoreDNS, metrics-server) has a Service without a selector, and an
// EndpointSlice with the control plane's address.
package manifest

import (
	"bytes"
	"embed"
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/netip"
	"text/template"
)

//go:embed files/*.yaml
var files embed.FS

// Values are what differs between clusters.
type Values struct {
	// ControlPlane is the address of CoreDNS and metrics-server.
	ControlPlane netip.Addr
	// ClusterDNS is the service address that pods resolve names at.
	ClusterDNS netip.Addr
	// MetricsPort is where metrics-server listens.
	MetricsPort int
	// CA is the PEM of the cluster's authority.
	CA []byte
	// Isolation is the value of the label bulkhead.dev/isolation that the RuntimeClasses select.
	Isolation string
}

// RuntimeClass is a class of sandboxed pods.
type RuntimeClass struct {
	Name, Handler string
	// CPU and Memory are what a pod costs beyond what its containers may use. Memory is what test/bench/cluster measures with limits of up
	// to 1 GiB (docs/performance.md), with some room; CPU is an estimate.
	CPU, Memory string
}

// RuntimeClasses are the classes of every cluster. Kubernetes adds the overhead to a pod's cgroup and to what the scheduler
// reserves. It is one figure for pods of all sizes.
//
// A VM of the aks profile has 2 GiB on top of the limits; that is room inside the VM, which costs memory only when a guest
// touches it, and a pod's containers can't: their cgroups in the guest hold their limits. What is left is the page cache and
// kernel of a guest that is larger, hence the larger overhead.
func RuntimeClasses() []RuntimeClass {
	return []RuntimeClass{
		{Name: "bulkhead", Handler: "bulkhead", CPU: "100m", Memory: "256Mi"},
		{Name: "kata-vm-isolation", Handler: "kata-vm-isolation", CPU: "100m", Memory: "256Mi"},
		{Name: "kata-mshv-vm-isolation", Handler: "kata-mshv-vm-isolation", CPU: "100m", Memory: "288Mi"},
	}
}

// Render returns all objects as one stream of YAML documents.
func Render(v Values) ([]byte, error) {
	names, err := fs.Glob(files, "files/*.yaml")
	if err != nil {
		return nil, err
	}
	data := map[string]any{
		"ControlPlane": v.ControlPlane, "ClusterDNS": v.ClusterDNS, "MetricsPort": v.MetricsPort,
		"CA": base64.StdEncoding.EncodeToString(v.CA), "Isolation": v.Isolation, "RuntimeClasses": RuntimeClasses(),
	}
	var out bytes.Buffer
	for _, name := range names {
		text, err := files.ReadFile(name)
		if err != nil {
			return nil, err
		}
		t, err := template.New(name).Option("missingkey=error").Parse(string(text))
		if err != nil {
			return nil, fmt.Errorf("parse manifest: %w", err)
		}
		out.WriteString("---\n")
		if err := t.Execute(&out, data); err != nil {
			return nil, fmt.Errorf("render manifest: %w", err)
		}
	}
	return out.Bytes(), nil
}
