package cli

import (
	"io"
	"strconv"

	"github.com/spf13/cobra"
)

func newImageListCommand(open opener) *cobra.Command {
	m := member{place: place{open: open}}
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the images on a cluster's nodes",
		Long:    `Lists each image that is on a node, with its size and the nodes that have it. Nodes that are stopped are left out.`,
		Example: `  sudo bulkhead image list --cluster-name demo`,
		Args:    noArgs,
	}
	out := formatFlag(cmd)
	m.flags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := required(cmd, "cluster-name"); err != nil {
			return err
		}
		all, err := m.manager(cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		found, err := all.Images(cmd.Context(), m.cluster)
		if err != nil {
			return err
		}
		return out.write(cmd.OutOrStdout(), list(found), func(w io.Writer) error {
			rows := [][]string{{"IMAGE", "SIZE", "NODES"}}
			for _, i := range found {
				rows = append(rows, []string{i.Name, mebibytes(i.Size), strconv.Itoa(len(i.Nodes))})
			}
			return writeTable(w, rows...)
		})
	}
	return cmd
}
