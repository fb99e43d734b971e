package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
)

// demoContents are what the demo and its preparation make in the state directory, node excepted.
var demoContents = []string{"guest", "packages"}

func newDemoDownCommand() *cobra.Command {
	var d demo
	cmd := &cobra.Command{
		Use:   "down",
		Short: "End and remove everything that the demo made",
		Long: `Ends the containers, VMs and containerd of "bulkhead demo up", also of one that was interrupted, and removes the state
directory, the guest image with it. What somebody else put there stays, and is named.`,
		Example: `  sudo bulkhead demo down --state-dir .state`,
		Args:    noArgs,
	}
	d.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return d.down(cmd.Context(), cmd.OutOrStdout()) }
	return cmd
}

func (d *demo) down(ctx context.Context, out io.Writer) error {
	n, _, err := d.node()
	if err != nil {
		return err
	}
	if err := n.Stop(ctx); err != nil {
		return err
	}
	for _, name := range demoContents {
		if err := os.RemoveAll(filepath.Join(d.state, name)); err != nil {
			return fmt.Errorf("remove the demo's %s: %w", name, err)
		}
	}
	entries, err := os.ReadDir(d.state)
	if errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(out, "nothing is left")
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the state directory: %w", err)
	}
	for _, e := range entries {
		return fmt.Errorf("%s isn't the demo's; it and the state directory stay", filepath.Join(d.state, e.Name()))
	}
	if err := os.Remove(d.state); err != nil {
		return fmt.Errorf("remove the state directory: %w", err)
	}
	fmt.Fprintln(out, "nothing is left")
	return nil
}
