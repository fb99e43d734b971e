package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/cgroup"
	"bulkhead.dev/bulkhead/internal/cluster/supervise"
)

// Member is what a node has that belongs to a cluster. Its containerd runs in a network namespace that somebody else made,
// and is started and watched by somebody else, see [Node.Process].
type Member struct {
	// Cgroup is the kubelet's cgroupRoot, a path relative to the root of every hierarchy. All pods are below it, in the group
	// that the kubelet makes there; Stop removes it with all else that is in it. If it is empty, Halt and Stop leave cgroups
	// alone.
	Cgroup string
	// PodCIDRs are the networks of the node's pods, one per address family.
	PodCIDRs []netip.Prefix
	// MTU of the pods' interfaces; 0: the default of virtual Ethernet.
	MTU int
	// VM says that the node has the runtime handlers that put a pod into a VM.
	VM bool
	// Profile is the runtime's sandbox.profile for the handler "bulkhead"; empty: its default. The other handlers have theirs
	// by name.
	Profile string
	// Mirrors are where images are pulled from before the registry itself is asked, by its host; "*" is any host. A mirror is
	// a URL, or [LocalMirror].
	Mirrors map[string][]string
	// Registry is the URL of the cluster's own registry, without a path.
	Registry string
}

// LocalMirror in Member.Mirrors stands for the cluster's own registry.
const LocalMirror = "local"

// Handlers are the CRI runtime handlers, as a RuntimeClass names them, that put a pod into a VM.
const (
	HandlerBulkhead = "bulkhead"
	// HandlerKata and HandlerKataMSHV have the names that AKS gave its RuntimeClasses.
	HandlerKata     = "kata-vm-isolation"
	HandlerKataMSHV = "kata-mshv-vm-isolation"
)

// Containerd is the name of containerd among a node's supervised processes.
const Containerd = "containerd"

// Cgroup is the kubelet's cgroupRoot; empty: the node is none of a cluster.
func (n *Node) Cgroup() string {
	if n.options.Member == nil {
		return ""
	}
	return n.options.Member.Cgroup
}

// Process is containerd as a supervisor runs it, in the node's network namespace. Its shims, which outlive it, have its
// environment: what ends them is Halt and Stop.
func (n *Node) Process() supervise.Process {
	return supervise.Process{
		Name: Containerd, Args: n.args(), Env: n.env(), Log: n.Log(), Ready: &supervise.Probe{URL: "unix://" + n.Socket()},
	}
}

// Prepare makes everything that containerd needs before it is started as [Node.Process] says: directories, configuration,
// cgroup. What an earlier run left that was killed, or a reboot, is removed; a node that runs is left running, and its
// configuration replaced.
func (n *Node) Prepare() error {
	if n.options.Member == nil {
		return fmt.Errorf("prepare node %s: it is none of a cluster: %w", n.dir, errdefs.ErrFailedPrecondition)
	}
	if err := n.checkPrograms(); err != nil {
		return err
	}
	running, err := n.processes()
	if err != nil {
		return err
	}
	for _, p := range running {
		p.close()
	}
	if len(running) == 0 {
		ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
		defer cancel()
		if err := n.Halt(ctx); err != nil {
			return err
		}
	}
	if err := n.prepare(); err != nil {
		return err
	}
	// From here on no other node takes away what all kubelets share.
	if err := hostKernel().borrow(n.dir); err != nil {
		return err
	}
	if err := n.prepareKubelet(); err != nil {
		return fmt.Errorf("make the kubelet's directory: %w", err)
	}
	if _, err := cgroup.Create(n.options.Member.Cgroup); err != nil {
		return fmt.Errorf("make the cgroup of the node's pods: %w", err)
	}
	return nil
}

// Halt ends all containers, VMs and containerd at once, and removes what a reboot would remove. Images, the kubelet's
// volumes and the record of the pods stay on disk for the next start. To end pods gracefully is the kubelet's business, to
// end before. It is idempotent.
func (n *Node) Halt(ctx context.Context) error {
	if n.options.Member == nil {
		return fmt.Errorf("halt node %s: it is none of a cluster: %w", n.dir, errdefs.ErrFailedPrecondition)
	}
	if err := n.halt(ctx); err != nil {
		return fmt.Errorf("halt node %s: %w", n.dir, err)
	}
	return nil
}

func (n *Node) halt(ctx context.Context) error {
	tasks, strays := n.bundles(), n.strays()
	// VMMs die with their shims. Containers live on without theirs, but in their pods' cgroups.
	busy := errors.Join(n.killProcesses(ctx), n.removeCgroup(n.pods()), n.deleteOrphans(ctx), n.unmountAll())
	if busy != nil {
		return busy // something still uses the files, and the next try needs them
	}
	return errors.Join(
		n.removeFIFOs(tasks), removeAll(strays), os.RemoveAll(n.path("state")), os.RemoveAll(n.path("tmp")), os.RemoveAll(n.sockets), hostKernel().giveBack(n.dir, func() { removeShared(sharedByKubelets()) }))
}

// pods is the cgroup of all pods.
func (n *Node) pods() string { return n.options.Member.Cgroup + "/kubepods" }

// removeCgroup ends what is in one of the node's cgroups. Of a node of which little is known, it isn't known.
func (n *Node) removeCgroup(path string) error {
	if n.options.Member.Cgroup == "" {
		return nil
	}
	return cgroup.RemoveTree(path)
}

// stopMember is Stop for a node of a cluster. Nothing is drained through containerd, one container after the other: all that
// its containers have on the host is below the node's directories, in its cgroup, or in network namespaces that go with
// their mounts.
func (n *Node) stopMember(ctx context.Context) error {
	namespaces := n.namespaces()
	if err := n.halt(ctx); err != nil {
		return err
	}
	errs := []error{n.removeCgroup(n.options.Member.Cgroup), n.removeNetworkResults()}
	removeCgroups(namespaces)
	removeShared(shared())
	return errors.Join(append(errs, os.RemoveAll(n.dir))...)
}

// networkResults is where the CNI library keeps what a plugin answered until the pod's network is removed. That happens with
// its namespace here.
const networkResults = "/var/lib/cni/results"

func (n *Node) removeNetworkResults() error {
	results, err := filepath.Glob(filepath.Join(networkResults, n.network()+"-*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, result := range results {
		errs = append(errs, os.Remove(result))
	}
	return errors.Join(errs...)
}

// Import loads the images of an archive for the kubelet's use. containerd must answer.
func (n *Node) Import(ctx context.Context, archive string) error {
	_, err := n.Ctr(ctx, "--namespace", criNamespace, "images", "import", archive)
	return err
}

// criNamespace is containerd's namespace for what the kubelet asks for.
const criNamespace = "k8s.io"
