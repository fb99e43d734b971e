package registry

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/api/errcode"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // the driver that newApp names
	"github.com/distribution/reference"
	"github.com/sirupsen/logrus"
)

const (
	// pageSize is how many names an answer lists; it also says where the next page is.
	pageSize = 1000
	// maxElement is the longest name of a file.
	maxElement = 255
)

// newApp returns the registry itself. The library's own server is left out: it sets up an exporter of traces, to a collector that
// it takes to be on this machine.
func newApp(ctx context.Context, root string) (app *handlers.App, err error) {
	config := &configuration.Configuration{
		Storage: configuration.Storage{
			"filesystem": {"rootdirectory": root},
			"delete":     {"enabled": true},
			"redirect":   {"disable": true},
		},
		HTTP: configuration.HTTP{
			// It signs the state of uploads that go on, which a client begins anew after a restart.
			Secret: rand.Text(),
			// Clients may have come by another address than the one that the request names.
			RelativeURLs: true,
		},
	}
	config.Validation.Manifests.Indexes.Platforms = "none"
	config.Catalog.MaxEntries, config.Tags.MaxTags = pageSize, pageSize
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("start the registry in %s: %v", root, p) // the library has no other way to say it
		}
	}()
	return handlers.NewApp(ctx, config), nil
}

// front stands before the registry: it decides who may push, and leads a mirror's requests to their repositories.
type front struct {
	registry http.Handler
	pushers  []netip.Prefix
}

// ServeHTTP answers a request, or hands it on.
func (f front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	reads := r.Method == http.MethodGet || r.Method == http.MethodHead
	if !reads && !f.mayPush(r.RemoteAddr) {
		refuse(w, errcode.ErrorCodeDenied.WithMessage("pushing and deleting is not allowed from "+r.RemoteAddr+": see --push-from of the registry"))
		return
	}
	query := r.URL.Query()
	if query.Has("ns") {
		if !reads {
			// An upload goes on at the address that its first answer names, where the parameter would count twice.
			refuse(w, errcode.ErrorCodeUnsupported.WithMessage("a mirror is only read: push to the repository HOST/NAME, without the parameter ns"))
			return
		}
		path, err := mirrored(r.URL.Path, query.Get("ns"))
		if err != nil {
			refuse(w, errcode.ErrorCodeNameUnknown.WithMessage(err.Error())) // 404: containerd asks the next host
			return
		}
		query.Del("ns")
		r = r.Clone(r.Context())
		r.URL.Path, r.URL.RawPath, r.URL.RawQuery = path, "", query.Encode()
		r.RequestURI = r.URL.RequestURI()
	}
	if err := checkPath(r.URL.Path); err != nil {
		refuse(w, errcode.ErrorCodeNameInvalid.WithMessage(err.Error()))
		return
	}
	f.registry.ServeHTTP(w, r)
}

// mirrored returns the path here of a path of another host.
func mirrored(path, host string) (string, error) {
	directory, err := mirrorOf(host)
	if err != nil {
		return "", err
	}
	name, ok := strings.CutPrefix(path, "/v2/")
	if !ok || name == "" || strings.HasPrefix(name, "_") {
		return path, nil // /v2/ and /v2/_catalog are the registry's own
	}
	// A hosts file with override_path may have put the host there already.
	if first, rest, _ := strings.Cut(name, "/"); first == host || first == directory {
		name = rest
	}
	return "/v2/" + directory + "/" + name, nil
}

// checkPath refuses names that the library takes, but can't store: it would call that an error of its own.
func checkPath(path string) error {
	for element := range strings.SplitSeq(path, "/") {
		if len(element) > maxElement {
			return fmt.Errorf("a part of the name is longer than %d bytes", maxElement)
		}
	}
	if first, _, _ := strings.Cut(strings.TrimPrefix(path, "/v2/"), "/"); strings.Contains(first, ":") {
		return fmt.Errorf("repository %.100s: a name can't have a colon: write _ for the one before a port", first)
	}
	return nil
}

// mayPush tells whether a client is among those that may push.
func (f front) mayPush(client string) bool {
	address, err := netip.ParseAddrPort(client)
	if err != nil {
		return false
	}
	for _, prefix := range f.pushers {
		if prefix.Contains(address.Addr().Unmap().WithZone("")) {
			return true
		}
	}
	return false
}

// mirrorOf returns what stands before the names of a host's repositories. A ":" can be in no repository's name.
func mirrorOf(host string) (string, error) {
	directory := strings.ToLower(strings.ReplaceAll(host, ":", "_"))
	if _, err := reference.WithName(directory + "/x"); err != nil || len(directory) > maxElement || strings.Contains(directory, "/") {
		return "", fmt.Errorf("ns=%.100q: there can be no mirror of such a host", host)
	}
	return directory, nil
}

// refuse answers in the form that the specification has for errors.
func refuse(w http.ResponseWriter, err errcode.Error) {
	_ = errcode.ServeJSON(w, err) // the client is gone
}

// serve answers until ctx ends, and then lets requests that go on finish for a few seconds. It closes the listener.
func serve(ctx context.Context, listener net.Listener, handler http.Handler, log *slog.Logger) error {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if server.Shutdown(grace) != nil {
			server.Close()
		}
	})
	err := server.Serve(listener)
	if stop() {
		return fmt.Errorf("serve on %s: %w", listener.Addr(), err)
	}
	<-stopped
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", listener.Addr(), err)
	}
	return nil
}

// logTo leads the errors of the library to log. They come through the global logger of logrus.
func logTo(log *slog.Logger) {
	logger := logrus.StandardLogger()
	logger.SetOutput(io.Discard)
	logger.SetLevel(logrus.ErrorLevel)
	hooks := make(logrus.LevelHooks)
	hooks.Add(hook{log})
	logger.ReplaceHooks(hooks)
}

// hook hands what the library logs to log, without the answers that say that something isn't there: for a mirror that is no error.
type hook struct{ log *slog.Logger }

// Levels are those of errors.
func (hook) Levels() []logrus.Level {
	return []logrus.Level{logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel}
}

// Fire is called for each entry.
func (h hook) Fire(e *logrus.Entry) error {
	if status, ok := e.Data["http.response.status"].(int); ok && status < http.StatusInternalServerError {
		return nil
	}
	var attrs []any
	for _, key := range []string{"http.request.method", "http.request.uri", "http.request.remoteaddr", "http.response.status", "err.code", "err.message", "err.detail"} {
		if value, ok := e.Data[key]; ok {
			attrs = append(attrs, strings.ReplaceAll(key, ".", "_"), fmt.Sprintf("%.300s", fmt.Sprint(value)))
		}
	}
	h.log.Error(e.Message, attrs...)
	return nil
}
