// Package netpol enforces NetworkPolicies (networking.k8s.io/v1) for the pods of one node of the embedded cluster.
//
// Data flows one way. Shared informers keep the cluster's Pods, Namespaces and NetworkPolicies; an [Engine] waits for a
// change, lets more changes come for a moment, and hands all of it to [Compile], a pure function that says what the node
// has to enforce: a [Ruleset]. That is rendered as the content of an nftables table, "inet bulkhead_netpol", compared with
// what the kernel has, and the difference is written:
//
//	informers ─► State ─► Compile ─► Ruleset ─► table ─► difference ─► nft -f -
//
// # The table
//
// There is no moment in which a pod that is isolated before and after a change is open. A transaction of nftables alone
// doesn't give that: a packet on its way while one ends sees old chains with new elements. So chains and sets are made in a
// transaction before the one that leads packets to them. What a packet on its way can see is the old rules of one pod with the new
// ones of another.
//
//	set  self4            pod . pod                  a pod reaches itself
//	map  egress4          pod -> jump eg-A           isolated for egress
//	map  ingress4         pod -> jump in-A           isolated for ingress
//	map  egress4-reply    pod -> jump eg-A-reply     the same rules for the packets that come back
//	map  ingress4-reply   pod -> jump in-A-reply
//	set  known4           pod                        only while an isolated pod is about to start, see below
//	set  p4-H             addresses or ranges        peers of a rule: pods or ipBlocks
//	...and the same for IPv6
//	chain forward         hook forward, priority filter, policy accept
//	chain reply           what forward does with the packets of a connection that come back
//	chain eg-A, in-A      jump eg-H, in-H
//	chain eg-H, in-H      "return" for what is allowed, then drop
//
// A is a pod's address in hexadecimal digits. H is a hash: of the content in the names of chains and of sets with ranges, which therefore never change, and of the
// selectors in the names of sets of pods, so that a pod that comes or goes is one element more or less. Pods with the same
// rules share chains, and rules with the same peers share sets. What is out of use stays until there is more of that than of the
// rest, and is deleted then.
//
// The hook sees the addresses of pods and never those of services: pods are routed, also to others on their node;
// kube-proxy's DNAT comes before it (prerouting) and masquerading after it (postrouting). What the node itself sends to
// its pods, such as a kubelet's probes, is not forwarded and therefore always allowed, as Kubernetes demands. A pod on the
// node's network is no peer of a podSelector: it can't be told from the node ("undefined" in the API's documentation,
// where this is the more common of the two behaviours it names).
//
// # Connections that exist when a policy changes
//
// Kubernetes leaves open what becomes of them. Here a policy acts on them as on new ones, since who isolates a pod that
// has been broken into wants it isolated now. Packets that go from the client to the server are judged by the rules;
// those that come back are judged by the same rules with source and destination exchanged. So a server's answers need
// no rule of their own, and a connection that is no longer allowed ends in both directions. Errors (ICMP that conntrack
// calls related) always pass.
//
// # Pods that start
//
// A pod's address is known to the API one to two seconds after its first container started. Kubernetes wants the
// pod isolated before that. The engine knows the pod, by its labels, as soon as it is bound to the node, and thus whether a
// policy selects it. While there is such a pod without an address, packets from (or to) interfaces of pods whose address
// is not that of any known pod are dropped, in the directions in which a pod that waits is to be isolated.
// The price is paid by pods that policies select, which get their first packets through a little late, and by others
// only if they start on the same node at the same time.
//
// # Forged addresses
//
// Rules that go by source address are worth as much as the source address. A packet that comes from a pod's interface
// must have a source whose way back leads to the same interface, or it is dropped.
//
// # Start and end
//
// A table that an earlier engine left stays until the informers have everything. Then, as after an error, a second table is made
// beside it, and the first removed when both hold. At its end the engine leaves the table in place. It goes with the node's network
// namespace.
package netpol
