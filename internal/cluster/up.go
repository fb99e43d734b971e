package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"bulkhead.dev/bulkhead/internal/cluster/component"
	"bulkhead.dev/bulkhead/internal/cluster/fabric"
	"bulkhead.dev/bulkhead/internal/cluster/manifest"
	"bulkhead.dev/bulkhead/internal/cluster/pki"
	"bulkhead.dev/bulkhead/internal/cluster/spec/durable"
	"bulkhead.dev/bulkhead/internal/cluster/supervise"
	"bulkhead.dev/bulkhead/internal/vmm"
)

// readyTimeout is for the control plane, and then for the nodes, on a slow machine.
const readyTimeout = 5 * time.Minute

// up brings the whole cluster to what its record says. What runs already is left alone, or restarted if it should run with
// other arguments.
func (c *cluster) up(ctx context.Context) error {
	if err := c.findIsolation(ctx); err != nil {
		return err
	}
	if err := c.issue(); err != nil {
		return err
	}
	if err := c.joinHost(ctx); err != nil {
		return err
	}
	names := c.running()
	if err := c.connect(ctx, names...); err != nil {
		return err
	}
	c.m.o.Progress("control plane: starting")
	if err := c.startControlPlane(ctx); err != nil {
		return err
	}
	// Nodes need the API server only to say that they are ready, and start beside it.
	group, groupCtx := errgroup.WithContext(ctx)
	group.Go(func() error { return c.controlPlaneReady(groupCtx) })
	for _, name := range names {
		group.Go(func() error { return c.startNode(groupCtx, name) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return c.awaitNodes(ctx, names)
}

// joinHost makes the cluster's network on the host, which fails if something else has its subnet by now: the bridge of a cluster
// that is stopped is gone, and a cluster of another state directory may have been made since.
func (c *cluster) joinHost(ctx context.Context) error {
	unlock, err := lockSubnets()
	if err != nil {
		return err
	}
	defer unlock()
	return fabric.Up(ctx, c.net())
}

// running are the names of the nodes that should run.
func (c *cluster) running() []string {
	var names []string
	for _, n := range c.spec.Nodes {
		if !n.Stopped {
			names = append(names, n.Name)
		}
	}
	return names
}

// issue makes the certificates that are missing or about to expire.
func (c *cluster) issue() error {
	names := pki.Names{Cluster: c.name, ControlPlane: c.net().ControlPlaneAddrs(), APIServer: component.APIServerURL(c.net())}
	for _, n := range c.spec.Nodes {
		names.Nodes = append(names.Nodes, pki.NodeName{Name: n.Name, Addresses: c.net().NodeAddrs(n.Index)})
	}
	changed, err := pki.Ensure(c.dir, names, time.Now())
	if err != nil {
		return fmt.Errorf("make certificates: %w", err)
	}
	if len(changed) > 0 {
		c.m.o.Progress("certificates: made %d", len(changed))
	}
	return nil
}

// startControlPlane starts what isn't running of the control plane, and returns before it is ready.
func (c *cluster) startControlPlane(ctx context.Context) error {
	processes, files, err := component.ControlPlane(component.ControlPlaneOptions{
		Dir: c.dir, Sockets: c.sockets(), Bin: c.m.o.BinDir, Network: c.net(), Config: c.spec.Config, Resolvers: hostResolvers(),
	})
	if err != nil {
		return err
	}
	for _, dir := range []string{c.sockets(), filepath.Join(c.dir, "logs"), filepath.Join(c.dir, "etcd"), filepath.Join(c.dir, "config")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make the control plane's directories: %w", err)
		}
	}
	// The provisioner wants it, and a cluster may have no node yet.
	if err := os.MkdirAll(filepath.Join(c.dir, "nodes"), 0o711); err != nil {
		return fmt.Errorf("make the directory of the nodes: %w", err)
	}
	// Nodes have sockets in it that the VMM's user passes by.
	if err := os.Chmod(c.sockets(), 0o711); err != nil {
		return fmt.Errorf("make the control plane's directories: %w", err)
	}
	if err := writeFiles(files); err != nil {
		return fmt.Errorf("write the control plane's configuration: %w", err)
	}
	return supervise.Start(ctx, c.self(), c.controlPlane(), supervise.Spec{
		Name: c.name + " control plane", NetNS: c.net().ControlPlaneNetNS(), Cgroup: c.cgroup() + "/controlplane", Processes: processes,
		// Components read renewed certificates while they run.
		Daily: []string{c.self(), "cluster", "renew", c.name, "--state-dir", c.m.o.StateDir, "--bin-dir", c.m.o.BinDir},
	})
}

// self is the program that supervises.
func (c *cluster) self() string { return filepath.Join(c.m.o.BinDir, "bulkhead") }

// controlPlaneReady returns when the API server answers and has the cluster's own objects.
func (c *cluster) controlPlaneReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	if err := supervise.WaitReady(ctx, c.controlPlane(), component.APIServer); err != nil {
		return fmt.Errorf("start the control plane: %w", err)
	}
	c.m.o.Progress("control plane: API server ready at %s", component.APIServerURL(c.net()))
	if err := c.applyManifests(ctx); err != nil {
		return err
	}
	if err := supervise.WaitReady(ctx, c.controlPlane()); err != nil {
		return fmt.Errorf("start the control plane: %w", err)
	}
	return c.awaitServiceAccount(ctx)
}

// awaitServiceAccount returns when the controllers have made the account that pods have who name none: before, creating a pod
// is refused.
func (c *cluster) awaitServiceAccount(ctx context.Context) error {
	for {
		out, err := c.kubectl(ctx, nil, "get", "serviceaccount", "default", "--namespace", "default", "--ignore-not-found", "--output", "name")
		if err == nil && len(out) > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the default service account: %w", errors.Join(ctx.Err(), err))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// applyManifests brings the cluster's own objects up to date. The API server is ready some moments before all that it takes
// to apply them is there, so a failure is tried again for a while.
func (c *cluster) applyManifests(ctx context.Context) error {
	objects, err := c.manifests()
	if err != nil {
		return err
	}
	path := filepath.Join(c.dir, "config", "manifests.yaml")
	if err := durable.Write(path, objects, 0o600); err != nil {
		return fmt.Errorf("write the cluster's objects: %w", err)
	}
	const tries = 10
	for i := range tries {
		if _, err = c.kubectl(ctx, nil, "apply", "--server-side", "--force-conflicts", "--field-manager=bulkhead", "--filename", path); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Duration(i+1) * 200 * time.Millisecond):
		}
	}
	return fmt.Errorf("apply the cluster's objects: %w", err)
}

// findIsolation finds out what runs the VMs of pods here.
func (c *cluster) findIsolation(ctx context.Context) error {
	if !c.hasVMs() {
		return nil
	}
	acceleration, _, err := c.m.isolation(ctx, c.spec.Config.VM.Acceleration)
	if err != nil {
		return fmt.Errorf("find out how VMs are isolated here: %w", err)
	}
	c.isolation = string(acceleration)
	return nil
}

// manifests renders the cluster's own objects.
func (c *cluster) manifests() ([]byte, error) {
	ca, err := os.ReadFile(pki.Pair(c.dir, pki.CA).Cert)
	if err != nil {
		return nil, fmt.Errorf("read the cluster's authority: %w", err)
	}
	isolation := c.isolation
	if isolation == "" {
		isolation = string(vmm.Hardware) // no node has it yet, and so no pod of these classes is scheduled
	}
	return manifest.Render(manifest.Values{
		ControlPlane: c.net().ControlPlaneAddrs()[0], ClusterDNS: c.net().ClusterDNS(), MetricsPort: component.MetricsServerPort,
		CA: ca, Isolation: isolation,
	})
}

// writeFiles writes those whose content is another one, so that a process that watches its file isn't told of nothing.
func writeFiles(files map[string][]byte) error {
	for path, data := range files {
		old, err := os.ReadFile(path)
		if err == nil && string(old) == string(data) {
			continue
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
			return err
		}
		if err := durable.Write(path, data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// nodeObject is what is used of a Node.
type nodeObject struct {
	Metadata struct{ Name string }
	Spec     struct{ PodCIDR string }
	Status   struct {
		Conditions []struct {
			Type, Status, Message string
			LastHeartbeatTime     time.Time
		}
	}
}

// ready says whether the node said itself that it is ready, at or after a time: what it said before a stop still stands in
// the API for a while.
func (n nodeObject) ready(since time.Time) (bool, string) {
	for _, condition := range n.Status.Conditions {
		if condition.Type != "Ready" {
			continue
		}
		if condition.Status == "True" && !condition.LastHeartbeatTime.Before(since.Truncate(time.Second)) {
			return true, ""
		}
		return false, condition.Message
	}
	return false, "it has not said how it is"
}

// kubeletSince is when the node's kubelet was started. One that went on running has no reason to say again that it is ready.
func (c *cluster) kubeletSince(name string) (time.Time, bool) {
	state, err := supervise.Status(c.supervisor(name))
	if err != nil {
		return time.Time{}, false
	}
	i := slices.IndexFunc(state.Processes, func(p supervise.ProcessStatus) bool { return p.Name == component.Kubelet })
	if i < 0 || state.Processes[i].PID == 0 {
		return time.Time{}, false
	}
	return state.Processes[i].Since, true
}

// awaitNodes returns when all the nodes are ready, as said by the kubelets that run now.
func (c *cluster) awaitNodes(ctx context.Context, names []string) error {
	if len(names) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	waiting := slices.Clone(names)
	reasons := map[string]string{}
	for {
		nodes, err := c.nodeObjects(ctx)
		if err == nil {
			for _, n := range nodes {
				i := slices.Index(waiting, n.Metadata.Name)
				if i < 0 {
					continue
				}
				since, runs := c.kubeletSince(n.Metadata.Name)
				if !runs {
					reasons[n.Metadata.Name] = "its kubelet doesn't run"
					continue
				}
				ok, reason := n.ready(since)
				if !ok {
					reasons[n.Metadata.Name] = reason
					continue
				}
				if err := c.setPodCIDRs(ctx, n); err != nil {
					return err
				}
				c.m.o.Progress("node %s: ready", n.Metadata.Name)
				waiting = slices.Delete(waiting, i, i+1)
			}
			if len(waiting) == 0 {
				return c.awaitProcesses(ctx, names)
			}
		}
		select {
		case <-ctx.Done():
			return c.notReady(ctx.Err(), err, waiting, reasons)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// awaitProcesses returns when everything on the nodes works: a node is ready to the API server without its proxy and policies.
func (c *cluster) awaitProcesses(ctx context.Context, names []string) error {
	for _, name := range names {
		if err := supervise.WaitReady(ctx, c.supervisor(name)); err != nil {
			return fmt.Errorf("start node %s: %w", name, err)
		}
	}
	return nil
}

// notReady says why the nodes aren't, as far as is known.
func (c *cluster) notReady(end, last error, waiting []string, reasons map[string]string) error {
	var lines []string
	for _, name := range waiting {
		reason := reasons[name]
		if reason == "" {
			reason = "its kubelet has not reached the API server"
		}
		lines = append(lines, fmt.Sprintf("node %s: %s (logs in %s)", name, reason, c.node(name)))
	}
	err := fmt.Errorf("wait for the nodes to be ready: %w: %s", end, strings.Join(lines, "; "))
	if last != nil {
		err = fmt.Errorf("%w; asked last: %w", err, last)
	}
	return err
}

func (c *cluster) nodeObjects(ctx context.Context) ([]nodeObject, error) {
	out, err := c.kubectl(ctx, nil, "get", "nodes", "--output", "json")
	if err != nil {
		return nil, err
	}
	var list struct{ Items []nodeObject }
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, fmt.Errorf("read the list of nodes: %w", err)
	}
	return list.Items, nil
}

// setPodCIDRs writes the networks of the node's pods into its object, for those who read them there.
func (c *cluster) setPodCIDRs(ctx context.Context, n nodeObject) error {
	own := c.spec.Node(n.Metadata.Name)
	if own == nil || n.Spec.PodCIDR != "" {
		return nil
	}
	var all []string
	for _, p := range c.net().PodCIDRs(own.Index) {
		all = append(all, p.String())
	}
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"podCIDR": all[0], "podCIDRs": all}})
	if err != nil {
		return err
	}
	_, err = c.kubectl(ctx, nil, "patch", "node", n.Metadata.Name, "--patch", string(patch))
	return err
}
