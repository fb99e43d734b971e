// Package pki makes a cluster's certificate authorities, certificates, keys and kubeconfigs, and renews them.
package pki

import (
	"errors"
	"net/netip"
	"time"
)

// Names is what certificates and kubeconfigs are made for.
type Names struct {
	// Cluster is the cluster's name: of the context in admin.conf.
	Cluster string
	// ControlPlane are the addresses of the control plane.
	ControlPlane []netip.Addr
	// APIServer is the API server's URL: https://10.88.7.2:6443.
	APIServer string
	// Nodes are the cluster's nodes.
	Nodes []NodeName
}

// NodeName is a node's name and its addresses.
type NodeName struct {
	Name      string
	Addresses []netip.Addr
}

var errSoon = errors.New("not yet there")

// Ensure makes what is missing.
func Ensure(dir string, n Names, now time.Time) (changed []string, err error) { return nil, errSoon }

// RemoveNode removes a node's keys, certificates and kubeconfigs.
func RemoveNode(dir, name string) error { return errSoon }

// MergeKubeconfig writes the cluster's entries into a kubeconfig.
func MergeKubeconfig(into string, admin []byte, cluster string) (changed bool, err error) {
	return false, errSoon
}

// RemoveFromKubeconfig removes the cluster's entries from a kubeconfig.
func RemoveFromKubeconfig(file, cluster, server string) error { return errSoon }
