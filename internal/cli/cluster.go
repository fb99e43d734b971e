package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/cluster/spec"
)

func newClusterCommand(open opener) *cobra.Command {
	return newNoun("cluster", "Make, run and remove Kubernetes clusters on this machine",
		`A cluster is upstream Kubernetes on this machine: a control plane and one or more nodes, each in a network namespace of its
own, with pods in virtual machines on the pools that have the workload runtime vm-isolation. Everything that belongs to it is in
one directory below the state directory; "bulkhead cluster delete" leaves nothing behind. Several clusters can run side by side.

It needs root. A command that is interrupted with Ctrl-C undoes what it began; should that fail too, the same command or
"bulkhead cluster delete" repairs it.`,
		newClusterCreateCommand(open), newClusterListCommand(open), newClusterShowCommand(open), newClusterStartCommand(open),
		newClusterStopCommand(open), newClusterUpdateCommand(open), newClusterCredentialsCommand(open), newClusterDeleteCommand(open), newClusterRenewCommand(open))
}

// runtimeFlag makes a flag of a pool's runtime, which takes the reference's names too.
type runtimeFlag struct{ runtime *spec.Runtime }

// String, Set and Type make it a flag.
func (f runtimeFlag) String() string {
	if f.runtime == nil {
		return ""
	}
	return string(*f.runtime)
}

// Type names the value in the help.
func (f runtimeFlag) Type() string { return "runtime" }

// Set refuses unknown runtimes.
func (f runtimeFlag) Set(value string) error {
	runtime, err := spec.ParseRuntime(value)
	if parameter := (*spec.ParameterError)(nil); errors.As(err, &parameter) {
		return fmt.Errorf("%s: %s", parameter.Reason, parameter.Fix) // the flag and the value are named by the caller
	}
	if err != nil {
		return err
	}
	*f.runtime = runtime
	return nil
}

// runtimeOf adds --workload-runtime.
func runtimeOf(cmd *cobra.Command, runtime *spec.Runtime) {
	*runtime = spec.OCI
	cmd.Flags().Var(runtimeFlag{runtime}, "workload-runtime", "what the pool's nodes can run pods with: oci, or vm-isolation (also OCIContainer, KataMshvVmIsolation, KataVmIsolation)")
	complete(cmd, "workload-runtime", cobra.FixedCompletions([]string{string(spec.OCI), string(spec.VMIsolation)}, cobra.ShellCompDirectiveNoFileComp))
}
