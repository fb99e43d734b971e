package shim

import (
	"fmt"
	"io"

	bootstrapapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"bulkhead.dev/bulkhead/internal/shim/task"
)

const (
	// maxInput bounds what is read from containerd; options may hold a whole configuration file.
	maxInput = 10 << 20
	// defaultSocketDir is where containerd's own shims have their sockets. Paths of sockets are limited to 107 bytes, so it
	// is short.
	defaultSocketDir = "/run/containerd/s"
)

// bootstrap is what start needs to know, whichever way it was told.
type bootstrap struct {
	modern    bool // by a message, and wants one
	socketDir string
	options   *anypb.Any // nil: none
}

// readBootstrap reads standard input of start, and completes the arguments with what only the message has.
func readBootstrap(r io.Reader, a *arguments) (bootstrap, error) {
	input, err := io.ReadAll(io.LimitReader(r, maxInput+1))
	if err != nil {
		return bootstrap{}, fmt.Errorf("read what containerd sends: %w", err)
	}
	if len(input) > maxInput {
		return bootstrap{}, fmt.Errorf("containerd sends more than %d bytes: %w", maxInput, errdefs.ErrInvalidArgument)
	}
	b, err := parseBootstrap(input, a)
	if err != nil {
		return bootstrap{}, err
	}
	if b.socketDir == "" {
		b.socketDir = defaultSocketDir
	}
	return b, nil
}

func parseBootstrap(input []byte, a *arguments) (bootstrap, error) {
	if len(input) == 0 {
		return bootstrap{}, nil
	}
	var params bootstrapapi.BootstrapParams
	if err := proto.Unmarshal(input, &params); err == nil && params.InstanceID == a.id {
		return modernBootstrap(&params, a), nil
	}
	var options anypb.Any
	if err := proto.Unmarshal(input, &options); err != nil {
		return bootstrap{}, fmt.Errorf("what containerd sends is neither bootstrap parameters nor runtime options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return bootstrap{options: &options}, nil
}

func modernBootstrap(params *bootstrapapi.BootstrapParams, a *arguments) bootstrap {
	b := bootstrap{modern: true, socketDir: params.GetSocketDir()}
	for to, value := range map[*string]string{
		&a.namespace:     params.Namespace,
		&a.address:       params.ContainerdGrpcAddress,
		&a.ttrpcAddress:  params.ContainerdTtrpcAddress,
		&a.publishBinary: params.ContainerdBinary,
	} {
		if value != "" {
			*to = value
		}
	}
	a.debug = a.debug || params.LogLevel <= bootstrapapi.LogLevel_LOG_LEVEL_DEBUG
	// There is one extension that containerd sends: the runtime options. Others, of whatever may come, are not for us.
	for _, e := range params.Extensions {
		if v := e.GetValue(); v != nil && task.IsOptions(v) {
			b.options = v
			break
		}
	}
	if b.options == nil && len(params.Extensions) > 0 {
		b.options = params.Extensions[0].GetValue() // refused with its name
	}
	return b
}

// answer tells containerd the shim's address.
func (b bootstrap) answer(w io.Writer, address string) error {
	out := []byte(address)
	if b.modern {
		var err error
		if out, err = proto.Marshal(&bootstrapapi.BootstrapResult{Version: 3, Address: address, Protocol: "ttrpc"}); err != nil {
			return fmt.Errorf("answer containerd: %w", err)
		}
	}
	if _, err := w.Write(out); err != nil {
		return fmt.Errorf("answer containerd: %w", err)
	}
	return nil
}
