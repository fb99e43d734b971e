package shim

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/containerd/errdefs"
)

// Name is the runtime's name to containerd.
const Name = "io.containerd.bulkhead.v2"

// arguments are what containerd gives every verb.
type arguments struct {
	namespace, id, bundle  string
	address, publishBinary string // containerd's gRPC address, and its binary
	ttrpcAddress           string // of containerd's events service
	config                 string // our own: the configuration file, from start to the shim
	debug, version, info   bool
	verb                   string
}

// Run is the program: args are its arguments without its name. It returns when the verb is done, which for the shim itself
// is when its pod is deleted.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	a, err := parse(args)
	if err != nil {
		return err
	}
	switch {
	case a.version:
		return printVersion(stdout)
	case a.info:
		return info(stdin, stdout)
	case a.namespace == "" || a.id == "":
		return fmt.Errorf("-namespace and -id must be given: %w", errdefs.ErrInvalidArgument)
	}
	switch a.verb {
	case "start":
		return start(ctx, a, stdin, stdout)
	case "delete":
		return remove(ctx, a, stdout)
	case "":
		return serve(ctx, a)
	}
	return fmt.Errorf("unknown verb %q: %w", a.verb, errdefs.ErrInvalidArgument)
}

func parse(args []string) (arguments, error) {
	var a arguments
	flags := flag.NewFlagSet("containerd-shim-bulkhead-v2", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // standard error is a part of start's answer to containerd
	flags.StringVar(&a.namespace, "namespace", "", "containerd's namespace")
	flags.StringVar(&a.id, "id", "", "id of the task")
	flags.StringVar(&a.bundle, "bundle", "", "path of the bundle, if not the working directory")
	flags.StringVar(&a.address, "address", os.Getenv("GRPC_ADDRESS"), "containerd's gRPC address")
	flags.StringVar(&a.publishBinary, "publish-binary", "", "path of containerd's binary")
	flags.StringVar(&a.config, "config", "", "path of the configuration file")
	flags.BoolVar(&a.debug, "debug", false, "log more")
	flags.BoolVar(&a.version, "v", false, "print the version")
	flags.BoolVar(&a.version, "version", false, "print the version")
	flags.BoolVar(&a.info, "info", false, "read runtime options, print what the runtime can do")
	flags.String("socket", "", "ignored: the socket is inherited")
	flags.String("debug-socket", "", "ignored")
	if err := flags.Parse(args); err != nil {
		return a, fmt.Errorf("arguments: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	a.ttrpcAddress = os.Getenv("TTRPC_ADDRESS")
	if a.namespace == "" {
		a.namespace = os.Getenv("NAMESPACE")
	}
	a.verb = flags.Arg(0)
	if a.bundle == "" {
		var err error
		if a.bundle, err = os.Getwd(); err != nil {
			return a, errors.Join(errors.New("find the bundle"), err)
		}
	}
	return a, nil
}

// build returns the version and the revision that this program was built from.
func build() (version, revision string) {
	version = "unknown"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return version, ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			revision = s.Value
		}
	}
	return info.Main.Version, revision
}

func printVersion(w io.Writer) error {
	version, revision := build()
	_, err := fmt.Fprintf(w, "containerd-shim-bulkhead-v2\n  Version:  %s\n  Revision: %s\n  Go version: %s\n", version, revision, runtime.Version())
	return err
}
