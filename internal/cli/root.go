// Package cli is the command "bulkhead": the commands that people type, one file for each noun and verb.
//
// [Main] runs one command line. A command reads flags, calls the package that does the work, and writes the result: data to
// stdout, everything else to stderr. Commands that list something write a table for people, or with "-o json" or "-o yaml"
// the same for programs. An error is one line on stderr, "bulkhead: ...", and the exit status says of which kind:
//
//	0  done; for "doctor": this host is ready
//	1  it could not be done; for "doctor": this host is not ready
//	2  the command line makes no sense
//
// docs/reference/cli.md is made from the commands; a test keeps it in step, and "go generate" writes it anew.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"bulkhead.dev/bulkhead/internal/config"
)

//go:generate go test -run TestReference . -update

// commands lists the commands below "bulkhead", in the order of the help. A new one is a file of its own with a constructor,
// and a line here.
func commands(open opener) []*cobra.Command {
	return []*cobra.Command{
		newClusterCommand(open),
		newNodepoolCommand(open),
		newNodeCommand(open),
		newFeatureCommand(),
		newImageCommand(open),
		newDoctorCommand(),
		newGuestCommand(),
		newConfigCommand(),
		newVersionCommand(),
		newSuperviseCommand(),
	}
}

// Exit statuses of Main.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// statusError makes Main end with a status and say nothing: what there is to say was already written.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// usageError is an error in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// Main runs the command line args (without the program's name) and gives the exit status.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return run(ctx, openManager, args, stdin, stdout, stderr)
}

func run(ctx context.Context, open opener, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRootCommand(open)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	command, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	if status := statusError(0); errors.As(err, &status) {
		return int(status)
	}
	fmt.Fprintf(stderr, "bulkhead: %v\n", err)
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		fmt.Fprintln(stderr, "You are not root: try it with sudo.")
	}
	if usage := (usageError{}); errors.As(err, &usage) {
		fmt.Fprintf(stderr, "See \"%s --help\".\n", command.CommandPath())
		return exitUsage
	}
	return exitFailed
}

// flagError says what is wrong with a flag's value as the other errors of parameters do: --flag "value": what to write.
func flagError(_ *cobra.Command, err error) error {
	invalid := (*pflag.InvalidValueError)(nil)
	if !errors.As(err, &invalid) {
		return usageError{err}
	}
	reason := invalid.Unwrap().Error()
	if number := (*strconv.NumError)(nil); errors.As(err, &number) {
		reason = "write a whole number"
	}
	return usageError{fmt.Errorf("--%s %q: %s", invalid.GetFlag().Name, invalid.GetValue(), reason)}
}

func newRootCommand(open opener) *cobra.Command {
	root := &cobra.Command{
		Use:   "bulkhead",
		Short: "Pods in virtual machines of their own",
		Long: `Bulkhead runs a pod in a lightweight virtual machine with its own kernel. The image, the manifest and kubectl stay
what they are: containerd starts the runtime io.containerd.bulkhead.v2 for pods that ask for it.

This command runs Kubernetes clusters on this machine in which ordinary and sandboxed pods live side by side, and prepares a host
that has a Kubernetes already.`,
		Example: `  # What does this host have, and what does it lack?
  bulkhead doctor

  # Make the kernel and initramfs that the virtual machines boot.
  bulkhead guest build

  # A cluster whose pods may ask for a virtual machine, and its credentials for kubectl.
  sudo bulkhead cluster create demo --workload-runtime vm-isolation
  sudo bulkhead cluster get-credentials demo`,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(flagError)
	root.PersistentFlags().String("config", "", "the runtime's configuration `file` (default $"+config.PathVariable+" or "+config.DefaultPath+")")
	root.AddCommand(commands(open)...)
	return root
}

// newNoun is a command that only groups verbs.
func newNoun(name, short, long string, verbs ...*cobra.Command) *cobra.Command {
	noun := &cobra.Command{Use: name, Short: short, Long: long, Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	noun.AddCommand(verbs...)
	return noun
}

// noArgs refuses arguments. Of a command that groups others, an argument was meant as one of them.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if !cmd.HasAvailableSubCommands() {
		return usageError{fmt.Errorf("%q takes no argument, and got %q", cmd.CommandPath(), args[0])}
	}
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" {
			names = append(names, sub.Name())
		}
	}
	return usageError{fmt.Errorf("%q has no command %q; it has %s", cmd.CommandPath(), args[0], strings.Join(names, ", "))}
}

// exactArg wants one argument and names it in the error.
func exactArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usageError{fmt.Errorf("%q takes one argument, %s, and got %d", cmd.CommandPath(), what, len(args))}
		}
		return nil
	}
}

// loadConfig reads the runtime's configuration.
func loadConfig(cmd *cobra.Command) (config.Config, error) {
	file, err := cmd.Flags().GetString("config")
	if err != nil {
		return config.Config{}, err
	}
	return config.Load(file)
}
