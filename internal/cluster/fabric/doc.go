// Package fabric makes and removes the network of a cluster: a bridge, network namespaces for the control plane and the
// nodes, and what joins and routes them.
//
//	host's namespace                              /run/netns/bh-<id>-cp         /run/netns/bh-<id>-n0
//	┌───────────────────────────────────────┐     ┌────────────────────┐        ┌──────────────────────────────────┐
//	│ nft table bulkhead_<id>: masquerade   │     │                    │        │ nft table bulkhead: masquerade   │
//	│ of what leaves the subnet             │     │ eth0 .2 ::2        │        │ of pods that leave the cluster   │
//	│                                       │     │  │ default via .1  │        │ eth0 .10 ::10, default via .1    │
//	│ bh<id> .1 ::1 ── bh<id:6>cp ──────────┼─────┼──┘                 │        │  │                               │
//	│           └───── bh<id:6>n0 ──────────┼─────┼────────────────────┼────────┼──┘    ┌─► pods 10.244.0.0/24     │
//	└───────────────────────────────────────┘     │ pod routes         │        │ pod routes of the other nodes    │
//	                                              └────────────────────┘        └──────────────────────────────────┘
//
// The subnet is 10.88.x.0/24 and fd88:<id>::/64, node i has .(10+i), its pods 10.244.i.0/24 and fd44:0:0:i::/64. Traffic of
// pods is routed, never bridged: to another node by a route through that node's address, so that every packet passes the
// forward hook of its node, where network policies are kept.
//
// Everything here is idempotent. [Up] and [NodeUp] complete what is half made, [NodeDown] and [Down] remove it, and they
// need only the ID: all names derive from it. The host's own settings, such as ip_forward, aren't changed.
//
// Errors are of the classes of errdefs: ErrInvalidArgument, a network or node that can't be; ErrAlreadyExists, an object of
// somebody else has the name; ErrNotFound, the namespace or link isn't there; ErrFailedPrecondition, a program is missing.
package fabric
