package archtest

import (
	"slices"
	"strings"
	"testing"
)

// rule forbids packages to depend on others. Own packages are named by their path in the module, others in full.
type rule struct {
	// of are the packages it is for; except those in but.
	of, but []string
	// not are what they must not depend on, however far away; except those in still.
	not, still []string
	// direct makes it a rule for direct imports only.
	direct bool
	reason string
}

// leaves know one thing each and nothing of a pod.
var leaves = []string{
	"internal/sandbox/sizing", "internal/netdev", "internal/rootfs/...", "internal/vmm/...", "internal/volume/...",
	"internal/guest/rpc", "internal/cgroup",
}

// host are packages that only make sense on the host.
var host = []string{
	"internal/sandbox/...", "internal/shim/...", "internal/netdev", "internal/rootfs/...", "internal/vmm/...", "internal/volume",
	"internal/cgroup", "internal/config", "internal/guestimage", "internal/image", "internal/node", "internal/doctor", "internal/cli",
	"internal/cluster/...", "internal/feature",
}

var rules = []rule{
	{
		of: leaves, not: []string{"internal/sandbox", "internal/shim/...", "internal/cli", "internal/node", "internal/doctor"},
		reason: "imports flow one way: leaves < sandbox < shim < cmd",
	},
	{
		of: []string{"internal/sandbox/..."}, not: []string{"internal/shim/...", "internal/cli", "internal/node", "internal/doctor"},
		reason: "imports flow one way: leaves < sandbox < shim < cmd",
	},
	{
		of:     []string{"internal/cluster/...", "internal/feature"},
		not:    []string{"internal/cli", "internal/shim/...", "internal/doctor"},
		reason: "imports flow one way: what a cluster is made of < cluster < cli",
	},
	{
		of: []string{"internal/cluster/...", "internal/feature"}, but: []string{"internal/cluster"},
		not:    []string{"internal/cluster"},
		reason: "the parts of a cluster don't know the whole, which package cluster puts together",
	},
	{
		of: []string{"internal/sandbox/..."}, not: []string{"internal/vmm/qemu/..."},
		reason: "the sandbox knows the VMM only through the seam vmm.Driver",
	},
	{
		of: append([]string{"internal/sandbox/..."}, leaves...),
		not: []string{
			"github.com/containerd/containerd/...", "github.com/containerd/go-runc", "github.com/containerd/fifo",
			"github.com/containerd/containerd/api/runtime/...",
		},
		reason: "containerd's protocol is the shim's; a sandbox can be driven by anything",
	},
	{
		of: []string{"internal/guest/...", "cmd/bulkhead-guest"}, but: []string{"internal/guest/guesttest"}, not: host,
		reason: "the agent runs in the guest, small and without the host's code",
	},
	{
		of: []string{"internal/shim/...", "cmd/containerd-shim-bulkhead-v2"},
		not: []string{
			"k8s.io/...", "sigs.k8s.io/...", "github.com/spf13/cobra", "github.com/spf13/pflag", "github.com/google/go-containerregistry/...",
			"internal/cli", "internal/image", "internal/node", "internal/doctor", "internal/cluster/...", "internal/feature",
		},
		reason: "there is one shim for each pod: what it links is memory and start time, a pod",
	},
	{
		of: []string{"cmd/bulkhead-guest"}, not: []string{"net/http", "google.golang.org/grpc", "github.com/spf13/..."},
		reason: "the guest's initramfs is memory of each pod",
	},
	{
		of: []string{"..."}, but: []string{"internal/cli"}, not: []string{"github.com/spf13/cobra"}, direct: true,
		reason: "the command line is package cli's",
	},
	{
		of: []string{"..."}, but: []string{"internal/image", "internal/cli"}, not: []string{"github.com/google/go-containerregistry/..."}, direct: true,
		reason: "images are package image's; the runtime reads what containerd unpacked",
	},
	{
		// go-fuse takes a *log.Logger, which package volume gives one that says nothing.
		of: leaves, but: []string{"internal/vmm/...", "internal/volume"}, not: []string{"log", "log/slog", "github.com/sirupsen/logrus", "github.com/containerd/log"}, direct: true,
		reason: "below a seam nothing logs: it returns errors",
	},
	{
		of: []string{"..."}, not: []string{"github.com/pkg/errors", "github.com/sirupsen/logrus", "github.com/stretchr/testify/...", "io/ioutil"}, direct: true,
		reason: "the standard library has it: errors, log/slog, testing, io",
	},
	{
		of: []string{"..."}, not: []string{"github.com/containerd/containerd/v2/...", "k8s.io/kubernetes/..."},
		reason: "the modules of containerd and Kubernetes are for kube/ and test/: the root module stays small and quick to build",
	},
	{
		of:  []string{"..."},
		but: []string{"internal/vmm/vmmtest/...", "internal/guest/guesttest", "internal/rootfs/treetest"}, not: []string{"testing"},
		reason: "programs don't link the testing package",
	},
}

func TestImports(t *testing.T) {
	all := allPackages(t)
	for path, p := range all {
		name, ok := own(path)
		if !ok {
			continue
		}
		for _, r := range rules {
			if !r.covers(name) {
				continue
			}
			dependencies := p.Deps
			if r.direct {
				dependencies = p.Imports
			}
			for _, d := range dependencies {
				short := strings.TrimPrefix(d, module+"/")
				if short != name && matchesAny(r.not, short) && !matchesAny(r.still, short) {
					t.Errorf("%s depends on %s (%s): %s", name, short, strings.Join(chain(all, path, d), " -> "), r.reason)
				}
			}
		}
	}
}

func (r rule) covers(name string) bool {
	return (slices.Contains(r.of, "...") || matchesAny(r.of, name)) && !matchesAny(r.but, name)
}

// chain returns a shortest way from one package to another, to show whose import it is.
func chain(all map[string]listed, from, to string) []string {
	ways := [][]string{{from}}
	seen := map[string]bool{from: true}
	for len(ways) > 0 {
		way := ways[0]
		ways = ways[1:]
		last := way[len(way)-1]
		if last == to {
			for i := range way {
				way[i] = strings.TrimPrefix(way[i], module+"/")
			}
			return way
		}
		for _, next := range all[last].Imports {
			if !seen[next] {
				seen[next] = true
				ways = append(ways, append(slices.Clone(way), next))
			}
		}
	}
	return nil
}

// A rule that covers nothing is a spelling mistake, or about a package that has moved.
func TestRulesCoverSomething(t *testing.T) {
	all := allPackages(t)
	for _, r := range rules {
		for _, pattern := range slices.Concat(r.of, r.but) {
			if pattern == "..." {
				continue
			}
			found := false
			for path := range all {
				name, ok := own(path)
				found = found || ok && matches(pattern, name)
			}
			if !found {
				t.Errorf("no package is %s (rule: %s)", pattern, r.reason)
			}
		}
	}
}
