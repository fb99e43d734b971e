// Package netdev joins a pod's VM to the pod's network namespace.
//
// A CNI plugin has made interfaces in that namespace and given them addresses and routes; it knows nothing of VMs. [Attach]
// adds a tap beside each interface and exchanges their traffic in both directions with tc, below the host's IP stack:
//
//	              pod's network namespace
//	┌──────────────────────────────────────────────┐
//	│   eth0  ── ingress: u32 match-all ──► bhtap0 │ ══ descriptor ══► VMM ── guest's eth0
//	│ (CNI's) ◄── ingress: u32 match-all ── (ours) │                          same MAC, addresses, routes, MTU
//	└────┼─────────────────────────────────────────┘
//	     └─ veth to the host, or whatever the CNI plugin chose
//
// The addresses stay on the CNI's interface, so that the plugin's CHECK and DEL find what they made. The namespace's own
// stack doesn't answer for them all the same: the ingress hook comes before it, and the redirect steals every packet there,
// ARP and neighbour discovery included. In the other direction nothing of ours sends from the namespace, and the taps
// have IPv6 off and no address, so the stack sends nothing into the guest.
//
// The loopback address of the namespace is not the guest's, but it is where kubectl port-forward has containerd connect to. A table
// of nftables redirects such connections to a listener of ours, [Link].Loopback, and a sandbox hands them on into the VM.
//
// A [Link] describes what the guest configures: the same MAC, addresses, routes and permanent neighbours. Interfaces
// without an address and loopback are left out; IPv6 link-local addresses too, since the guest makes the same from the MAC.
//
// The taps aren't persistent: when the last descriptor of one is closed, it goes. The redirects stay until [Link.Close], or
// [Detach] from another process after a crash, or the end of the namespace. They are known by their filter priority and
// the taps by their name, so that Detach touches nothing of others.
//
// Errors are of the classes of errdefs: ErrNotFound, no such namespace; ErrInvalidArgument, the path is no network
// namespace that a pod can have; ErrAlreadyExists, it is joined to a VM already; ErrFailedPrecondition, something in it
// can't be handed to a VM.
package netdev
