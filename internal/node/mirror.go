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
	if u, err := url.Parse(m.Registry); err != nil {
		return nil, fmt.Errorf("the cluster's registry: %w: %w", err, errdefs.ErrInvalidArgument)
	} else if u.Host != "" {
		// For images of its own containerd would ask by https.
		files[mirrorFile(u.Host)] = fmt.Sprintf("server = %q\n", m.Registry)
	}
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
		files[mirrorFile(dir)] += b.String()
	}
	return files, nil
}

func mirrorFile(host string) string { return filepath.Join(mirrorDir, host, "hosts.toml") }

// writeMirror appends one mirror. The order is that of the asking; the registry itself comes last, without being named. containerd
// says in the query of each request whose image it wants (?ns=HOST), which is what the cluster's registry goes by.
func (m *Member) writeMirror(b *strings.Builder, host, mirror string) error {
	endpoint := mirror
	if mirror == LocalMirror {
		endpoint = m.Registry
	}
	if u, err := url.Parse(endpoint); err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return fmt.Errorf("mirror %q of %q: write %q or an http or https URL: %w", mirror, host, LocalMirror, errdefs.ErrInvalidArgument)
	}
	fmt.Fprintf(b, "[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\n", endpoint)
	return nil
}
