package cli

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/config"
)

func newConfigCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Say whether the configuration file is right",
		Long: `Reads the configuration as the runtime does. What is wrong in it is an error that says where it stands, which key it is,
and what is allowed.`,
		Example: `  bulkhead config check

  # Before it is put in place.
  bulkhead config check --config ./config.toml`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := loadConfig(cmd); err != nil {
				return err
			}
			flag, err := cmd.Flags().GetString("config")
			if err != nil {
				return err
			}
			file, _ := config.Path(flag)
			if _, err := os.Stat(file); err != nil {
				fmt.Fprintf(cmd.OutOrStdout(), "%s does not exist: every key has its default\n", file)
				return nil
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is right\n", file)
			return nil
		},
	}
}
