package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/shim/event"
	"bulkhead.dev/bulkhead/internal/shim/task"
)

const (
	// firstCallPatience is how long a shim waits for containerd's first call. A containerd that dies between the start and
	// the call leaves a shim that nobody knows.
	firstCallPatience = 2 * time.Minute
	// closePatience bounds the end of the pod after a signal.
	closePatience = 20 * time.Second
	// flushPatience bounds how long the last events and answers may take.
	flushPatience = 3 * time.Second
)

// serve is the shim: it serves one pod until containerd shuts it down, a signal comes, or nobody ever calls.
func serve(ctx context.Context, a arguments) error {
	tune()
	level := &slog.LevelVar{}
	if a.debug {
		level.Set(slog.LevelDebug)
	}
	log := openLog(a.bundle, level).With("id", a.id)
	l, err := inherited()
	if err != nil {
		return errors.Join(err, removeSocket(readAddress(a.bundle)))
	}
	if err := run(ctx, a, l, log, level); err != nil {
		log.Error("the shim ends", "error", err)
		return err
	}
	return nil
}

// run serves on a listener.
func run(ctx context.Context, a arguments, l net.Listener, log *slog.Logger, level *slog.LevelVar) error {
	publisher := event.NewPublisher(a.namespace, forwarder(a), log)
	end := make(chan struct{})
	service := task.New(task.Config{
		Launcher:   &launcher{arguments: a, log: log, level: level},
		Events:     publisher,
		Log:        log,
		ConfigPath: a.config,
		Shutdown:   sync.OnceFunc(func() { close(end) }),
	})
	var called atomic.Bool
	server, err := newServer(service, log, &called)
	if err != nil {
		return errors.Join(err, removeSocket(readAddress(a.bundle)))
	}
	serving := make(chan error, 1)
	go func() { serving <- server.Serve(ctx, l) }()

	err = wait(ctx, service, end, serving, &called, log)

	// The order matters: the pod's exits become events, and events need their publisher.
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closePatience)
	defer cancel()
	err = errors.Join(err, service.Close(closing))
	// The socket goes while it is still this process's: later it may be that of another shim with the same ID.
	err = errors.Join(err, removeSocket(readAddress(a.bundle)))
	shutDown(server)
	flushing, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushPatience)
	defer cancel()
	return errors.Join(err, publisher.Close(flushing))
}

// wait returns when the shim is to end.
func wait(ctx context.Context, service *task.Service, end <-chan struct{}, serving <-chan error, called *atomic.Bool, log *slog.Logger) error {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	// A client that goes away is an error of a write, not the end.
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP)
	first := time.NewTimer(firstCallPatience)
	defer first.Stop()
	for {
		select {
		case <-end:
			return nil
		case <-ctx.Done():
			return nil
		case s := <-signals:
			log.Info("ending the pod", "signal", s.String())
			return nil
		case err := <-serving:
			return fmt.Errorf("serve containerd: %w", err)
		case <-first.C:
			if !called.Load() && service.Idle() {
				return errors.New("containerd has started this shim and never called it")
			}
		}
	}
}

func newServer(service *task.Service, log *slog.Logger, called *atomic.Bool) (*ttrpc.Server, error) {
	note := func(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
		called.Store(true)
		return method(ctx, unmarshal)
	}
	server, err := ttrpc.NewServer(
		ttrpc.WithServerHandshaker(ttrpc.UnixSocketRequireSameUser()),
		ttrpc.WithChainUnaryServerInterceptor(note, task.Border(log)),
	)
	if err != nil {
		return nil, fmt.Errorf("make the server: %w", err)
	}
	task.Register(server, service)
	return server, nil
}

// shutDown lets the answers out that are on their way: the one to Shutdown is.
func shutDown(server *ttrpc.Server) {
	time.Sleep(20 * time.Millisecond) // an answer is written after its handler has returned; the server can't be asked
	ctx, cancel := context.WithTimeout(context.Background(), flushPatience)
	defer cancel()
	if server.Shutdown(ctx) != nil {
		server.Close()
	}
}

func forwarder(a arguments) event.Forwarder {
	switch {
	case a.ttrpcAddress != "":
		return event.NewSocket(a.ttrpcAddress)
	case a.publishBinary != "":
		return event.NewBinary(a.publishBinary, a.address)
	}
	return event.Discard{}
}

// inherited returns the listener that start has made.
func inherited() (net.Listener, error) {
	f := os.NewFile(listenerFD, "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("take over the shim's socket: %w", err)
	}
	return l, nil
}

// tune makes the process small. There is one of it for each pod, and it does little but copy.
func tune() {
	runtime.GOMAXPROCS(2)
	debug.SetGCPercent(40)
	debug.SetMemoryLimit(48 << 20) // soft: volumes that are busy may need more, and then pay with collections
}

// openLog returns a logger to the bundle's fifo "log", which containerd copies to its own; without a fifo, to standard error.
// The fifo becomes standard error, for what the Go runtime says when it dies.
func openLog(bundle string, level slog.Leveler) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	// For reading too: so it can be opened, and what is written isn't an error, while containerd is away.
	fd, err := unix.Open(bundle+"/log", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return slog.New(slog.NewTextHandler(os.Stderr, options))
	}
	var stat unix.Stat_t
	if unix.Fstat(fd, &stat) != nil || stat.Mode&unix.S_IFMT != unix.S_IFIFO {
		unix.Close(fd)
		return slog.New(slog.NewTextHandler(os.Stderr, options))
	}
	_ = unix.Dup3(fd, int(os.Stderr.Fd()), 0)
	return slog.New(slog.NewTextHandler(logWriter(fd), options))
}

// logWriter writes to a fifo and never waits for its reader: what doesn't fit is lost.
type logWriter int

func (w logWriter) Write(p []byte) (int, error) {
	_, _ = unix.Write(int(w), p)
	return len(p), nil
}
