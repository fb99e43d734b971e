// Package sizing turns what a pod is allowed to use into the size of its VM. It is pure: annotations and numbers in, numbers
// or an error out.
package sizing

import (
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Profile names a rule.
type Profile string

const (
	// Standard: the VM has what the pod may use, plus the guest's own need.
	Standard Profile = "standard"
	// AKS is the first rule of AKS Pod Sandboxing: 1 vCPU and 2 GB, plus what the pod may use.
	AKS Profile = "aks"
)

// Size is the size of a VM.
type Size struct {
	// VCPUs is at least 1.
	VCPUs int
	// MemoryBytes is the VM's memory, a multiple of Alignment.
	MemoryBytes int64
	// ScratchBytes is the size of each container's writable disk.
	ScratchBytes int64
}

// Inputs are the node's figures, and the limits of a container that belongs to no pod.
type Inputs struct {
	// DefaultMemoryBytes is what a pod without a memory limit may use, under Standard.
	DefaultMemoryBytes int64
	// DefaultVCPUs of a pod without a CPU limit, under Standard.
	DefaultVCPUs int
	// ScratchBytes is the default size of scratch disks.
	ScratchBytes int64
	// MaxVCPUs and MaxMemoryBytes are the most a VM can have here; 0: no bound but the package's own.
	MaxVCPUs       int
	MaxMemoryBytes int64
	// Resources of the OCI spec, for a container without CRI annotations (plain `ctr run`); may be nil.
	Resources *specs.LinuxResources
}

// Compute returns the size of the VM for a pod with these annotations. profile is the node's default, which the
// annotation bulkhead.dev/profile overrides. A value that can't be honoured is an ErrInvalidArgument that names the
// annotation and the value.
func Compute(profile Profile, annotations map[string]string, in Inputs) (Size, error) {
	return Size{}, errdefs.ErrNotImplemented
}
