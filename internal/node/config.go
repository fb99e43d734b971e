package node

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"strings"
)

// files are the configuration files of the node, by name.
func (n *Node) files() map[string]string {
	return map[string]string{
		"containerd.toml":     n.containerdConfig(),
		"runtime.toml":        n.runtimeConfig(),
		"cni/10-pod.conflist": n.cniConfig(),
	}
}

// containerdConfig has what differs from containerd's defaults. Quoting with %q is TOML's basic string for what paths have.
func (n *Node) containerdConfig() string {
	var b strings.Builder
	fmt.Fprintf(&b, `version = 3
root = %q
state = %q
temp = %q
imports = []
disabled_plugins = [
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.nri.v1.nri",
]

[grpc]
address = %q

[plugins.'io.containerd.shim.v1.manager']
socket_dir = %q

[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = %q

# Root may be without CAP_SYS_RESOURCE, as in a container: then nothing can have a lower OOM score than containerd.
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
tolerate_missing_hugetlb_controller = true
netns_mounts_under_state_dir = true
disable_apparmor = true

[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = [%q]
conf_dir = %q

[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = "runc"
`, n.path("root"), n.path("state"), n.path("tmp"), n.Socket(), filepath.Join(n.sockets, "s"), PauseImage,
		filepath.Join(n.bin, "cni"), n.path("cni"))
	for _, r := range []struct{ name, runtime, sandboxer string }{
		{"runc", RuntimeRunc, "podsandbox"},
		{"bulkhead", RuntimeBulkhead, "podsandbox"},
		{"bulkhead-sandboxer", RuntimeBulkhead, "shim"},
	} {
		fmt.Fprintf(&b, `
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.%s]
runtime_type = %q
sandboxer = %q
pod_annotations = ["bulkhead.dev/*"]
`, r.name, r.runtime, r.sandboxer)
		if r.runtime == RuntimeRunc {
			fmt.Fprintf(&b, `
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.%s.options]
Root = %q
`, r.name, n.RuncRoot())
		}
	}
	return b.String()
}

// The runtimes of a node.
const (
	RuntimeRunc     = "io.containerd.runc.v2"
	RuntimeBulkhead = "io.containerd.bulkhead.v2"
)

// PauseImage is the image that CRI takes for the pause container: one made on this machine, since a node pulls nothing.
const PauseImage = "bulkhead.dev/demo/busybox:latest"

// RuncRoot is where runc keeps its containers' states. For ctr it is an option; its default would be outside of the node.
func (n *Node) RuncRoot() string { return filepath.Join(n.sockets, "runc") }

// runtimeConfig is the configuration of io.containerd.bulkhead.v2.
func (n *Node) runtimeConfig() string {
	var b strings.Builder
	fmt.Fprintf(&b, "version = 1\nstate_dir = %q\nrun_dir = %q\n", n.path("bulkhead"), n.RunDir())
	if n.options.Acceleration != "" {
		fmt.Fprintf(&b, "\n[vmm]\nacceleration = %q\n", n.options.Acceleration)
	}
	if n.options.Guest != "" {
		fmt.Fprintf(&b, "\n[guest]\nkernel = %q\ninitramfs = %q\n",
			filepath.Join(n.options.Guest, "kernel"), filepath.Join(n.options.Guest, "initramfs"))
	}
	return b.String()
}

// Bridge is the device that CNI makes for the first pod with a network and keeps, at most 15 bytes; Stop removes it.
func (n *Node) Bridge() string { return "bh" + n.sockets[len(n.sockets)-8:] }

// cniConfig is a bridge without address translation, which would need iptables and leave rules behind. Nodes in different
// directories get different networks.
func (n *Node) cniConfig() string {
	hash := sha256.Sum256([]byte(n.dir))
	return fmt.Sprintf(`{
  "cniVersion": "1.0.0",
  "name": "pod",
  "plugins": [{
    "type": "bridge", "bridge": %q, "isGateway": true, "ipMasq": false,
    "ipam": {
      "type": "host-local", "dataDir": %q,
      "ranges": [[{"subnet": "10.189.%d.0/24"}], [{"subnet": "fd89:%x:%x::/64"}]],
      "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
    }
  }]
}
`, n.Bridge(), n.path("ipam"), hash[4], hash[4:6], hash[6:8])
}
