// Package task answers containerd for the containers of one pod: the task service (v3, and v2 for older daemons) and the
// sandbox service.
//
//	containerd ── ttrpc ──► border.go ──► Service ──► container ──► process ──► Machine (the pod's VM)
//	           ◄─ events ─────────────────────────────── │ ◄── exits, OOM, end of the VM ──┘
//	client     ◄═ fifos ═════════════ package stdio ═════╝
//
// A [Service] serves one pod, in one of three shapes, which show in the first call:
//
//   - CRI with a sandbox container: Create of the container of type "sandbox" starts the VM. That container has no process in
//     the guest; its task runs until it is killed, and takes the VM with it.
//   - CRI with sandboxer = "shim": CreateSandbox and StartSandbox start the VM, and every container is an ordinary one.
//   - no CRI (ctr run): Create starts a VM for this container alone, and Delete of it stops the VM.
//
// Events are queued in the order containerd wants them: of a task create, start, exit, delete; of an exec exec-added,
// exec-started, exit; an exec's exit before its init's; an OOM before the exit it caused where the guest tells in time; and no
// exit before all output was handed to the client, unless the client takes none for 10 seconds, or the output goes on for
// a minute.
//
// # When the guest does not obey
//
// containerd ends a sandbox only after its containers, so a guest that doesn't end one, or doesn't delete it, could live for ever.
// It has a minute for each; then its VM is stopped.
//
// # When the VM dies
//
// All processes of the pod end with status 137 (128+SIGKILL), since a kill is what they got; the same that the delete verb
// answers when the shim died. The reason, with the end of the guest's console, is logged. A process of which the guest can't
// say any more how it ended, while the VM lives, has 255, as containerd has for unknown.
//
// # Process ids
//
// Where containerd wants the pid of a task, it gets the VMM's. That process is in the pod's network namespace and cgroup,
// and killing it kills the task, so who acts on the pid does the right thing. The pids inside the guest are the guest's to
// choose, and to take them for the host's would let a guest point at any process of the host. They are in the answer to Pids
// only.
//
// Errors have the classes of errdefs and become gRPC codes in border.go alone.
package task
