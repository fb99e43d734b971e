package cli

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/image"
)

func newImageBuildCommand(open opener) *cobra.Command {
	target := imageTarget{member: member{place: place{open: open}}}
	var spec image.Spec
	var name, entrypoint string
	var labels map[string]string
	cmd := &cobra.Command{
		Use:   "build (DIR | PROGRAM)",
		Short: "Make an image of a directory or of one static program",
		Long: `A directory becomes the image's root. A static program becomes an image with nothing else in it, and is its entrypoint.
All files belong to root.`,
		Example: `  # A Go program that was built with CGO_ENABLED=0.
  bulkhead image build --name example.org/hello:1 -o hello.tar ./hello

  # A directory, with a command.
  bulkhead image build --name site --cmd httpd --cmd=-f --env PORT=80 -o site.tar ./rootfs

  # Straight into a cluster.
  sudo bulkhead image build --name example.org/hello:1 --cluster-name demo ./hello`,
		Args: exactArg("a directory or a program"),
	}
	flags := cmd.Flags()
	flags.StringVar(&name, "name", "", "the image's `name`, such as example.org/hello:1 (required)")
	target.flags(cmd)
	flags.StringVar(&entrypoint, "entrypoint", "", "the program to run, and its first arguments, separated by spaces")
	flags.StringArrayVar(&spec.Cmd, "cmd", nil, "an argument for the entrypoint, or the program to run; repeat it for more")
	flags.StringArrayVar(&spec.Env, "env", nil, "a variable, `NAME=value`; repeat it for more")
	flags.StringToStringVar(&labels, "label", nil, "a label, `key=value`; repeat it for more")
	flags.Lookup("label").DefValue = "" // its zero value is written []
	flags.StringVar(&spec.User, "user", "", "the `user` to run as: uid, uid:gid, or a name of the image's /etc/passwd")
	flags.StringVar(&spec.WorkingDir, "workdir", "", "the `directory` to run in")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := required(cmd, "name"); err != nil {
			return err
		}
		if err := target.check(name); err != nil {
			return err
		}
		info, err := os.Stat(args[0])
		if err != nil {
			return err
		}
		if info.IsDir() {
			spec.Files, err = image.ReadDir(args[0])
		} else {
			spec.Files, spec.Entrypoint, err = image.Program(args[0])
		}
		if err != nil {
			return err
		}
		if entrypoint != "" {
			spec.Entrypoint = strings.Fields(entrypoint)
		}
		spec.Labels = labels
		return target.put(cmd, name, spec)
	}
	return cmd
}

// required refuses a command line without a flag that has no default.
func required(cmd *cobra.Command, names ...string) error {
	for _, name := range names {
		if flag := cmd.Flags().Lookup(name); flag.Value.String() == "" {
			return missing(name)
		}
	}
	return nil
}

func missing(flag string) error { return usageError{fmt.Errorf("--%s is required", flag)} }
