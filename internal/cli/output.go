package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// format is the value of "-o": how a result is written.
type format string

const (
	formatTable format = "table"
	formatJSON  format = "json"
	formatYAML  format = "yaml"
)

// String, Set and Type make it a flag.
func (f *format) String() string { return string(*f) }

// Type names the value in the help.
func (f *format) Type() string { return "format" }

// Set refuses unknown formats.
func (f *format) Set(value string) error {
	switch v := format(value); v {
	case formatTable, formatJSON, formatYAML:
		*f = v
		return nil
	}
	return fmt.Errorf("write table, json or yaml")
}

// formatFlag adds "-o" to a command.
func formatFlag(cmd *cobra.Command) *format {
	f := formatTable
	cmd.Flags().VarP(&f, "output", "o", "how to write the result: table, json or yaml")
	return &f
}

// write writes a result: as a table by the given function, or encoded.
func (f *format) write(w io.Writer, result any, table func(io.Writer) error) error {
	switch *f {
	case formatJSON:
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		return encoder.Encode(result)
	case formatYAML:
		data, err := yaml.Marshal(result)
		if err != nil {
			return err
		}
		_, err = w.Write(data)
		return err
	}
	return table(w)
}

// writeTable writes rows in columns.
func writeTable(w io.Writer, rows ...[]string) error {
	columns := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	for _, row := range rows {
		if _, err := fmt.Fprintln(columns, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return columns.Flush()
}

// mebibytes writes a size for people. What is small is written in KiB, so that it isn't nothing.
func mebibytes(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

// list makes an encoded list that is empty an empty list, not null.
func list[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}
