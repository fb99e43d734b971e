package node

import (
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// mirrorDir is containerd's config_path: DIR/certs.d/HOST/hosts.toml says where images of HOST are pulled from. containerd
// reads it at each pull.
const mirrorDir = "certs.d"

// mirrorFiles are the files of the mirrors, by name below the node's directory.
func (m *Member) mirrorFiles() (map[string]string, error) {
	files := make(map[string]string)
	for _, host := range slices.Sorted(maps.Keys(m.Mirrors)) {
		dir := host
		if host == "*" {
			dir = "_default"
		}
		if dir == "" || strings.ContainsAny(dir, "/\\") || strings.HasPrefix(dir, ".") {
			return nil, fmt.Errorf("mirrors of %q: that is no host: %w", host, errdefs.ErrInvalidArgument)
		}
		var b strings.Builder
		for _, mirror := range m.Mirrors[host] {
			if err := m.writeMirror(&b, host, mirror); err != nil {
				return nil, err
			}
		}
		files[filepath.Join(mirrorDir, dir, "hosts.toml")] = b.String()
	}
	return files, nil
}

// writeMirror appends one mirror. The order is that of the asking; the registry itself comes last, without being named.
func (m *Member) writeMirror(b *strings.Builder, host, mirror string) error {
	endpoint, override := mirror, false
	if mirror == LocalMirror {
		// The cluster's registry keeps the images of each host apart, below its name. For any host there is no name to write:
		// containerd says it in the query (?ns=HOST).
		endpoint, override = m.Registry+"/v2", host != "*"
		if override {
			endpoint += "/" + host
		}
	}
	if u, err := url.Parse(endpoint); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return fmt.Errorf("mirror %q of %q: write %q or an http or https URL: %w", mirror, host, LocalMirror, errdefs.ErrInvalidArgument)
	}
	fmt.Fprintf(b, "[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", endpoint)
	if override {
		b.WriteString("override_path = true\n")
	}
	return nil
}
