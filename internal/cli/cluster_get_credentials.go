package cli

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/cluster/pki"
)

func newClusterCredentialsCommand(open opener) *cobra.Command {
	p := place{open: open}
	var file string
	cmd := &cobra.Command{
		Use:   "get-credentials NAME",
		Short: "Let kubectl use a cluster",
		Long: `Writes the administrator's credentials into a kubeconfig file, as a context with the cluster's name, and makes that the current
context. What else is in the file stays. Whoever can read the file is the cluster's administrator.`,
		Example: `  # Into the file that kubectl reads.
  sudo bulkhead cluster get-credentials demo

  # For a user who is not root.
  sudo bulkhead cluster get-credentials demo --file - > ~/.kube/demo && export KUBECONFIG=~/.kube/demo`,
		Args: clusterName,
	}
	p.flags(cmd)
	cmd.Flags().StringVarP(&file, "file", "f", "", "the kubeconfig `file`; - is stdout (default: the first of $KUBECONFIG, or ~/.kube/config)")
	cmd.ValidArgsFunction = p.completeClusters
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		m, err := p.manager(cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		admin, err := m.Credentials(args[0])
		if err != nil {
			return err
		}
		if file == "-" {
			_, err := cmd.OutOrStdout().Write(admin)
			return err
		}
		if file == "" {
			if file, err = defaultKubeconfig(); err != nil {
				return err
			}
		}
		changed, err := pki.MergeKubeconfig(file, admin, args[0])
		if err != nil {
			return err
		}
		did := "is set"
		if !changed {
			did = "was set already"
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "context %s %s in %s\n", args[0], did, file)
		return nil
	}
	return cmd
}

// defaultKubeconfig is the file that kubectl writes to when nothing else is said.
func defaultKubeconfig() (string, error) {
	for _, file := range filepath.SplitList(os.Getenv("KUBECONFIG")) {
		if file != "" {
			return file, nil
		}
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", usageError{fmt.Errorf("there is neither $KUBECONFIG nor a home directory: name the file with --file: %w", err)}
	}
	return filepath.Join(home, ".kube", "config"), nil
}
