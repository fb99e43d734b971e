// Package multicall makes one binary of several programs: it finds out which is asked for and runs that one only.
//
//	bulkhead-kube kubelet --version      the first argument names the program
//	kubectl version                      so does the name that the binary is called by: a link to it
//	bulkhead-kube version -o json        which version of each program is in the binary
//
// Main picks, and hands the program its own arguments. Nothing of the others is constructed: many of them install signal
// handlers or change flags of the process when they are.
package multicall

import (
	"fmt"
	"io"
	"path/filepath"
	"runtime/debug"
	"strings"
)

// Exit codes of Main that are its own. Anything else is what the program returned.
const (
	exitFailed = 1
	exitUsage  = 2
)

// Program is one of the programs in the binary.
type Program struct {
	// Name is the first argument, or what the binary is called by, that means this program.
	Name string
	// Module is the path of the Go module whose version the program has. Empty: that of the binary itself.
	Module string
	// Run runs the program with its arguments, without a name in front, and returns its exit code. It may end the process.
	Run func(args []string, stdout, stderr io.Writer) int
}

// Main runs the program that the command line asks for and returns the exit code. argv is the whole command line, the name that
// the binary was called by first. info is the binary's build information; nil: there is none.
func Main(programs []Program, argv []string, info *debug.BuildInfo, stdout, stderr io.Writer) int {
	if len(argv) == 0 {
		argv = []string{""}
	}
	self := filepath.Base(argv[0])
	if p, ok := named(programs, self); ok {
		return p.Run(argv[1:], stdout, stderr)
	}
	if len(argv) == 1 {
		fmt.Fprint(stderr, usage(self, programs))
		return exitUsage
	}
	name, args := argv[1], argv[2:]
	switch name {
	case "version", "--version":
		return version(programs, info, self, args, stdout, stderr)
	case "help", "--help", "-h":
		fmt.Fprint(stdout, usage(self, programs))
		return 0
	}
	p, ok := named(programs, name)
	if !ok {
		fmt.Fprintf(stderr, "%s: there is no program %q in this binary: there are %s\n", self, name, strings.Join(names(programs), ", "))
		return exitUsage
	}
	return p.Run(args, stdout, stderr)
}

func named(programs []Program, name string) (Program, bool) {
	for _, p := range programs {
		if p.Name == name {
			return p, true
		}
	}
	return Program{}, false
}

func names(programs []Program) []string {
	all := make([]string, 0, len(programs))
	for _, p := range programs {
		all = append(all, p.Name)
	}
	return all
}

func usage(self string, programs []Program) string {
	return fmt.Sprintf("usage: %s PROGRAM [argument ...]\n       %s version [-o json]\n\nPROGRAM is one of %s.\nA link to this binary that has a program's name is that program.\n",
		self, self, strings.Join(names(programs), ", "))
}
