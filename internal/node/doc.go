// Package node runs a private containerd: for the demo, for trying things out, never the system's.
//
// All it needs is below one directory, except what the kernel wants short: unix sockets (at most 108 bytes) are in a
// directory beneath /run whose name is made from the node's.
//
//	DIR/containerd.toml, runtime.toml, cni/     configuration, written at each start
//	DIR/containerd.log                          what containerd and its shims say
//	DIR/root, DIR/state, DIR/tmp, DIR/ipam      containerd's and the CNI plugins' own
//	DIR/bulkhead                                the runtime's state_dir
//	DIR/node.json                               the record: what on the host did not exist before, see record.go
//	/run/bulkhead-node-HASH/                    containerd.sock, s/ (shims), run/ (the runtime's run_dir)
//
// [Start] returns when containerd answers, and takes over one that runs already. It outlives the process that started it:
// it is found again, with all that it started, by the variable BULKHEAD_NODE=DIR in the environment of its processes; no
// file with a process id can be stale, and a process of somebody else is never taken for ours. [Stop] ends containers, VMs,
// containerd and everything of the node, at whatever moment the one who started it died.
//
// containerd is driven with its own client program, ctr: so the command that uses this package doesn't link the client.
package node
