package pki

import (
	"path/filepath"
)

// Names of pairs of a certificate and its key, for Pair.
const (
	// CA signs everything of Kubernetes: servers, clients, kubelets.
	CA = "ca"
	// FrontProxyCA signs what the API server shows to aggregated API servers.
	FrontProxyCA = "front-proxy-ca"
	// EtcdCA signs etcd's server and the API server as its client: nobody else gets at etcd.
	EtcdCA = "etcd-ca"

	// APIServer is the API server's serving certificate.
	APIServer = "apiserver"
	// APIServerKubeletClient is what the API server shows to kubelets.
	APIServerKubeletClient = "apiserver-kubelet-client"
	// APIServerEtcdClient is what the API server shows to etcd.
	APIServerEtcdClient = "apiserver-etcd-client"
	// FrontProxyClient is what the API server shows to aggregated API servers.
	FrontProxyClient = "front-proxy-client"
	// EtcdServer is etcd's, for clients and for peers.
	EtcdServer = "etcd-server"
	// Registry is the serving certificate of the cluster's registry.
	Registry = "registry"

	// Admin is the client certificate in admin.conf.
	Admin = "admin"
	// ControllerManager is both client and server, as are Scheduler and MetricsServer.
	ControllerManager = "controller-manager"
	// Scheduler is both client and server.
	Scheduler = "scheduler"
	// MetricsServer is both client and server: metrics-server.kube-system.svc.
	MetricsServer = "metrics-server"
	// CoreDNS is a client.
	CoreDNS = "coredns"
	// Provisioner is the client of the storage provisioner.
	Provisioner = "provisioner"
)

// Names of a node's pairs, for NodePair.
const (
	// KubeletClient is system:node:NAME.
	KubeletClient = "kubelet-client"
	// KubeletServer is the kubelet's serving certificate.
	KubeletServer = "kubelet-server"
	// KubeProxy is a client.
	KubeProxy = "kube-proxy"
	// NetPol is the client of the network policy engine.
	NetPol = "netpol"
)

// Kubelet is, beside KubeProxy and NetPol, the name of a node's kubeconfig, for NodeKubeconfig.
const Kubelet = "kubelet"

// Files are the files of a certificate (PEM, 0644) and of its private key (PEM, 0600).
type Files struct {
	Cert, Key string
}

// Pair is where a pair of the cluster in dir is: pki/NAME.crt and pki/NAME.key.
func Pair(dir, name string) Files { return pairAt(filepath.Join(dir, "pki"), name) }

// NodePair is where a node's pair is: pki/nodes/NODE/NAME.crt and .key.
func NodePair(dir, node, name string) Files { return pairAt(nodePKI(dir, node), name) }

// ServiceAccount is the key with which the API server and the controller manager sign and check the tokens of service accounts:
// the private key, pki/sa.key, and the public one, pki/sa.pub.
func ServiceAccount(dir string) (private, public string) {
	return filepath.Join(dir, "pki", "sa.key"), filepath.Join(dir, "pki", "sa.pub")
}

// Kubeconfig is where the kubeconfig of Admin, ControllerManager, Scheduler, CoreDNS, MetricsServer or Provisioner is:
// kubeconfig/NAME.conf.
func Kubeconfig(dir, name string) string { return filepath.Join(dir, "kubeconfig", name+".conf") }

// NodeKubeconfig is where a node's kubeconfig for Kubelet, KubeProxy or NetPol is: kubeconfig/nodes/NODE/NAME.conf.
func NodeKubeconfig(dir, node, name string) string {
	return filepath.Join(nodeKubeconfigs(dir, node), name+".conf")
}

func nodePKI(dir, node string) string { return filepath.Join(dir, "pki", "nodes", node) }

func nodeKubeconfigs(dir, node string) string {
	return filepath.Join(dir, "kubeconfig", "nodes", node)
}

func pairAt(dir, name string) Files {
	return Files{Cert: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
}
