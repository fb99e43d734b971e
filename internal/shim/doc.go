// Package shim is containerd's runtime io.containerd.bulkhead.v2: the program containerd-shim-bulkhead-v2.
//
//	containerd ── "start" ──► a short-lived process: finds or starts the pod's shim, answers with its address
//	           ── ttrpc ────► the shim: serves one pod until it is deleted     (package task)
//	           ◄─ events ──── the shim                                        (package event)
//	           ── "delete" ─► a short-lived process: undoes what a dead shim has left
//	           ── -info ────► a short-lived process: what the runtime can do
//
// Starting is on every pod's path, so these processes do no more than they must: the shim's listener is made by start, and the
// shim may still be coming up when containerd connects.
//
// # How containerd starts a shim
//
// In the bundle's directory, with flags and environment that are the same since containerd 1.3. Since 2.3 a BootstrapParams
// message comes on standard input and a BootstrapResult is wanted on standard output; before, standard input holds the
// runtime options as an Any or nothing, and the answer is the address as text. As each of the two messages can be read as
// the other, what tells them apart is whether the message repeats the ID of the flags.
//
// A text address stands for version 2 of the task service, which every containerd since 1.2 takes; versions up to 1.7 refuse
// version 3. The shim serves both.
//
// # What is kept in the bundle
//
//	address               the socket's address
//	shim.pid              the shim's pid
//	bulkhead-shim.json    the same with the process's start time: pids are used again, a pid with a start time is not
//	bulkhead-sandbox.json where the sandbox's own record is, and the configuration it was started with
//	bulkhead.toml         the configuration file, where containerd sends its text
//
// The bundle of a pod's sandbox has all of them, those of its containers none: so "delete" of a container, which containerd
// before 2.0 calls for every one, touches neither the shim nor the VM.
package shim
