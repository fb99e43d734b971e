package sandbox

import (
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead.dev/bulkhead/internal/config"
)

// FromOCI derives a sandbox's Spec from the OCI spec of the pod's sandbox container (CRI), or of the only container
// (plain `ctr run`): host name, network namespace, cgroup, sysctls, shared memory and size. ID, Namespace and Dir are
// left to the caller. What would break the wall (host network, PID or IPC namespace) is ErrNotImplemented; an annotation
// that can't be honoured is ErrInvalidArgument.
func FromOCI(cfg config.Config, spec *specs.Spec) (Spec, error) {
	return Spec{}, errdefs.ErrNotImplemented
}
