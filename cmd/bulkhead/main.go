// Command bulkhead runs Kubernetes clusters whose pods may have virtual machines of their own. See "bulkhead --help".
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"bulkhead.dev/bulkhead/internal/cli"
	"bulkhead.dev/bulkhead/internal/vmm/jail"
)

func main() {
	jail.Main() // returns, unless this process is a VMM's before it became one
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	status := cli.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}
