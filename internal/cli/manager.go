package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/cluster"
	"bulkhead.dev/bulkhead/internal/cluster/spec"
)

const (
	// defaultStateDir holds the clusters, features and guest image of a machine.
	defaultStateDir = "/var/lib/bulkhead"
	// stateDirVariable names the environment variable that replaces defaultStateDir.
	stateDirVariable = "BULKHEAD_STATE_DIR"
)

// manager is what the commands need of [cluster.Manager], whose methods carry the contracts. It is the seam for the tests of
// the commands: what a cluster really is needs root and minutes.
type manager interface {
	catalog
	lifecycle
	pools
	nodes
	images
}

// catalog reads what is there and changes nothing.
type catalog interface {
	List() ([]cluster.Summary, error)
	Show(name string) (cluster.Detail, error)
	Credentials(name string) ([]byte, error)
}

// lifecycle changes whole clusters.
type lifecycle interface {
	Create(ctx context.Context, name string, o cluster.CreateOptions) error
	Start(ctx context.Context, name string) error
	Stop(ctx context.Context, name string) error
	Update(ctx context.Context, name string) error
	Renew(name string) error
	Delete(ctx context.Context, name string) error
}

// pools changes the node pools of a cluster.
type pools interface {
	AddPool(ctx context.Context, cluster string, p spec.Pool) error
	ScalePool(ctx context.Context, cluster, pool string, count int) error
	DeletePool(ctx context.Context, cluster, pool string) error
}

// nodes changes single nodes.
type nodes interface {
	NodeStart(ctx context.Context, cluster, node string) error
	NodeStop(ctx context.Context, cluster, node string) error
	NodePartition(ctx context.Context, cluster, node string, on bool) error
}

// images are those on a cluster's nodes.
type images interface {
	LoadImages(ctx context.Context, cluster string, files []string) error
	Images(ctx context.Context, cluster string) ([]cluster.Image, error)
}

// opener opens the manager of a state directory.
type opener func(cluster.Options) (manager, error)

func openManager(o cluster.Options) (manager, error) { return cluster.Open(o) }

// place is where clusters are, as the flags say.
type place struct {
	open       opener
	state, bin string
}

// stateFlag adds --state-dir.
func (p *place) stateFlag(cmd *cobra.Command) {
	fallback := defaultStateDir
	if dir := os.Getenv(stateDirVariable); dir != "" {
		fallback = dir
	}
	cmd.Flags().StringVar(&p.state, "state-dir", fallback, "the `directory` of all clusters (default $"+stateDirVariable+" or "+defaultStateDir+")")
	// The text above says it for every machine; the reference must not depend on this one's environment.
	cmd.Flags().Lookup("state-dir").DefValue = ""
}

// flags adds --state-dir and --bin-dir.
func (p *place) flags(cmd *cobra.Command) {
	p.stateFlag(cmd)
	cmd.Flags().StringVar(&p.bin, "bin-dir", "", "the `directory` of bulkhead-kube, containerd and the shims (default: this program's)")
}

// manager opens the state directory. Progress goes to stderr.
func (p *place) manager(stderr io.Writer) (manager, error) {
	bin := p.bin
	if bin == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find this program's directory: %w", err)
		}
		bin = filepath.Dir(self)
	}
	return p.open(cluster.Options{
		StateDir: p.state, BinDir: bin, GuestDir: p.guest(),
		Progress: func(format string, args ...any) { fmt.Fprintf(stderr, format+"\n", args...) },
	})
}

// guest is where the nodes find the guest image.
func (p *place) guest() string { return filepath.Join(p.state, "guest") }

// change runs something that takes long and is undone when it is interrupted.
func (p *place) change(cmd *cobra.Command, f func(context.Context, manager) error) error {
	m, err := p.manager(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	told := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(told)
		fmt.Fprintln(cmd.ErrOrStderr(), "interrupted: cleaning up (once more ends this at once, and leaves it half done)")
	})
	err = f(ctx, m)
	if !stop() {
		<-told // no two writers
		if err != nil {
			return fmt.Errorf("interrupted: %w", err) // what was under way failed of it
		}
	}
	return err
}

// completeClusters offers the names of clusters for the first argument.
func (p *place) completeClusters(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	m, err := p.manager(io.Discard)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	list, err := m.List()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names := make([]string, len(list))
	for i, s := range list {
		names[i] = s.Name
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
