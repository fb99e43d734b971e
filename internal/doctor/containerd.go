package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

const (
	// shimName is the program that containerd starts for RuntimeType.
	shimName = "containerd-shim-bulkhead-v2"
	// RuntimeType is the runtime's name in containerd's configuration.
	RuntimeType = "io.containerd.bulkhead.v2"
)

func (h Host) containerd(ctx context.Context) Check {
	const name, fix = "containerd", "apt-get install containerd, or take a release of containerd 2"
	program, err := h.LookPath(h.Containerd)
	if err != nil {
		return missing(name, h.Containerd+" is not on the PATH", fix)
	}
	version, err := h.version(ctx, program, "--version")
	if err != nil {
		return missing(name, err.Error(), fix)
	}
	switch {
	case atLeast(version, 2, 0):
		return ok(name, program+" "+version)
	case atLeast(version, 1, 7):
		return warn(name, program+" "+version, "containerd 2 is the tested one, and the first with a stable Sandbox API")
	}
	return missing(name, program+" "+version+" is too old", "take a release of containerd 2")
}

func (h Host) shim(context.Context) Check {
	const name = "shim"
	if program, err := h.LookPath(shimName); err == nil {
		return ok(name, program)
	}
	return missing(name, shimName+" is not on the PATH", "install "+shimName+" /usr/local/bin/ (containerd looks on its own PATH)")
}

// snippet is what containerd's configuration needs.
const snippet = `add to %s: [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.bulkhead] runtime_type = "` + RuntimeType +
	`" (in a file with version = 2: plugins."io.containerd.grpc.v1.cri"), then restart containerd`

func (h Host) containerdRuntime(context.Context) Check {
	const name = "containerd runtime"
	file := h.ContainerdConfig
	fix := fmt.Sprintf(snippet, file)
	handlers, err := h.runtimes(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return missing(name, file+" does not exist, so containerd has no runtime for sandboxed pods", "containerd config default > "+file+"; then "+fix)
	case err != nil:
		return missing(name, err.Error(), "repair the file")
	}
	for handler, runtimeType := range handlers {
		if runtimeType == RuntimeType {
			return ok(name, fmt.Sprintf("handler %q in %s", handler, file))
		}
	}
	return missing(name, file+" has no runtime of the type "+RuntimeType, fix)
}

// maxImports bounds the files that one configuration may draw in.
const maxImports = 64

// runtimes gives the CRI runtime handlers of a containerd configuration and their types. It reads the formats version 2
// (containerd 1) and 3 (containerd 2), and follows imports, which override what imports them.
func (h Host) runtimes(file string) (map[string]string, error) {
	handlers := make(map[string]string)
	queue, seen := []string{file}, map[string]bool{}
	for len(queue) > 0 {
		name := queue[0]
		queue = queue[1:]
		if seen[name] {
			continue
		}
		if len(seen) == maxImports {
			return nil, fmt.Errorf("%s imports more than %d files", file, maxImports)
		}
		seen[name] = true
		imports, err := h.readContainerdConfig(name, handlers)
		if err != nil {
			return nil, err
		}
		for _, pattern := range imports {
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join(filepath.Dir(name), pattern)
			}
			matches, err := filepath.Glob(h.path(pattern))
			if err != nil {
				return nil, fmt.Errorf("%s: imports %q: %w", name, pattern, err)
			}
			for _, m := range matches {
				queue = append(queue, "/"+strings.TrimPrefix(strings.TrimPrefix(m, h.Root), "/"))
			}
		}
	}
	return handlers, nil
}

// containerdConfig is the part of containerd's configuration that matters here.
type containerdConfig struct {
	Version int      `toml:"version"`
	Imports []string `toml:"imports"`
	Plugins struct {
		V2 criPlugin `toml:"io.containerd.grpc.v1.cri"`
		V3 criPlugin `toml:"io.containerd.cri.v1.runtime"`
	} `toml:"plugins"`
}

type criPlugin struct {
	Containerd struct {
		Runtimes map[string]struct {
			Type string `toml:"runtime_type"`
		} `toml:"runtimes"`
	} `toml:"containerd"`
}

func (h Host) readContainerdConfig(name string, handlers map[string]string) (imports []string, err error) {
	data, err := os.ReadFile(h.path(name))
	if err != nil {
		return nil, err
	}
	var c containerdConfig
	if err := toml.Unmarshal(data, &c); err != nil {
		where := name
		if bad := (*toml.DecodeError)(nil); errors.As(err, &bad) {
			line, column := bad.Position()
			where = fmt.Sprintf("%s:%d:%d", name, line, column)
		}
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	for _, plugin := range []criPlugin{c.Plugins.V2, c.Plugins.V3} {
		for handler, runtime := range plugin.Containerd.Runtimes {
			handlers[handler] = runtime.Type
		}
	}
	return c.Imports, nil
}
