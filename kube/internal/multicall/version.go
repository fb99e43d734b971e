package multicall

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"text/tabwriter"
)

// devel is the version of what was built from a checkout, as the go command writes it.
const devel = "(devel)"

// Versions is what "version -o json" writes.
type Versions struct {
	// Version is the binary's own.
	Version string `json:"version"`
	// Programs are the versions of the programs, by name.
	Programs  map[string]string `json:"programs"`
	GoVersion string            `json:"goVersion"`
	Platform  string            `json:"platform"`
}

// VersionsOf takes the versions of the programs out of the build information, where a module that was replaced counts as what it
// was replaced by.
func VersionsOf(programs []Program, info *debug.BuildInfo) Versions {
	v := Versions{
		Version: devel, Programs: map[string]string{},
		GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	modules := map[string]string{}
	if info != nil {
		if info.Main.Version != "" {
			v.Version = info.Main.Version
		}
		for _, m := range info.Deps {
			linked := m
			for linked.Replace != nil {
				linked = linked.Replace
			}
			modules[m.Path] = linked.Version
		}
	}
	for _, p := range programs {
		switch known := modules[p.Module]; {
		case p.Module == "":
			v.Programs[p.Name] = v.Version
		case known == "":
			v.Programs[p.Name] = devel
		default:
			v.Programs[p.Name] = known
		}
	}
	return v
}

func version(programs []Program, info *debug.BuildInfo, self string, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet(self+" version", flag.ContinueOnError)
	flags.SetOutput(stderr)
	format := flags.String("o", "text", "`format`: text or json")
	if err := flags.Parse(args); err != nil {
		return exitUsage
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "%s version: it takes no argument, but there is %q\n", self, flags.Arg(0))
		return exitUsage
	}
	v := VersionsOf(programs, info)
	var err error
	switch *format {
	case "text":
		err = v.text(self, programs, stdout)
	case "json":
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(v)
	default:
		fmt.Fprintf(stderr, "%s version: there is no format %q: write text or json\n", self, *format)
		return exitUsage
	}
	if err != nil {
		fmt.Fprintf(stderr, "%s version: write the versions: %v\n", self, err)
		return exitFailed
	}
	return 0
}

func (v Versions) text(self string, programs []Program, w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "%s\t%s %s %s\n", self, v.Version, v.GoVersion, v.Platform)
	for _, p := range programs {
		fmt.Fprintf(table, "%s\t%s\n", p.Name, v.Programs[p.Name])
	}
	return table.Flush()
}
