// Package vmmtest holds what the implementations and the users of the VM driver seam are tested with.
//
// [Fake] is a driver whose VMs live in memory, for whoever tests code above the seam. [Run] is the conformance suite that
// every driver passes, the Fake included. The suite talks to a small program inside the guest, which answers the requests
// of package testproto on the agent's channel: [BuildGuest] makes a bootable initramfs with it, and [ServeGuest] plays it
// for the Fake.
package vmmtest
