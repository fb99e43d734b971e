package netpol

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/knftables"
)

// Exit codes of Main.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

// config is what the command line says.
type config struct {
	kubeconfig, node, standIns string
	level                      slog.Level
}

func parseArgs(args []string, stderr io.Writer) (config, error) {
	var c config
	flags := flag.NewFlagSet("netpol", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&c.kubeconfig, "kubeconfig", "", "`file` that says how to reach the API server")
	flags.StringVar(&c.node, "node-name", "", "`name` of the node whose network namespace this is")
	flags.StringVar(&c.standIns, "stand-ins", "", "`file` of Pod manifests that count as pods although the API doesn't know them")
	flags.TextVar(&c.level, "log-level", slog.LevelInfo, "`level` from which on to log: debug, info, warn, error")
	if err := flags.Parse(args); err != nil {
		return c, fmt.Errorf("parsing the command line: %w", err)
	}
	switch {
	case flags.NArg() > 0:
		return c, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case c.kubeconfig == "":
		return c, errors.New("--kubeconfig is needed")
	case c.node == "":
		return c, errors.New("--node-name is needed")
	}
	return c, nil
}

// Main is the command "netpol". It works until ctx ends, which is not an error, and returns the exit code. It needs root
// and the program nft.
func Main(ctx context.Context, args []string, _, stderr io.Writer) int {
	c, err := parseArgs(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		fmt.Fprintln(stderr, "netpol:", err)
		return exitUsage
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: c.level}))
	klog.SetSlogLogger(log) // client-go logs to it
	if err := run(ctx, c, log); err != nil && ctx.Err() == nil {
		fmt.Fprintln(stderr, "netpol:", err)
		return exitError
	}
	return exitOK
}

func run(ctx context.Context, c config, log *slog.Logger) error {
	o := Options{Node: c.node, Log: log}
	var err error
	if c.standIns != "" {
		if o.StandIns, err = ReadStandIns(c.standIns); err != nil {
			return err
		}
	}
	rest, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig)
	if err != nil {
		return fmt.Errorf("loading the kubeconfig %s: %w", c.kubeconfig, err)
	}
	rest.UserAgent = "bulkhead-netpol"
	rest.ContentType = runtime.ContentTypeProtobuf
	if o.Client, err = kubernetes.NewForConfig(rest); err != nil {
		return fmt.Errorf("making a client for %s: %w", rest.Host, err)
	}
	for i, name := range Tables() {
		if o.NFT[i], err = knftables.New(knftables.InetFamily, name); err != nil {
			return fmt.Errorf("looking for nftables: %w", err)
		}
	}
	engine, err := New(o)
	if err != nil {
		return fmt.Errorf("setting up the watches: %w", err)
	}
	log.Info("starting", "node", c.node, "api", rest.Host, "standIns", len(o.StandIns))
	return engine.Run(ctx)
}
