package component

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bulkhead.dev/bulkhead/internal/cluster/fabric"
	"bulkhead.dev/bulkhead/internal/cluster/spec"
	"bulkhead.dev/bulkhead/internal/cluster/supervise"
	"bulkhead.dev/bulkhead/internal/node"
)

func nodeOptions(t *testing.T, dir string, change func(*NodeOptions)) NodeOptions {
	t.Helper()
	network := fabric.Network{ID: "0123abcd", Subnet: 7, IPv6: true}
	o := NodeOptions{
		Dir: dir, Bin: "/opt/bin", Network: network, Config: spec.Default(),
		Node:      spec.Node{Name: "demo-sandboxed-3", Pool: "sandboxed", Index: 3},
		Pool:      spec.Pool{Name: "sandboxed", Count: 1, Runtime: spec.VMIsolation, Labels: map[string]string{"tier": "web"}, Taints: []string{"a=b:NoSchedule", "c:NoExecute"}},
		Isolation: "emulated",
		Resolvers: []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("2001:db8::53")},
	}
	if change != nil {
		change(&o)
	}
	containerd, err := node.At(node.Options{
		Dir: filepath.Join(dir, "nodes", o.Node.Name), Bin: o.Bin,
		Member: &node.Member{Cgroup: "/bulkhead-0123abcd/n3/pods", PodCIDRs: o.Network.PodCIDRs(3), VM: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	o.Containerd = containerd
	return o
}

func TestNodeProcesses(t *testing.T) {
	const dir = "/var/lib/bulkhead/clusters/demo"
	processes, files, err := NodeProcesses(nodeOptions(t, dir, nil))
	if err != nil {
		t.Fatal(err)
	}
	for i := range processes {
		if processes[i].Name == node.Containerd {
			processes[i] = supervise.Process{Name: node.Containerd} // package node tests it
		}
	}
	list, err := json.MarshalIndent(processes, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "processes.json", append(list, '\n'))
	for path, content := range files {
		name, ok := strings.CutPrefix(path, dir+"/nodes/demo-sandboxed-3/config/")
		if !ok {
			t.Errorf("the file %s is outside of the node's directory", path)
		}
		golden(t, name, content)
	}
}

// golden compares with a file of testdata; with the environment variable UPDATE_GOLDEN it writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", "node", name)
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got; UPDATE_GOLDEN=1 go test writes it):\n%s", name, diff)
	}
}

func TestNodeOfAnOCIPool(t *testing.T) {
	processes, files, err := NodeProcesses(nodeOptions(t, "/srv/c", func(o *NodeOptions) {
		o.Pool = spec.Pool{Name: "nodepool1", Runtime: spec.OCI}
		o.Isolation = ""
		o.Network.IPv6 = false
		o.Resolvers = nil
	}))
	if err != nil {
		t.Fatal(err)
	}
	kubelet := strings.Join(processes[1].Args, " ")
	for _, want := range []string{"--node-labels=bulkhead.dev/pool=nodepool1 ", "--node-ip=10.88.7.13 "} {
		if !strings.Contains(kubelet+" ", want) {
			t.Errorf("no %s in %s", want, kubelet)
		}
	}
	for name, content := range files {
		if strings.Contains(string(content), "registerWithTaints") || strings.Contains(string(content), "::") {
			t.Errorf("%s has taints or IPv6:\n%s", name, content)
		}
	}
}

// The kubelet's sockets must have short paths wherever the state directory is.
func TestLongDirectory(t *testing.T) {
	dir := "/srv/" + strings.Repeat("long/", 30) + "c"
	processes, _, err := NodeProcesses(nodeOptions(t, dir, nil))
	if err != nil {
		t.Fatal(err)
	}
	for _, arg := range processes[1].Args {
		if root, ok := strings.CutPrefix(arg, "--root-dir="); ok {
			if len(root)+len("/pod-resources/kubelet.sock") > 107 {
				t.Errorf("root directory %s is too long", root)
			}
			return
		}
	}
	t.Error("no root directory")
}

func TestWrongTaint(t *testing.T) {
	if _, _, err := NodeProcesses(nodeOptions(t, "/srv/c", func(o *NodeOptions) { o.Pool.Taints = []string{"a=b"} })); err == nil {
		t.Error("a taint without an effect is taken")
	}
}
