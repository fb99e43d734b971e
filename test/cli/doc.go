// Package cli holds scripts that run the command bulkhead as a process of its own, as people and other scripts do: what it prints
// where, its exit status, and that a command that is refused changes nothing. They need neither root nor anything built; what
// needs a real cluster is in test/e2e.
//
// A script is a file in testdata/script, in the language of testscript, with one more command: "status N PROGRAM ARGS..." runs a
// program that must end with that exit status.
package cli
