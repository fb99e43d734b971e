// Command containerd-shim-bulkhead-v2 is the containerd runtime io.containerd.bulkhead.v2. containerd starts it; package
// internal/shim says how.
package main

import (
	"context"
	"fmt"
	"os"

	"bulkhead.dev/bulkhead/internal/shim"
	"bulkhead.dev/bulkhead/internal/vmm/jail"
)

func main() {
	jail.Main() // first: the same program becomes the VMM's jail

	if err := shim.Run(context.Background(), os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", shim.Name, err)
		os.Exit(1)
	}
}
