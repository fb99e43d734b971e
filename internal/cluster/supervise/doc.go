// Package supervise keeps a list of processes running, with one supervisor process for each list.
//
//	Start ── writes DIR/spec.json ── runs `bulkhead supervise DIR`, or SIGHUP ──► Run, the supervisor
//	Stop ─── SIGTERM ──────────────────────────────────────────────────────────►  │ holds DIR/lock
//	Status, WaitReady ◄── DIR/status.json, checked against /proc ◄────────────────┤ DIR/supervisor.log
//	                                                                              └─► processes ──► their logs
//
// A process that ends is started again, after a pause of 0.2 s that doubles up to 10 s, and is 0.2 s again when the process
// has lived for 30 s. A process is first started when those that it comes after are ready; later starts don't wait.
//
// The files of the directory:
//
//	spec.json       the Spec
//	status.json     version 1, the type record: what was so at the last change
//	lock            locked by the supervisor as long as it lives; the kernel tells who that is
//	supervisor.log  what it did, and why
//
// Processes write to their logs themselves, so they outlive a supervisor that is killed. The next one adopts those that are
// what the spec says and ends the others. How it finds them: each has in its environment
//
//	BULKHEAD_SUPERVISOR=DIR
//	BULKHEAD_PROCESS=name
//	BULKHEAD_PROCESS_HASH=hash of the arguments-hash of all that makes the process what it is
//
// A child of such a process inherits that, and isn't to be touched: a shim that containerd started outlives containerd. A
// process is a supervisor's own if status.json has its number and start time, or, as the supervisor may have died before
// it could write that, if it leads a session and its own command line has the hash in its environment.
//
// Errors are of the classes of errdefs: ErrInvalidArgument, a spec that can't be; ErrNotFound, no such process;
// ErrFailedPrecondition, a program can't be run; ErrUnavailable, a supervisor or process that doesn't answer or end.
package supervise
