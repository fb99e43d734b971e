// Package kms is the key service that the API server encrypts Secrets at rest with: a KMS v2 plugin whose keys lie in one file.
//
// The API server makes a data key for itself, has it encrypted here, and stores the encrypted data key beside every object that it
// encrypts with it (k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2). So only data keys come by, and seldom: when the API
// server starts, and when the key id that Status tells changes.
//
//	object ─ AES-GCM(data key) ─► etcd
//	data key ─ Encrypt ─► kms ─ AES-256-GCM(newest key of the key file) ─► ciphertext, key id ─► etcd, beside the object
//
// The key file (see keyring) holds every key that was ever used, the newest first. Rotate puts a new one in front; the running
// service sees it at the next call, tells the new key id in Status, and the API server then takes a new data key. Objects that were
// written before stay readable; they are encrypted anew when they are written again:
//
//	kubectl get secrets -A -o json | kubectl replace -f -
//
// The configuration of the API server (--encryption-provider-config) that belongs to it:
//
//	apiVersion: apiserver.config.k8s.io/v1
//	kind: EncryptionConfiguration
//	resources:
//	  - resources: [secrets]
//	    providers:
//	      - kms: {apiVersion: v2, name: bulkhead, endpoint: "unix:///run/bulkhead-1/kms.sock"}
//	      - identity: {}
//
// The name goes into etcd with every object: a cluster can't change it later.
package kms

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const usage = `Usage: bulkhead-kube kms --listen unix:///PATH --key-file FILE
       bulkhead-kube kms rotate --key-file FILE

Serves the KMS v2 plugin interface with the keys of a file, for the API server's encryption at rest.
rotate puts a new key in front of the file; a running plugin takes it at its next call.

Flags:
`

// Main serves, or rotates when the first argument says so. It returns when ctx ends or SIGTERM or SIGINT comes. The result is
// an exit status: 0, 1 after an error, 2 for arguments that can't be used.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	rotate := len(args) > 0 && args[0] == "rotate"
	if rotate {
		args = args[1:]
	}
	flags := flag.NewFlagSet("kms", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	keyFile := flags.String("key-file", "", "`FILE` with the keys; the service makes it, with one new key, if it isn't there")
	listen := new(string)
	if !rotate {
		listen = flags.String("listen", "", "socket to serve on, as unix:///`PATH`; mode 0600")
	}
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	if err := check(flags, rotate, *keyFile, *listen); err != nil {
		fmt.Fprintf(stderr, "kms: %v\n", err)
		return 2
	}

	if rotate {
		id, err := Rotate(*keyFile, time.Now())
		if err != nil {
			fmt.Fprintf(stderr, "kms: %v\n", err)
			return 1
		}
		fmt.Fprintln(stdout, id)
		return 0
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log := slog.New(slog.NewTextHandler(stderr, nil))
	if err := run(ctx, *listen, *keyFile, log); err != nil {
		log.Error("the key service ended", "err", err)
		return 1
	}
	return 0
}

// check says which flag is wrong, and how it should look.
func check(flags *flag.FlagSet, rotate bool, keyFile, listen string) error {
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q: see --help", flags.Arg(0))
	}
	if keyFile == "" {
		return errors.New("--key-file is missing: give the file that holds the keys")
	}
	if rotate {
		return nil
	}
	_, err := socketPath(listen)
	return err
}

// run serves until ctx ends.
func run(ctx context.Context, endpoint, keyFile string, log *slog.Logger) error {
	made, err := ensure(keyFile, time.Now())
	if err != nil {
		return err
	}
	if made {
		log.Info("made a key file", "file", keyFile)
	}
	server, err := newServer(keyFile, log)
	if err != nil {
		return err
	}
	// Changes of the file are seen without it too: the signal is for who can't wait for the next call.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	path, err := socketPath(endpoint)
	if err != nil {
		return err
	}
	socket, err := listenUnix(path)
	if err != nil {
		return err
	}
	defer socket.Close()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for {
			select {
			case <-hangup:
				_, _ = server.reload(true) // it logs, and Status tells
			case <-ctx.Done():
				return
			}
		}
	}()
	log.Info("serving", "listen", endpoint, "keyFile", keyFile, "keyID", server.keys().newest().id)
	return serve(ctx, socket, server)
}
