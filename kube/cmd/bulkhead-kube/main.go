// Command bulkhead-kube is every program of Kubernetes that a cluster runs on the host, in one binary: they share most of their
// code, and so the disk, the page cache and the time to build it. Each of those from upstream behaves as its own binary does; next
// to them are Bulkhead's own: network policies (netpol), encryption at rest (kms), local volumes (provisioner), images (registry).
//
//	bulkhead-kube kube-apiserver --etcd-servers ...
//	bulkhead-kube version -o json
//
// Called by the name of a program, through a link, it is that program: `kubectl get pods`.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"bulkhead.dev/bulkhead/kube/internal/kms"
	"bulkhead.dev/bulkhead/kube/internal/multicall"
	"bulkhead.dev/bulkhead/kube/internal/netpol"
	"bulkhead.dev/bulkhead/kube/internal/provisioner"
	"bulkhead.dev/bulkhead/kube/internal/registry"

	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
)

// own runs one of our own programs, which ends when its context does: at the first SIGINT or SIGTERM.
func own(run func(ctx context.Context, args []string, stdout, stderr io.Writer) int) func([]string, io.Writer, io.Writer) int {
	return func(args []string, stdout, stderr io.Writer) int {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		return run(ctx, args, stdout, stderr)
	}
}

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
		{Name: "kubelet", Module: kubernetes, Run: runKubelet},
		{Name: "kube-proxy", Module: kubernetes, Run: command("kube-proxy", proxy.NewProxyCommand)},
		{Name: "coredns", Module: "github.com/coredns/coredns", Run: runCoreDNS},
		{Name: "kubectl", Module: kubernetes, Run: runKubectl},
		{Name: "metrics-server", Module: metricsServer, Run: runMetricsServer},
		{Name: "netpol", Run: own(netpol.Main)},
		{Name: "kms", Run: own(kms.Main)},
		{Name: "provisioner", Run: own(provisioner.Main)},
		{Name: "registry", Run: own(registry.Main)},
	}
}
