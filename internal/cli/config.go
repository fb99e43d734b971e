package cli

import "github.com/spf13/cobra"

func newConfigCommand() *cobra.Command {
	return newNoun("config", "Look at the runtime's configuration",
		`The runtime and this command read one file, /etc/bulkhead/config.toml or the one that $BULKHEAD_CONFIG names. Every key has a
default. docs/reference/config.md describes them.`,
		newConfigCheckCommand())
}
