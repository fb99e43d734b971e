package task

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"bulkhead.dev/bulkhead/internal/rootfs"
)

// Annotations of containerd's CRI.
const (
	// AnnotationContainerType is "sandbox" or "container".
	AnnotationContainerType = "io.kubernetes.cri.container-type"
	// AnnotationSandboxID names the pod's sandbox, also on the sandbox container itself.
	AnnotationSandboxID = "io.kubernetes.cri.sandbox-id"
)

// maxSpec bounds config.json. Specs of pods with hundreds of mounts and the default seccomp profile take 100 KiB.
const maxSpec = 16 << 20

// ReadSpec reads the OCI spec in a bundle.
func ReadSpec(bundle string) (*specs.Spec, error) {
	f, err := os.Open(filepath.Join(bundle, "config.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the spec of bundle %s: %w: %w", bundle, err, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read the spec of bundle %s: %w", bundle, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSpec+1))
	if err != nil {
		return nil, fmt.Errorf("read the spec of bundle %s: %w", bundle, err)
	}
	if len(data) > maxSpec {
		return nil, fmt.Errorf("the spec of bundle %s is larger than %d bytes: %w", bundle, maxSpec, errdefs.ErrInvalidArgument)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("the spec of bundle %s: %w: %w", bundle, err, errdefs.ErrInvalidArgument)
	}
	return &spec, nil
}

// rootMounts are the mounts of a container's root. Without any from containerd, the bundle has a directory.
func rootMounts(bundle string, spec *specs.Spec, mounts []*types.Mount) ([]rootfs.Mount, error) {
	if len(mounts) > 0 {
		out := make([]rootfs.Mount, len(mounts))
		for i, m := range mounts {
			out[i] = rootfs.Mount{Type: m.GetType(), Source: m.GetSource(), Options: m.GetOptions()}
		}
		return out, nil
	}
	if spec.Root == nil || spec.Root.Path == "" {
		return nil, fmt.Errorf("bundle %s: neither mounts nor root.path: %w", bundle, errdefs.ErrInvalidArgument)
	}
	path := spec.Root.Path
	if !filepath.IsAbs(path) {
		path = filepath.Join(bundle, path)
	}
	options := []string{"rbind", "rw"}
	if spec.Root.Readonly {
		options = []string{"rbind", "ro"}
	}
	return []rootfs.Mount{{Type: "bind", Source: path, Options: options}}, nil
}

// fromJSON reads what containerd wraps as JSON in an Any, which is how it sends the types of the OCI spec.
func fromJSON(value *anypb.Any, kind string, to any) error {
	if value == nil {
		return fmt.Errorf("no %s given: %w", kind, errdefs.ErrInvalidArgument)
	}
	// The prefix has changed over time, and carries the spec's major version; the last element is the type.
	if name := value.TypeUrl[strings.LastIndexByte(value.TypeUrl, '/')+1:]; name != kind {
		return fmt.Errorf("%.200q is not of type %s: %w", value.TypeUrl, kind, errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(value.Value, to); err != nil {
		return fmt.Errorf("%s: %w: %w", kind, err, errdefs.ErrInvalidArgument)
	}
	return nil
}
