package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"slices"
	_ "time/tzdata" // time zones of CronJobs, on hosts without a database of them

	"bulkhead.dev/bulkhead/kube/internal/hostdir"
	"bulkhead.dev/bulkhead/kube/internal/multicall"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	genericapiserver "k8s.io/apiserver/pkg/server"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubectl: log in by OIDC
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // metrics of client-go
	_ "k8s.io/component-base/metrics/prometheus/version"  // metric with the version
	"k8s.io/kubectl/pkg/cmd"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
	metrics "sigs.k8s.io/metrics-server/cmd/metrics-server/app"
)

// metricsServer is the path of metrics-server's module.
const metricsServer = "sigs.k8s.io/metrics-server"

// become makes the process look as if it were the program's own: the upstream programs read os.Args.
func become(name string, args []string) {
	os.Args = append([]string{name}, args...)
	if name != "coredns" {
		flag.CommandLine = without(flag.CommandLine, corednsFlags())
	}
}

// without returns the flags of set that are not named. A flag of the copy sets what that of the original sets.
func without(set *flag.FlagSet, names []string) *flag.FlagSet {
	rest := flag.NewFlagSet(os.Args[0], flag.ExitOnError)
	set.VisitAll(func(f *flag.Flag) {
		if !slices.Contains(names, f.Name) {
			rest.Var(f.Value, f.Name, f.Usage)
		}
	})
	return rest
}

// command runs what is a cobra command upstream. It is constructed when it is run, since that installs signal handlers.
func command(name string, construct func() *cobra.Command) func([]string, io.Writer, io.Writer) int {
	return func(args []string, _, _ io.Writer) int {
		become(name, args)
		return cli.Run(construct())
	}
}

func newScheduler() *cobra.Command { return scheduler.NewSchedulerCommand() }

func newKubelet() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }

// runKubelet runs a kubelet, with its own directories where it would have the host's if it is told so.
func runKubelet(args []string, stdout, stderr io.Writer) int {
	if err := hostdir.Enter(); err != nil {
		fmt.Fprintf(stderr, "kubelet: %v\n", err)
		return 1
	}
	return command("kubelet", newKubelet)(args, stdout, stderr)
}

func runEtcd(args []string, _, _ io.Writer) int {
	become("etcd", args)
	etcdmain.Main(os.Args)
	return 0
}

func runKubectl(args []string, _, _ io.Writer) int {
	become("kubectl", args)
	// As upstream: what is logged while the command is constructed obeys -v too. It refuses nothing but a number it can't read,
	// which the command says again.
	_, _ = logs.GlogSetter(cmd.GetLogVerbosity(os.Args))
	if err := cli.RunNoErrOutput(cmd.NewDefaultKubectlCommand()); err != nil {
		cmdutil.CheckErr(err) // ends the process with the code that belongs to the error
	}
	return 0
}

// runMetricsServer answers --version itself: metrics-server would take client-go's, which is Kubernetes' here.
func runMetricsServer(args []string, stdout, stderr io.Writer) int {
	if slices.Contains(args, "--version") {
		info, _ := debug.ReadBuildInfo()
		versions := multicall.VersionsOf([]multicall.Program{{Name: "metrics-server", Module: metricsServer}}, info)
		fmt.Fprintln(stdout, versions.Programs["metrics-server"])
		return 0
	}
	become("metrics-server", args)
	logs.InitLogs()
	defer logs.FlushLogs()
	if err := metrics.NewMetricsServerCommand(genericapiserver.SetupSignalHandler()).Execute(); err != nil {
		fmt.Fprintf(stderr, "metrics-server: %v\n", err)
		return 1
	}
	return 0
}
