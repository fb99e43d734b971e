// Command bulkhead prepares a host for pods in virtual machines of their own. See "bulkhead --help".
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
	status := cli.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(status)
}
