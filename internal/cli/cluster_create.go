package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/cluster"
	"bulkhead.dev/bulkhead/internal/cluster/spec"
)

func newClusterCreateCommand(open opener) *cobra.Command {
	p := place{open: open}
	pool := spec.Pool{}
	var file string
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a cluster and start it",
		Long: `Makes a cluster with one node pool and returns when its nodes are ready. "bulkhead nodepool add" adds more pools.

The workload runtime oci runs pods as ordinary containers. A pool with vm-isolation can run both: a pod with the runtimeClassName
kata-mshv-vm-isolation, kata-vm-isolation or bulkhead gets a virtual machine of its own, any other pod is an ordinary one. Where
KVM doesn't work, vm-isolation needs the preview feature EmulatedVMIsolation, and is no isolation.

What can't be made is refused, with the parameter and the reason, before anything is made. A cluster that an interrupted "create"
left half made is removed first, and made anew.`,
		Example: `  # One node, ordinary pods.
  sudo bulkhead cluster create demo

  # Two nodes whose pods may ask for a virtual machine.
  sudo bulkhead cluster create demo --node-count 2 --workload-runtime vm-isolation

  # With a configuration: pod security, registry mirrors and so on.
  sudo bulkhead cluster create demo --config cluster.yaml`,
		Args: clusterName,
	}
	p.flags(cmd)
	cmd.Flags().IntVarP(&pool.Count, "node-count", "c", 1, "how many nodes the first pool has")
	cmd.Flags().StringVar(&pool.Name, "nodepool-name", spec.DefaultPool, "the first pool's `name`: 1 to 12 lower-case letters and digits, the first a letter")
	runtimeOf(cmd, &pool.Runtime)
	cmd.Flags().StringVar(&file, "config", "", "the cluster's configuration `file`, YAML (default: every key has its default)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkPool("nodepool-name", pool); err != nil {
			return err
		}
		config, err := clusterConfig(file)
		if err != nil {
			return err
		}
		o := cluster.CreateOptions{Pools: []spec.Pool{pool}, Config: config}
		if err := p.change(cmd, func(ctx context.Context, m manager) error { return m.Create(ctx, args[0], o) }); err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "cluster %[1]s is ready; to use it with kubectl: bulkhead cluster get-credentials %[1]s\n", args[0])
		return nil
	}
	return cmd
}

// clusterName wants one argument, a cluster's name that can be one.
func clusterName(cmd *cobra.Command, args []string) error {
	if err := exactArg("the cluster's name")(cmd, args); err != nil {
		return err
	}
	if err := spec.ValidateClusterName(args[0]); err != nil {
		return usageError{err}
	}
	return nil
}

// checkPool refuses a pool that can't be anywhere, before anybody asks for root. nameFlag is the flag of its name.
func checkPool(nameFlag string, pool spec.Pool) error {
	err := pool.Validate()
	if parameter := (*spec.ParameterError)(nil); errors.As(err, &parameter) && parameter.Parameter == "--name" {
		err = spec.ForParameter("--"+nameFlag, err)
	}
	if err != nil {
		return usageError{err}
	}
	return nil
}

func clusterConfig(file string) (spec.Config, error) {
	if file == "" {
		return spec.Default(), nil
	}
	f, err := os.Open(file)
	if err != nil {
		return spec.Config{}, fmt.Errorf("--config: %w", err)
	}
	defer f.Close()
	config, err := spec.Load(f)
	if err != nil {
		return spec.Config{}, fmt.Errorf("--config %s: %w", file, err)
	}
	return config, nil
}
