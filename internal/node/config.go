package node

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"path/filepath"
	"strings"

	"bulkhead.dev/bulkhead/internal/config"
)

// files are the configuration files of the node, by name.
func (n *Node) files() (map[string]string, error) {
	files := map[string]string{
		"containerd.toml": n.containerdConfig(),
		"runtime.toml":    n.runtimeConfig(""),
	}
	network := n.bridgeConfig()
	if m := n.options.Member; m != nil {
		mirrors, err := m.mirrorFiles()
		if err != nil {
			return nil, err
		}
		maps.Copy(files, mirrors)
		network = n.routedConfig()
		files["runtime.toml"] = n.runtimeConfig(m.Profile)
		for _, profile := range []string{config.ProfileStandard, config.ProfileAKS} {
			files[profileFile(profile)] = n.runtimeConfig(profile)
		}
	}
	text, err := json.MarshalIndent(network, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the CNI configuration: %w", err)
	}
	files["cni/10-pod.conflist"] = string(text) + "\n"
	return files, nil
}

// handler is a runtime handler of CRI: what a RuntimeClass names.
type handler struct {
	name, runtime, sandboxer string
	options                  map[string]string
}

func (n *Node) handlers() []handler {
	runc := handler{"runc", RuntimeRunc, "podsandbox", map[string]string{"Root": n.RuncRoot()}}
	m := n.options.Member
	switch {
	case m == nil:
		return []handler{
			runc,
			{HandlerBulkhead, RuntimeBulkhead, "podsandbox", nil},
			{"bulkhead-sandboxer", RuntimeBulkhead, "shim", nil},
		}
	case !m.VM:
		return []handler{runc}
	}
	vm := func(name, file string) handler {
		return handler{name, RuntimeBulkhead, "podsandbox", map[string]string{"ConfigPath": n.path(file)}}
	}
	return []handler{
		runc,
		vm(HandlerBulkhead, "runtime.toml"),
		vm(HandlerKata, profileFile(config.ProfileStandard)),
		vm(HandlerKataMSHV, profileFile(config.ProfileAKS)),
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
  # It makes directories in /opt.
  "io.containerd.internal.v1.opt",
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
use_internal_loopback = true
`, n.path("root"), n.path("state"), n.path("tmp"), n.Socket(), filepath.Join(n.sockets, "s"), PauseImage,
		filepath.Join(n.bin, "cni"), n.path("cni"))
	if n.options.Member != nil {
		fmt.Fprintf(&b, "\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = %q\n", n.path(mirrorDir))
	}
	b.WriteString("\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = \"runc\"\n")
	for _, h := range n.handlers() {
		fmt.Fprintf(&b, `
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.%s]
runtime_type = %q
sandboxer = %q
pod_annotations = ["bulkhead.dev/*"]
`, h.name, h.runtime, h.sandboxer)
		if h.options != nil {
			fmt.Fprintf(&b, "\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.%s.options]\n", h.name)
		}
		for key, value := range h.options { // one at most
			fmt.Fprintf(&b, "%s = %q\n", key, value)
		}
	}
	return b.String()
}

// The runtimes of a node.
const (
	RuntimeRunc     = "io.containerd.runc.v2"
	RuntimeBulkhead = "io.containerd.bulkhead.v2"
)

// RuncRoot is where runc keeps its containers' states. For ctr it is an option; its default would be outside of the node.
func (n *Node) RuncRoot() string { return filepath.Join(n.sockets, "runc") }

// profileFile is the name of the runtime's configuration with a sizing profile.
func profileFile(profile string) string { return "runtime-" + profile + ".toml" }

// runtimeConfig is a configuration of io.containerd.bulkhead.v2 with a sizing profile; empty: the default one.
func (n *Node) runtimeConfig(profile string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "version = 1\nstate_dir = %q\nrun_dir = %q\n", n.path("bulkhead"), n.RunDir())
	b.WriteString("\n[vmm]\n")
	if n.options.Acceleration != "" {
		fmt.Fprintf(&b, "acceleration = %q\n", n.options.Acceleration)
	}
	if n.options.Member != nil {
		base, count := n.uids()
		fmt.Fprintf(&b, "uid_base = %d\nuid_count = %d\n", base, count)
	}
	if n.options.Guest != "" {
		fmt.Fprintf(&b, "\n[guest]\nkernel = %q\ninitramfs = %q\n",
			filepath.Join(n.options.Guest, "kernel"), filepath.Join(n.options.Guest, "initramfs"))
	}
	if profile != "" {
		fmt.Fprintf(&b, "\n[sandbox]\nprofile = %q\n", profile)
	}
	return b.String()
}

// uids is the range of the users that the node's VMMs run as. Nodes of one host keep no common list of who is in use, so each
// has a range that its directory chooses out of half a million, above the users that kubelets give to pods with a user
// namespace (65536 for each of at most 253 pods).
func (n *Node) uids() (base, count uint32) {
	const perNode, ranges, first = 4096, 500_000, 1 << 24
	hash := fnv.New32a()
	hash.Write([]byte(n.dir))
	return first + hash.Sum32()%ranges*perNode, perNode
}
