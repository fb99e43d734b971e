package shim

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"bulkhead.dev/bulkhead/internal/shim/task"
)

const (
	// featuresType is containerd's type for the OCI runtime's features, which are JSON.
	featuresType = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
	// allowMounts tells containerd (2.1 and up) which mounts of a root it must leave to us: EROFS images become disks of the
	// VM as they are, so neither they nor what is built of them may be mounted on the host.
	allowMounts = "containerd.io/runtime-allow-mounts"
)

// info answers -info: runtime options on standard input, a RuntimeInfo on standard output.
func info(stdin io.Reader, stdout io.Writer) error {
	input, err := io.ReadAll(io.LimitReader(stdin, maxInput+1))
	if err != nil {
		return fmt.Errorf("read runtime options: %w", err)
	}
	if len(input) > maxInput {
		return fmt.Errorf("runtime options of more than %d bytes: %w", maxInput, errdefs.ErrInvalidArgument)
	}
	answer, err := runtimeInfo(input)
	if err != nil {
		return err
	}
	out, err := proto.Marshal(answer)
	if err != nil {
		return fmt.Errorf("answer containerd: %w", err)
	}
	if _, err := stdout.Write(out); err != nil {
		return fmt.Errorf("answer containerd: %w", err)
	}
	return nil
}

func runtimeInfo(input []byte) (*types.RuntimeInfo, error) {
	version, revision := build()
	answer := &types.RuntimeInfo{
		Name:        Name,
		Version:     &types.RuntimeVersion{Version: version, Revision: revision},
		Annotations: map[string]string{allowMounts: "erofs,format/*,mkdir/*,mkfs/*"},
	}
	if len(input) > 0 {
		var options anypb.Any
		if err := proto.Unmarshal(input, &options); err != nil {
			return nil, fmt.Errorf("runtime options: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		if !task.IsOptions(&options) {
			return nil, fmt.Errorf("runtime options of type %.200q can't be used: %w", options.TypeUrl, errdefs.ErrInvalidArgument)
		}
		answer.Options = &options
	}
	value, err := json.Marshal(ociFeatures())
	if err != nil {
		return nil, fmt.Errorf("features: %w", err)
	}
	answer.Features = &anypb.Any{TypeUrl: featuresType, Value: value}
	return answer, nil
}

// ociFeatures says what a container's spec may ask for. What a sandbox can't give is said to be off, rather than left out:
// the kubelet then refuses such a pod with a reason.
func ociFeatures() features.Features {
	on, off := true, false
	return features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		Linux: &features.Linux{
			Namespaces: []string{"cgroup", "ipc", "mount", "network", "pid", "uts"},
			Cgroup:     &features.Cgroup{V1: &off, V2: &on},
			Seccomp:    &features.Seccomp{Enabled: &on},
			Apparmor:   &features.Apparmor{Enabled: &off},
			Selinux:    &features.Selinux{Enabled: &off},
			IntelRdt:   &features.IntelRdt{Enabled: &off},
			MountExtensions: &features.MountExtensions{
				IDMap: &features.IDMap{Enabled: &off},
			},
		},
	}
}
