// Package component says how each program of an embedded cluster is started: its command line, its configuration files, and
// after which others.
//
//	spec.Config, fabric.Network, pki's files ─► ControlPlane ──┬─► []supervise.Process
//	... and node.Node ────────────────────────► NodeProcesses ─┴─► files, by path
//
// Nothing here acts or looks at the machine, so that all of it can be tested by what comes out. Flags and keys are those of the
// versions that kube/go.mod pins; what is left out has upstream's default.
package component
