// Package spec says what a cluster is: its name, its pools and nodes, its configuration, and in which phase it is.
//
//	command line ─► ParseRuntime, Validate…  ─► Pool ┐
//	config file (YAML) ─► Load ───────────► Config ──┴► Cluster ─► Write ─► CLUSTER/cluster.json ─► Read
//
// Nothing here acts: package cluster makes what a [Cluster] says. Whoever changes a cluster.json holds the cluster's lock.
//
// The stored form, with its version history:
//
//	{
//	  "version": 1,
//	  "name": "demo",
//	  "phase": "running",                  creating | running | stopped | deleting | failed
//	  "created": "2026-01-31T12:00:00Z",
//	  "subnet": 7,                         the cluster has 10.88.7.0/24 on the host
//	  "ipv6": true,                        and fd88:ID::/64
//	  "pools": [
//	    {"name": "nodepool1", "count": 1, "workloadRuntime": "oci",
//	     "labels": {"tier": "web"}, "taints": ["sandbox=only:NoSchedule"]}
//	  ],
//	  "config": {…},                       the cluster config file, with every default filled in; see Config
//	  "kubernetesVersion": "v1.36.3",
//	  "nodes": [                           what has been allocated: it may differ from the pools' counts until they are made so
//	    {"name": "demo-nodepool1-0", "pool": "nodepool1", "index": 0, "stopped": true}
//	  ]
//	}
//
//	1  first version
package spec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/cluster/spec/durable"
)

const (
	// Version is the version of cluster.json that this package reads and writes.
	Version = 1
	// File is the name of a cluster's stored form in its directory.
	File = "cluster.json"
	// maxFile bounds what is read: a hundred nodes and a configuration are some 20 KiB.
	maxFile = 1 << 20
)

// Phase is where a cluster is in its life.
type Phase string

// The phases. A cluster that is Creating or Deleting without a command that holds its lock was left by an interrupted one.
const (
	// Creating: being made; parts of it may exist.
	Creating Phase = "creating"
	// Running: made, and its processes are supervised.
	Running Phase = "running"
	// Stopped: its processes have ended on purpose; its data are kept.
	Stopped Phase = "stopped"
	// Deleting: being removed; parts of it may be gone.
	Deleting Phase = "deleting"
	// Failed: a command on it ended with an error that left it neither running nor stopped.
	Failed Phase = "failed"
)

// Cluster is the desired state of a cluster and the phase it is in.
type Cluster struct {
	// Version is Version; Write sets it.
	Version int `json:"version"`
	// Name is a valid cluster name.
	Name string `json:"name"`
	// Phase is where it is in its life.
	Phase Phase `json:"phase"`
	// Created is when it was asked for, in UTC.
	Created time.Time `json:"created"`
	// Subnet is the third octet of its 10.88.x.0/24.
	Subnet int `json:"subnet"`
	// IPv6 says whether it has IPv6 beside IPv4.
	IPv6 bool `json:"ipv6"`
	// Pools are its node pools, in the order in which they were added.
	Pools []Pool `json:"pools"`
	// Config is its configuration, with every default filled in.
	Config Config `json:"config"`
	// KubernetesVersion is the version of its control plane: "v1.36.3".
	KubernetesVersion string `json:"kubernetesVersion"`
	// Nodes are the nodes that have been allocated, by rising index.
	Nodes []Node `json:"nodes"`
}

// Node is a node that has been given a name and a number.
type Node struct {
	// Name is CLUSTER-POOL-INDEX.
	Name string `json:"name"`
	// Pool is the name of its pool.
	Pool string `json:"pool"`
	// Index is unique in the cluster, from 0: addresses and pod networks come from it.
	Index int `json:"index"`
	// Stopped says that it was stopped on purpose.
	Stopped bool `json:"stopped,omitempty"`
}

// Pool returns the pool of that name, to be read or changed in place; nil: there is none.
func (c *Cluster) Pool(name string) *Pool {
	for i := range c.Pools {
		if c.Pools[i].Name == name {
			return &c.Pools[i]
		}
	}
	return nil
}

// Node returns the node of that name, to be read or changed in place; nil: there is none.
func (c *Cluster) Node(name string) *Node {
	for i := range c.Nodes {
		if c.Nodes[i].Name == name {
			return &c.Nodes[i]
		}
	}
	return nil
}

// NodesOf returns the nodes of a pool, by rising index.
func (c *Cluster) NodesOf(pool string) []Node {
	var nodes []Node
	for _, n := range c.Nodes {
		if n.Pool == pool {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// AllocateNode adds a node with the lowest free index to the cluster. A cluster that has MaxNodes nodes is a *ParameterError of
// --node-count.
func (c *Cluster) AllocateNode(pool string) (Node, error) {
	used := map[int]bool{}
	for _, n := range c.Nodes {
		used[n.Index] = true
	}
	for i := range MaxNodes {
		if used[i] {
			continue
		}
		n := Node{Name: NodeName(c.Name, pool, i), Pool: pool, Index: i}
		at, _ := slices.BinarySearchFunc(c.Nodes, i, func(n Node, i int) int { return n.Index - i })
		c.Nodes = slices.Insert(c.Nodes, at, n)
		return n, nil
	}
	return Node{}, &ParameterError{
		Parameter: "--node-count", Value: fmt.Sprint(len(c.Nodes) + 1), Reason: fmt.Sprintf("cluster %s has %d nodes, the most there may be", c.Name, MaxNodes),
		Fix: "scale another pool down first",
	}
}

// RemoveNode frees a node's name and index; removing one that isn't there is nothing.
func (c *Cluster) RemoveNode(name string) {
	c.Nodes = slices.DeleteFunc(c.Nodes, func(n Node) bool { return n.Name == name })
}

// NodeName is the name of a node.
func NodeName(cluster, pool string, index int) string {
	return fmt.Sprintf("%s-%s-%d", cluster, pool, index)
}

// Validate checks what Read relies on: names, numbers and that each thing refers to one that is there.
func (c *Cluster) Validate() error {
	if err := ValidateClusterName(c.Name); err != nil {
		return err
	}
	if !slices.Contains([]Phase{Creating, Running, Stopped, Deleting, Failed}, c.Phase) {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("phase %q is unknown", c.Phase))
	}
	if c.Subnet < 0 || c.Subnet > 255 {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("subnet %d is not from 0 to 255", c.Subnet))
	}
	for i, p := range c.Pools {
		if err := p.Validate(); err != nil {
			return fmt.Errorf("pool %q: %w", p.Name, err)
		}
		if c.Pool(p.Name) != &c.Pools[i] {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("two pools are named %q", p.Name))
		}
	}
	if err := c.validateNodes(); err != nil {
		return err
	}
	return c.Config.Validate()
}

func (c *Cluster) validateNodes() error {
	last := -1
	for _, n := range c.Nodes {
		var fault string
		switch {
		case n.Index < 0 || n.Index >= MaxNodes:
			fault = fmt.Sprintf("its index %d is not from 0 to %d", n.Index, MaxNodes-1)
		case n.Index <= last:
			fault = fmt.Sprintf("its index %d is taken or out of order", n.Index)
		case c.Pool(n.Pool) == nil:
			fault = fmt.Sprintf("there is no pool %q", n.Pool)
		case n.Name != NodeName(c.Name, n.Pool, n.Index):
			fault = fmt.Sprintf("its name should be %q", NodeName(c.Name, n.Pool, n.Index))
		default:
			last = n.Index
			continue
		}
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("node %q: %s", n.Name, fault))
	}
	return nil
}

// Write stores the cluster in its directory, which must exist. It is on disk when Write returns, and an interrupted Write leaves
// what was there.
func (c Cluster) Write(dir string) error {
	c.Version = Version
	if err := c.Validate(); err != nil {
		return fmt.Errorf("store cluster %q: %w", c.Name, err)
	}
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("encode cluster %s: %w", c.Name, err)
	}
	if err := durable.Write(filepath.Join(dir, File), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("store cluster %s: %w", c.Name, err)
	}
	return nil
}

// Read reads a cluster from its directory. Where there is no cluster.json, the error is fs.ErrNotExist. One that a newer program
// wrote is ErrNotImplemented, one that is damaged ErrDataLoss.
func Read(dir string) (Cluster, error) {
	path := filepath.Join(dir, File)
	f, err := os.Open(path)
	if err != nil {
		return Cluster{}, fmt.Errorf("read cluster: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return Cluster{}, fmt.Errorf("read cluster: %w", err)
	}
	return parse(path, data)
}

func parse(path string, data []byte) (Cluster, error) {
	// The cause is only text: what is wrong with a stored parameter is no fault of a parameter of the command.
	damaged := func(cause error) (Cluster, error) {
		return Cluster{}, errdefs.ErrDataLoss.WithMessage(fmt.Sprintf("read cluster: %s is damaged: %v", path, cause))
	}
	if len(data) > maxFile {
		return damaged(fmt.Errorf("it has more than %d bytes", maxFile))
	}
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return damaged(err)
	}
	if head.Version > Version {
		return Cluster{}, errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf(
			"read cluster: %s has version %d and this program reads version %d: use the newer bulkhead that wrote it", path, head.Version, Version))
	}
	if head.Version < 1 {
		return damaged(fmt.Errorf("its version is %d", head.Version))
	}
	var c Cluster
	decoder := json.NewDecoder(bytes.NewReader(data))
	// A field of the same version that isn't known would be lost at the next Write.
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		return damaged(err)
	}
	if err := c.Validate(); err != nil {
		return damaged(err)
	}
	return c, nil
}
