package task

import (
	"context"
	"log/slog"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
)

// Register makes a server answer for the service: the task service in v3 and in v2, whose messages are the same on the
// wire, and the sandbox service.
func Register(server *ttrpc.Server, s *Service) {
	taskapi.RegisterTTRPCTaskService(server, s)
	sandboxapi.RegisterTTRPCSandboxService(server, sandboxService{s})
	server.RegisterService("containerd.task.v2.Task", &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"State":      method(s.State),
		"Create":     method(s.Create),
		"Start":      method(s.Start),
		"Delete":     method(s.Delete),
		"Pids":       method(s.Pids),
		"Pause":      method(s.Pause),
		"Resume":     method(s.Resume),
		"Checkpoint": method(s.Checkpoint),
		"Kill":       method(s.Kill),
		"Exec":       method(s.Exec),
		"ResizePty":  method(s.ResizePty),
		"CloseIO":    method(s.CloseIO),
		"Update":     method(s.Update),
		"Wait":       method(s.Wait),
		"Stats":      method(s.Stats),
		"Connect":    method(s.Connect),
		"Shutdown":   method(s.Shutdown),
	}})
}

func method[Request, Response any](call func(context.Context, *Request) (*Response, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		var request Request
		if err := unmarshal(&request); err != nil {
			return nil, err
		}
		return call(ctx, &request)
	}
}

// Border is where errors turn from the classes of errdefs into gRPC codes, for every method of every service. It also
// logs calls: at level debug, and failed ones that are nobody's ordinary course at level info.
func Border(log *slog.Logger) ttrpc.UnaryServerInterceptor {
	return func(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, call ttrpc.Method) (any, error) {
		answer, err := call(ctx, unmarshal)
		switch {
		case err == nil:
			log.Debug("call", "method", info.FullMethod)
			return answer, nil
		case errdefs.IsNotFound(err) || errdefs.IsCanceled(err):
			log.Debug("call", "method", info.FullMethod, "error", err)
		default:
			log.Info("call failed", "method", info.FullMethod, "error", err)
		}
		return nil, errgrpc.ToGRPC(flat{text: err.Error(), class: errdefs.Resolve(err)})
	}
}

// flat is an error of one class. An error that wraps several, such as one of the operating system and its class, would show
// each of them once more in its text at the client.
type flat struct {
	text  string
	class error
}

func (f flat) Error() string { return f.text }

func (f flat) Unwrap() error { return f.class }
