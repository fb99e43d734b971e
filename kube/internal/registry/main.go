// Package registry is the image registry of a cluster: nodes pull from it over HTTP, and it mirrors any other registry.
//
// It is the Distribution project's registry as a library, with its files in one directory (docker/registry/v2 beneath it, the same
// layout as the program of that project has). Nothing is fetched from elsewhere: it holds what was pushed to it.
//
// A mirror of other hosts has the host before the name of the repository, and ":" of a port as "_":
//
//	image                             repository here                       pushed as, for 10.88.0.2:5000
//	docker.io/library/busybox:1       docker.io/library/busybox             10.88.0.2:5000/docker.io/library/busybox:1
//	registry.example:5000/app:2       registry.example_5000/app             10.88.0.2:5000/registry.example_5000/app:2
//	10.88.0.2:5000/app:3              app                                   10.88.0.2:5000/app:3
//
// containerd asks a mirror for the image's repository and adds the host as a query parameter: GET /v2/library/busybox/manifests/1?ns=docker.io.
// So the same entry is right for every host, and needs no override_path; one that has it, and ends in /v2/HOST, does no harm. In a
// node's hosts directory (config_path):
//
//	_default/hosts.toml, or docker.io/hosts.toml and so on, to mirror all hosts, or one:
//	    [host."http://10.88.0.2:5000"]
//	    capabilities = ["pull", "resolve"]
//
//	10.88.0.2_5000_/hosts.toml, for images of the registry itself, which has no TLS:
//	    server = "http://10.88.0.2:5000"
//
// What isn't here is answered with 404, upon which containerd asks the next host of the file, and the image's own host last.
// A directory for a host replaces _default: it must name the mirror too.
//
// Who can push decides what every pod of the cluster runs, so a pod must not. Pushing and deleting is for the addresses of --push-from only:
// the default is the registry's own network namespace. Reading is for everybody who gets through to --listen.
//
// An index may name images that aren't here: a mirror has seldom those of all platforms. Deleting a manifest doesn't free its layers.
package registry

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

const usage = `Usage: bulkhead-kube registry --listen ADDRESS:PORT --root DIR [--push-from PREFIX,...]

Serves an OCI registry over HTTP, with its images in DIR. Requests with ?ns=HOST, which containerd sends to a mirror, are for the
repositories of that host: docker.io/library/busybox is pushed as ADDRESS:PORT/docker.io/library/busybox.

Flags:
`

// loopback is who may push unless told otherwise.
const loopback = "127.0.0.0/8,::1/128"

// Main serves until ctx ends or SIGTERM or SIGINT comes. The result is an exit status: 0, 1 after an error, 2 for arguments that
// can't be used. The registry's library logs through global variables: there is one registry in a process.
func Main(ctx context.Context, args []string, _, stderr io.Writer) int {
	flags := flag.NewFlagSet("registry", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	listen := flags.String("listen", "", "`ADDRESS:PORT` to serve on, without TLS")
	root := flags.String("root", "", "`DIR` with the images; made if it isn't there")
	from := flags.String("push-from", loopback, "addresses that may push and delete, as `PREFIX,...`; all may pull")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	pushers, err := check(flags.Args(), *listen, *root, *from)
	if err != nil {
		fmt.Fprintf(stderr, "registry: %v\n", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log := slog.New(slog.NewTextHandler(stderr, nil))
	if err := run(ctx, *listen, *root, pushers, log); err != nil {
		log.Error("the registry ended", "err", err)
		return 1
	}
	return 0
}

// check says which flag is wrong, and how it should look, or returns who may push.
func check(rest []string, listen, root, from string) ([]netip.Prefix, error) {
	if len(rest) > 0 {
		return nil, fmt.Errorf("unexpected argument %q: see --help", rest[0])
	}
	if _, err := netip.ParseAddrPort(listen); err != nil {
		return nil, fmt.Errorf("--listen %q: give ADDRESS:PORT", listen)
	}
	if !filepath.IsAbs(root) {
		return nil, fmt.Errorf("--root %q: give the absolute path of the directory for the images", root)
	}
	var prefixes []netip.Prefix
	for text := range strings.SplitSeq(from, ",") {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("--push-from %q: give prefixes such as 10.88.0.1/32, with commas between them: %w", text, err)
		}
		prefixes = append(prefixes, prefix)
	}
	return prefixes, nil
}

// run serves until ctx ends.
func run(ctx context.Context, listen, root string, pushers []netip.Prefix, log *slog.Logger) error {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return fmt.Errorf("make the directory for the images: %w", err)
	}
	logTo(log)
	app, err := newApp(ctx, root)
	if err != nil {
		return err
	}
	defer app.Shutdown() //nolint:errcheck // nothing is written late
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err // it names the address
	}
	log.Info("serving", "listen", listener.Addr(), "root", root, "pushFrom", pushers)
	return serve(ctx, listener, front{app, pushers}, log)
}
