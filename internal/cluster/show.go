package cluster

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"bulkhead.dev/bulkhead/internal/cluster/component"
	"bulkhead.dev/bulkhead/internal/cluster/spec"
	"bulkhead.dev/bulkhead/internal/cluster/supervise"
)

// Summary is a cluster at a glance.
type Summary struct {
	Name  string     `json:"name"`
	Phase spec.Phase `json:"phase"`
	// KubernetesVersion is like "v1.36.3".
	KubernetesVersion string `json:"kubernetesVersion,omitempty"`
	NodeCount         int    `json:"nodeCount"`
	// Server is the URL of the API server.
	Server  string    `json:"server,omitempty"`
	Created time.Time `json:"created,omitzero"`
	// Problem says why the cluster isn't what it should be; empty: nothing is known to be wrong.
	Problem string `json:"problem,omitempty"`
}

// Detail is all that is known of a cluster without asking its API server.
type Detail struct {
	Summary
	Dir string `json:"dir"`
	// Registry is the address of the cluster's registry, to which this host may push.
	Registry string       `json:"registry"`
	Subnets  []string     `json:"subnets"`
	Pools    []spec.Pool  `json:"pools"`
	Nodes    []NodeDetail `json:"nodes"`
	// Components are the control plane's processes.
	Components []supervise.ProcessStatus `json:"components"`
}

// NodeDetail is a node of a cluster.
type NodeDetail struct {
	Name string `json:"name"`
	Pool string `json:"pool"`
	// State is "running", "stopped", or "failed" if it should run and its supervisor doesn't.
	State      string                    `json:"state"`
	Addresses  []string                  `json:"addresses"`
	Components []supervise.ProcessStatus `json:"components"`
}

// List returns all clusters, by name. One whose record can't be read is listed with that as its problem.
func (m *Manager) List() ([]Summary, error) {
	names, err := m.names()
	if err != nil {
		return nil, err
	}
	var all []Summary
	for _, name := range names {
		p := m.place(name)
		c, err := spec.Read(p.dir)
		if err != nil {
			all = append(all, Summary{Name: name, Phase: spec.Failed, Problem: err.Error()})
			continue
		}
		all = append(all, m.detail(p, c).Summary)
	}
	return all, nil
}

// Show returns one cluster.
func (m *Manager) Show(name string) (Detail, error) {
	if err := m.exists(name); err != nil {
		return Detail{}, err
	}
	p := m.place(name)
	c, err := spec.Read(p.dir)
	if err != nil {
		return Detail{}, fmt.Errorf("read the record of cluster %s: %w", name, err)
	}
	return m.detail(p, c), nil
}

func (m *Manager) detail(p place, c spec.Cluster) Detail {
	network := p.network(c)
	d := Detail{
		Summary: Summary{
			Name: p.name, Phase: c.Phase, KubernetesVersion: c.KubernetesVersion, NodeCount: len(c.Nodes),
			Server: component.APIServerURL(network), Created: c.Created,
		},
		Dir: p.dir, Registry: strings.TrimPrefix(component.RegistryURL(network), "http://"), Subnets: texts(network.Subnets()), Pools: c.Pools,
	}
	var problems []string
	trouble := func(what, dir string) []supervise.ProcessStatus {
		state, err := supervise.Status(dir)
		switch {
		case c.Phase != spec.Running:
		case err != nil:
			problems = append(problems, what+": "+err.Error())
		case state.Supervisor == 0:
			problems = append(problems, what+": its supervisor doesn't run: bulkhead cluster start "+p.name)
		default:
			for _, process := range state.Processes {
				if process.Phase == supervise.Backoff {
					problems = append(problems, fmt.Sprintf("%s: %s ended (%s) and is started again", what, process.Name, process.LastExit))
				}
			}
		}
		return state.Processes
	}
	d.Components = trouble("control plane", p.controlPlane())
	for _, n := range c.Nodes {
		nd := NodeDetail{Name: n.Name, Pool: n.Pool, State: "running", Addresses: texts(network.NodeAddrs(n.Index))}
		before := len(problems)
		switch {
		case n.Stopped || c.Phase == spec.Stopped:
			nd.State = "stopped"
		default:
			nd.Components = trouble("node "+n.Name, p.supervisor(n.Name))
			if len(problems) > before {
				nd.State = "failed"
			}
		}
		d.Nodes = append(d.Nodes, nd)
	}
	if c.Phase == spec.Creating || c.Phase == spec.Deleting {
		problems = append(problems, "a command is at work on it, or was interrupted")
	}
	d.Problem = strings.Join(problems, "; ")
	return d
}

func texts[T netip.Addr | netip.Prefix](all []T) []string {
	var out []string
	for _, a := range all {
		out = append(out, fmt.Sprint(a))
	}
	return out
}
