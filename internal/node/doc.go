// Package node runs a containerd of its own: a private one, for trying things out, or that of a cluster's node. Never the
// system's.
//
// All it needs is below one directory, except what the kernel wants short: unix sockets (at most 108 bytes) are in a
// directory beneath /run whose name is made from the node's.
//
//	DIR/containerd.toml, runtime.toml, cni/     configuration, written at each start
//	DIR/containerd.log                          what containerd and its shims say
//	DIR/root, DIR/state, DIR/tmp, DIR/ipam      containerd's and the CNI plugins' own
//	DIR/bulkhead                                the runtime's state_dir
//	DIR/certs.d                                 registry mirrors, of a cluster's node
//	DIR/node.json                               the record: when the node was first started
//	/run/bulkhead-node-HASH/                    containerd.sock, s/ (shims), run/ (the runtime's run_dir)
//
// [Start] returns when containerd answers, and takes over one that runs already. It outlives the process that started it:
// it is found again, with all that it started, by the variable BULKHEAD_NODE=DIR in the environment of its processes; no
// file with a process id can be stale, and a process of somebody else is never taken for ours. [Stop] ends containers, VMs,
// containerd and everything of the node, at whatever moment the one who started it died.
//
// A node of a cluster (Options.Member) is started by a supervisor instead: [Node.Prepare] writes what is needed and
// [Node.Process] says what to run. [Node.Halt] leaves it as a reboot would, with all that is on disk, and [Node.Stop] removes
// it; neither asks containerd, which takes a second for each container.
//
// containerd is driven with its own client program, ctr: so the command that uses this package doesn't link the client.
package node
