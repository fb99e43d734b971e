package task

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// configFile is where a configuration that containerd sends as text is kept in the bundle.
const configFile = "bulkhead.toml"

// IsOptions says whether a value is of the known type of runtime options.
func IsOptions(value *anypb.Any) bool { return value.MessageIs(&runtimeoptions.Options{}) }

// ConfigPath returns the configuration file that containerd's runtime options name; "" for no options. The known type is
// runtimeoptions.v1.Options, which containerd makes of [...runtimes.NAME.options] for every runtime that is not its own: with
// ConfigPath, the path of a file; with anything else, the text of a file, which is written into the bundle.
func ConfigPath(options *anypb.Any, bundle string) (string, error) {
	if options == nil || options.TypeUrl == "" {
		return "", nil
	}
	var known runtimeoptions.Options
	if !options.MessageIs(&known) {
		return "", fmt.Errorf("runtime options of type %.200q can't be used; known is %s: %w",
			options.TypeUrl, known.ProtoReflect().Descriptor().FullName(), errdefs.ErrInvalidArgument)
	}
	if err := proto.Unmarshal(options.Value, &known); err != nil {
		return "", fmt.Errorf("runtime options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if known.ConfigPath != "" {
		if !filepath.IsAbs(known.ConfigPath) {
			return "", fmt.Errorf("runtime option ConfigPath %.200q: must be absolute: %w", known.ConfigPath, errdefs.ErrInvalidArgument)
		}
		return known.ConfigPath, nil
	}
	if len(known.ConfigBody) == 0 {
		return "", nil
	}
	path := filepath.Join(bundle, configFile)
	if err := os.WriteFile(path, known.ConfigBody, 0o600); err != nil {
		return "", fmt.Errorf("keep the configuration in the bundle: %w", err)
	}
	return path, nil
}
