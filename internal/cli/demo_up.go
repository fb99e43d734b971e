package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/config"
	"bulkhead.dev/bulkhead/internal/guestimage"
	"bulkhead.dev/bulkhead/internal/image"
	"bulkhead.dev/bulkhead/internal/node"
	"bulkhead.dev/bulkhead/internal/vmm"
)

// demoRunTimeout bounds one container of the demo; the first one in a VM converts the image and probes the host.
const demoRunTimeout = 5 * time.Minute

func newDemoUpCommand() *cobra.Command {
	var d demo
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a private containerd and run an image with runc and in a VM",
		Long: `Needs root, the guest image in the state directory (bulkhead guest build --dir DIR/guest), and containerd, ctr, the shims,
runc and BusyBox. In the source tree "make up" builds and installs all of it first. A second "up" takes the containerd that
runs already.`,
		Example: `  sudo bulkhead demo up --state-dir .state --bin-dir bin`,
		Args:    noArgs,
	}
	d.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return d.up(cmd.Context(), cmd.OutOrStdout()) }
	return cmd
}

func (d *demo) up(ctx context.Context, out io.Writer) error {
	if _, err := guestimage.Open(d.guest()); err != nil {
		return fmt.Errorf("open guest image: %w", err)
	}
	n, options, err := d.node()
	if err != nil {
		return err
	}
	if pid, err := n.PID(); err == nil && pid != 0 {
		fmt.Fprintln(out, "containerd: runs already")
	} else {
		fmt.Fprintln(out, "containerd: starting")
	}
	if _, err := node.Start(ctx, options); err != nil {
		return err
	}
	if err := importDemoImage(ctx, n); err != nil {
		return err
	}
	fmt.Fprintf(out, "containerd: ready on %s\n\n", n.Socket())

	host, err := d.kernel(ctx, n, node.RuntimeRunc)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "  %-28s %-26s the host's kernel\n", "runc:", host)
	acceleration, warning, err := demoAcceleration(ctx, n)
	if err != nil {
		return err
	}
	began := time.Now()
	guest, err := d.kernel(ctx, n, node.RuntimeBulkhead)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "  %-28s %-26s its own kernel, in a VM (%.1f s from start to end)\n\n", "io.containerd.bulkhead.v2:", guest, time.Since(began).Seconds())
	if guest == host {
		return fmt.Errorf("both containers saw kernel %s: the sandbox is none", host)
	}
	if acceleration == vmm.Emulated {
		writeEmulated(out, warning)
	}
	d.writeNext(out, n)
	return nil
}

// importDemoImage makes an image of the host's BusyBox and loads it. The archive needs no place of its own afterwards.
func importDemoImage(ctx context.Context, n *node.Node) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return errdefs.ErrFailedPrecondition.WithMessage("busybox is not on the PATH: apt-get install busybox-static")
	}
	files, err := image.BusyBox(ctx, busybox)
	if err != nil {
		return fmt.Errorf("make an image of BusyBox: %w", err)
	}
	built, err := image.Build(image.Spec{Files: files, Cmd: []string{"sh"}})
	if err != nil {
		return fmt.Errorf("make an image of BusyBox: %w", err)
	}
	archive := filepath.Join(n.Dir(), "busybox.tar")
	if err := writeArchive(archive, node.PauseImage, built); err != nil {
		return err
	}
	// CRI has a namespace of its own, where the image is the pause container's.
	for _, namespace := range []string{demoNamespace, "k8s.io"} {
		if _, err := n.Ctr(ctx, "--namespace", namespace, "images", "import", archive); err != nil {
			return fmt.Errorf("import an image of BusyBox: %w", err)
		}
	}
	return os.Remove(archive)
}

// kernel runs a container that prints its kernel's release.
func (d *demo) kernel(ctx context.Context, n *node.Node, runtime string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, demoRunTimeout)
	defer cancel()
	args := []string{"--namespace", demoNamespace, "run", "--rm", "--runtime", runtime}
	if runtime == node.RuntimeRunc {
		args = append(args, "--runc-root", n.RuncRoot())
	}
	id := fmt.Sprintf("uname-%d", time.Now().UnixNano())
	out, err := n.Ctr(ctx, append(args, node.PauseImage, id, "uname", "-r")...)
	if err != nil {
		return "", fmt.Errorf("run a container with %s (more in %s): %w", runtime, n.Log(), err)
	}
	release := strings.TrimSpace(out)
	if release == "" {
		return "", fmt.Errorf("run a container with %s: it printed nothing (more in %s)", runtime, n.Log())
	}
	return release, nil
}

// demoAcceleration asks as the node's shims will, so that they find the answer in the cache.
func demoAcceleration(ctx context.Context, n *node.Node) (vmm.Acceleration, string, error) {
	cfg, err := config.Load(filepath.Join(n.Dir(), "runtime.toml"))
	if err != nil {
		return "", "", err
	}
	acceleration, warning, err := accelerate(cfg)(ctx)
	if errors.Is(err, context.Canceled) {
		return "", "", err
	}
	if err != nil {
		return "", "", fmt.Errorf("find out what can run a guest here: %w", err)
	}
	return acceleration, warning, nil
}

func writeEmulated(out io.Writer, warning string) {
	fmt.Fprint(out, `  *************************************************************************
  *  EMULATION IS NOT ISOLATION. This VM was emulated in software, for    *
  *  lack of a working KVM. That is for development and CI; it is no wall *
  *  against hostile code.                                                *
  *************************************************************************
`)
	if warning != "" {
		fmt.Fprintf(out, "  why: %s\n", warning)
	}
	fmt.Fprintln(out)
}

// writeNext says how to go on.
func (d *demo) writeNext(out io.Writer, n *node.Node) {
	fmt.Fprintf(out, `Go on with the same containerd, for example a shell in a VM:

  export CONTAINERD_ADDRESS=%[1]s CONTAINERD_NAMESPACE=%[2]s
  %[3]s run --rm -t --runtime %[4]s %[5]s shell sh

What containerd and the shims say is in %[6]s.
To end and remove everything: make down, or %[7]s demo down --state-dir %[8]s
`, n.Socket(), demoNamespace, filepath.Join(d.bin, "ctr"), node.RuntimeBulkhead, node.PauseImage, n.Log(),
		filepath.Join(d.bin, "bulkhead"), d.state)
}
