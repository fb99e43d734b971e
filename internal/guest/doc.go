// Package guest is the agent: PID 1 of a pod's VM, which makes and runs the pod's containers.
//
//	kernel ─► Boot: mounts, modules of the channel, cgroups ─► port "bulkhead.agent"
//	                                                              │ rpc (calls, stdio, volumes)
//	                                                              ▼
//	Agent ─ Configure ── clock, entropy, names, sysctls, network (package netconf), volumes
//	      ─ containers ─ disks ─► layers ─► overlay ─► bundle ─► crun create ─► init process
//	      ─ processes ── pipes or pty ◄─► data streams; exits through package reaper
//	      ─ cgroups ──── limits, statistics, freezing, OOM kills
//
// The OCI runtime crun is started to create a container, and for further processes in it that need a terminal or something
// as rare; others are started by package enter. docs/adr/0003-guest-runtime.md tells why. Everything else that runtimes do
// (start, kill, pause, update, delete) is a few writes to files, which the agent does itself.
//
// A process goes through these states; a call that doesn't fit one is ErrFailedPrecondition and names it:
//
//	created ── Start ──► running ── its end ──► stopped ── Delete ──► gone
//	   └───────── a signal that ends it, or a failed Start ──▲
//
// The host is trusted, containers are not. They can't reach the agent: its channel's device is not in any container, they
// live in pid namespaces without it, and the agent holds no file of theirs open by a path that they can change. What
// they make the agent remember is bounded (see the constants in agent.go).
package guest

import (
	"runtime/debug"

	"bulkhead.dev/bulkhead/internal/guest/reaper"
)

// Version is the version of the module that the agent was built from.
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

// state is where a process or container is in its life.
type state string

const (
	stateCreated state = "created"
	stateRunning state = "running"
	stateStopped state = "stopped"
)

// failedStart is the exit of a process that could not be started.
var failedStart = reaper.Exit{Status: 255}
