// Command bulkhead-kube is every program of Kubernetes that a cluster runs on the host, in one binary: they share most of their
// code, and so the disk, the page cache and the time to build it. Each of them behaves as its upstream binary does.
//
//	bulkhead-kube kube-apiserver --etcd-servers ...
//	bulkhead-kube version -o json
//
// Called by the name of a program, through a link, it is that program: `kubectl get pods`.
package main

import (
	"os"
	"runtime/debug"

	"bulkhead.dev/bulkhead/kube/internal/multicall"

	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
)

// kubernetes is the module of most of the programs.
const kubernetes = "k8s.io/kubernetes"

func main() {
	info, _ := debug.ReadBuildInfo()
	os.Exit(multicall.Main(programs(), os.Args, info, os.Stdout, os.Stderr))
}

func programs() []multicall.Program {
	return []multicall.Program{
		{Name: "etcd", Module: "go.etcd.io/etcd/server/v3", Run: runEtcd},
		{Name: "kube-apiserver", Module: kubernetes, Run: command("kube-apiserver", apiserver.NewAPIServerCommand)},
		{Name: "kube-controller-manager", Module: kubernetes, Run: command("kube-controller-manager", controllers.NewControllerManagerCommand)},
		{Name: "kube-scheduler", Module: kubernetes, Run: command("kube-scheduler", newScheduler)},
		{Name: "kubelet", Module: kubernetes, Run: command("kubelet", newKubelet)},
		{Name: "kube-proxy", Module: kubernetes, Run: command("kube-proxy", proxy.NewProxyCommand)},
		{Name: "coredns", Module: "github.com/coredns/coredns", Run: runCoreDNS},
		{Name: "kubectl", Module: kubernetes, Run: runKubectl},
		{Name: "metrics-server", Module: metricsServer, Run: runMetricsServer},
	}
}
