package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/doctor"
)

func newDoctorCommand() *cobra.Command {
	var containerd, containerdConfig string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this host has and lacks for pods in virtual machines",
		Long: `Looks at everything that a pod in a virtual machine needs on this host, and says for each thing whether it is there
and, where not, the command or setting that repairs it. KVM is not trusted by the look of /dev/kvm: a small guest is booted
with it once, and the answer is kept in the state directory until the host boots again or the kernel, QEMU or the guest changes.

Nothing else on the host is changed. The exit status is 0 when the host is ready (there may be warnings) and 1 when something is
missing. A host without hardware virtualization is ready, with a warning: its pods run under emulation, which is for
development and CI and is no isolation. Set vmm.acceleration = "hardware" where that must not happen.

It is about the host's own containerd. A cluster of "bulkhead cluster" brings its own, and its guest image is in its state directory:
of the checks it needs those of the VMs only, and "bulkhead cluster create" makes them itself.`,
		Example: `  # A table for people.
  sudo bulkhead doctor

  # What is missing, for a program.
  sudo bulkhead doctor -o json | jq '.checks[] | select(.status == "missing")'`,
		Args: noArgs,
	}
	out := formatFlag(cmd)
	cmd.Flags().StringVar(&containerd, "containerd", "containerd", "the containerd `program`: a path, or a name to look up")
	cmd.Flags().StringVar(&containerdConfig, "containerd-config", "/etc/containerd/config.toml", "containerd's configuration `file`")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := loadConfig(cmd)
		if err != nil {
			return err
		}
		host := doctor.This(cfg, accelerate(cfg))
		host.Containerd, host.ContainerdConfig = containerd, containerdConfig
		report := doctor.Examine(cmd.Context(), host)
		if err := out.write(cmd.OutOrStdout(), report, func(w io.Writer) error { return writeReport(w, report) }); err != nil {
			return err
		}
		if !report.Ready {
			return statusError(exitFailed)
		}
		return nil
	}
	return cmd
}

// writeReport writes the table, and below it what to do. Fixes are too long for a column.
func writeReport(w io.Writer, report doctor.Report) error {
	rows := [][]string{{"CHECK", "STATUS", "FOUND"}}
	var fixes strings.Builder
	for _, c := range report.Checks {
		// What a program printed may have several lines.
		rows = append(rows, []string{c.Name, string(c.Status), strings.Join(strings.Fields(c.Found), " ")})
		if c.Status != doctor.OK {
			fmt.Fprintf(&fixes, "  %s: %s\n", c.Name, c.Fix)
		}
	}
	if err := writeTable(w, rows...); err != nil {
		return err
	}
	var end strings.Builder
	if fixes.Len() > 0 {
		end.WriteString("\nTo repair:\n" + fixes.String())
	}
	switch {
	case !report.Ready:
		end.WriteString("\nThis host is NOT READY for pods in virtual machines.\n")
	case report.Isolation != "hardware":
		end.WriteString("\nThis host is ready, by EMULATION. " + doctor.NotIsolation + ".\n")
	default:
		end.WriteString("\nThis host is ready: pods are isolated by hardware virtualization.\n")
	}
	_, err := io.WriteString(w, end.String())
	return err
}
