// Package cluster makes and keeps embedded clusters: real, small Kubernetes clusters on this machine.
//
// A cluster is a directory, and everything else follows from it. cluster.json in it says what the cluster should be; the
// names of its bridge, network namespaces, firewall tables and control groups are made from a hash of the directory's path,
// so that what a crash left behind is found again without any other record.
//
//	Manager.Create ── spec: is it possible? ── cluster.json "creating"
//	                     │
//	                     ├─ pki        authorities, certificates, kubeconfigs
//	                     ├─ fabric     bridge, network namespaces, routes
//	                     ├─ component  what runs, and its configuration ── supervise: keeps it running
//	                     │               control plane: etcd, kms, API server, ...
//	                     │               each node:     containerd, kubelet, kube-proxy, netpol
//	                     ├─ manifest   kubectl apply
//	                     └─ all nodes Ready ── cluster.json "running"
//
// Every step does nothing where it was done before, so that start, update, and create after an interrupted create are the same
// steps. An error or an interrupt of create removes what there is. What a kill leaves says "creating" or "deleting" in its
// cluster.json: the next create of that name, or delete, removes it.
//
// One process at a time changes a cluster: it holds a lock on the file beside the directory. No process of Bulkhead's own is
// needed for a cluster to live, only the supervisors.
package cluster
