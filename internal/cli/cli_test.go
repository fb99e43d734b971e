package cli

import (
	"bytes"
	"flag"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/vmm/jail"
)

var update = flag.Bool("update", false, "write docs/reference/cli.md anew")

func TestMain(m *testing.M) {
	jail.Main() // "doctor" may start a VM
	os.Exit(m.Run())
}

// TestReference keeps docs/reference/cli.md in step with the commands.
func TestReference(t *testing.T) {
	const name = "../../docs/reference/cli.md"
	want := reference(newRootCommand(openManager))
	if *update {
		if err := os.WriteFile(name, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf(`docs/reference/cli.md is out of date: run "go generate ./internal/cli". Commands (-), page (+):`+"\n%s", diff)
	}
}

// TestHelpTeaches holds every command to a text and an example of its own.
func TestHelpTeaches(t *testing.T) {
	every(newRootCommand(openManager), func(cmd *cobra.Command) {
		if cmd.Short == "" || (cmd.Example == "" && !cmd.HasSubCommands()) {
			t.Errorf("%q has no short text or no example", cmd.CommandPath())
		}
		if cmd.HasSubCommands() {
			return
		}
		for line := range strings.Lines(cmd.Example) {
			line = strings.TrimPrefix(strings.TrimSpace(line), "sudo ")
			if rest, ok := strings.CutPrefix(line, "bulkhead "); ok && !strings.HasPrefix("bulkhead "+rest, cmd.CommandPath()) {
				t.Errorf("an example of %q is of another command: %s", cmd.CommandPath(), line)
			}
		}
	})
}

// every visits the commands that the help shows.
func every(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" {
			every(sub, visit)
		}
	}
}

// reference writes the page about all commands.
func reference(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("# The command `bulkhead`\n\n" +
		"This page is made from the commands (`go generate ./internal/cli`); change it there.\n\n" +
		"Exit status: 0 when it was done (of `doctor`: this host is ready), 1 when not, 2 when the command line makes no sense. " +
		"Data goes to stdout, everything else to stderr.\n")
	every(root, func(cmd *cobra.Command) {
		cmd.InitDefaultHelpFlag()
		b.WriteString("\n## " + cmd.CommandPath() + "\n\n")
		text := cmd.Long
		if text == "" {
			text = cmd.Short + "."
		}
		b.WriteString(text + "\n\n    " + cmd.UseLine() + "\n")
		if cmd.Example != "" {
			b.WriteString("\nExamples:\n\n```sh\n" + unindent(cmd.Example) + "\n```\n")
		}
		if usages := strings.TrimRight(cmd.LocalFlags().FlagUsages(), "\n"); usages != "" {
			b.WriteString("\nFlags:\n\n```\n" + usages + "\n```\n")
		}
	})
	return b.String()
}

func unindent(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		lines = append(lines, strings.TrimPrefix(strings.TrimRight(line, "\n"), "  "))
	}
	return strings.Join(lines, "\n")
}

func TestFormats(t *testing.T) {
	type value struct {
		A string `json:"a"`
	}
	tests := map[string]string{"json": "{\n  \"a\": \"<x>\"\n}\n", "yaml": "a: <x>\n", "table": "A\n"}
	for name, want := range tests {
		var f format
		if err := f.Set(name); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		err := f.write(&out, value{"<x>"}, func(w io.Writer) error { return writeTable(w, []string{"A"}) })
		if err != nil || out.String() != want {
			t.Errorf("%s: %q, %v", name, out.String(), err)
		}
	}
}
