// Package sandbox is the life of one pod's virtual machine on the host: from the pod's limits, network namespace and
// containers to a VM with running processes, and back to a host on which nothing is left of it.
//
// How things flow:
//
//	shim ── Start ──► record, uid, cgroup, taps, VMM, agent, volumes   (steps, each with its undo: start.go)
//	     ── CreateContainer ──► layers ► disks ┐
//	                            scratch ► disk ├► agent.CreateContainer ► *Process   (container.go)
//	                            bind mounts    │
//	                            stdio streams ─┘
//	     ── Process.Start/Wait/Signal/… ──► agent                        (process.go)
//	     ◄─ Events, Done, Err ── agent, VM
//	     ── Stop ──► agent.Shutdown, VM.Stop, every undo, last first, Cache.Collect
//
// Two rules hold it together. Everything the package makes on the host is undone by the step that made it, in reverse
// order, and is written to the record file in [Spec.Dir] before it is made, so that [Cleanup] in another process does
// the same after a crash. And whatever the guest says is hostile: answers are bounded before they leave this package,
// and once the VM has ended every pending call fails with errdefs.ErrUnavailable and the reason; none hangs.
//
// Containers come as OCI runtime specs that were written for the host. The pure function in translate.go turns one
// into the spec that the guest runs, and into the list of host directories that have to be served for it.
//
// Sizes are computed in package sizing. The package knows no VMM and no containerd.
package sandbox
