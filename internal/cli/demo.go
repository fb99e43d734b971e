package cli

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/node"
)

// demoNamespace is containerd's namespace for what the demo runs.
const demoNamespace = "bulkhead-demo"

func newDemoCommand() *cobra.Command {
	return newNoun("demo", "Run one image beside and inside a virtual machine, here and now",
		`Starts a private containerd in a directory of its own, and runs one small image twice: with runc, and with
io.containerd.bulkhead.v2. The containerd stays, for trying out more, until "bulkhead demo down". The system's containerd,
if there is one, isn't touched.`,
		newDemoUpCommand(), newDemoDownCommand())
}

// demo is where the demo's things are.
type demo struct {
	state, bin string
}

func (d *demo) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&d.state, "state-dir", ".state", "the `directory` for everything that the demo keeps")
	cmd.Flags().StringVar(&d.bin, "bin-dir", "", "the `directory` of containerd, ctr and the shims (default: this program's)")
}

// node describes the demo's containerd.
func (d *demo) node() (*node.Node, node.Options, error) {
	if d.bin == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, node.Options{}, fmt.Errorf("find this program's directory: %w", err)
		}
		d.bin = filepath.Dir(self)
	}
	o := node.Options{Dir: filepath.Join(d.state, "node"), Bin: d.bin, Guest: d.guest()}
	n, err := node.At(o)
	return n, o, err
}

func (d *demo) guest() string { return filepath.Join(d.state, "guest") }
