package task

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"bulkhead.dev/bulkhead/internal/shim/podconfig"
)

// podFiles are the files that all containers of a pod see. For pods with a sandbox container containerd makes them; with
// sandboxer = "shim" it leaves that to the shim, and mounts nothing at these places. They lie in the sandbox's bundle, which
// containerd removes.
type podFiles struct {
	dir string
	shm string // a name that the sandbox knows for the pod's shared memory; nothing is there
}

// places are where containers see the files.
var places = [...]struct{ name, destination string }{
	{"hostname", "/etc/hostname"}, {"hosts", "/etc/hosts"}, {"resolv.conf", "/etc/resolv.conf"},
}

// writePodFiles makes the files of a sandbox.
func writePodFiles(bundle, id string, config podconfig.Config) (*podFiles, error) {
	resolv, err := resolvConf(config.DNS)
	if err != nil {
		return nil, err
	}
	hostname := config.Hostname
	if hostname == "" {
		hostname = id
	}
	f := &podFiles{dir: filepath.Join(bundle, "files"), shm: filepath.Join("/sandboxes", id, "shm")}
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the files of the pod: %w", err)
	}
	for name, content := range map[string]string{
		"hostname": hostname + "\n",
		// The kubelet mounts its own over this one.
		"hosts":       "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
		"resolv.conf": resolv,
	} {
		if err := os.WriteFile(filepath.Join(f.dir, name), []byte(content), 0o644); err != nil {
			return nil, fmt.Errorf("make the files of the pod: %w", err)
		}
	}
	return f, nil
}

// resolvConf writes what resolv.conf(5) describes. Without a word from the kubelet the pod has what the host has.
func resolvConf(dns podconfig.DNS) (string, error) {
	if !dns.Given {
		data, err := os.ReadFile("/etc/resolv.conf")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("read the host's resolv.conf for the pod: %w", err)
		}
		return string(data), nil
	}
	var b strings.Builder
	if len(dns.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.Searches, " "))
	}
	for _, s := range dns.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(dns.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.Options, " "))
	}
	return b.String(), nil
}

// addTo mounts the files into a container, where its spec has no mount of its own, and the pod's shared memory in place of
// one of the container's own.
func (f *podFiles) addTo(spec *specs.Spec) {
	access := "rw"
	if spec.Root != nil && spec.Root.Readonly {
		access = "ro"
	}
	for _, p := range places {
		if slices.ContainsFunc(spec.Mounts, mountsAt(p.destination)) {
			continue
		}
		spec.Mounts = append(spec.Mounts, specs.Mount{
			Destination: p.destination, Type: "bind", Source: filepath.Join(f.dir, p.name), Options: []string{"rbind", access},
		})
	}
	isShm := mountsAt("/dev/shm")
	if i := slices.IndexFunc(spec.Mounts, isShm); i >= 0 {
		if spec.Mounts[i].Type == "bind" {
			return // a volume of the pod's author
		}
		spec.Mounts = slices.Delete(spec.Mounts, i, i+1)
	}
	spec.Mounts = append(spec.Mounts, specs.Mount{
		Destination: "/dev/shm", Type: "bind", Source: f.shm, Options: []string{"rbind", "rw", "nosuid", "nodev", "noexec"},
	})
}

func mountsAt(destination string) func(specs.Mount) bool {
	return func(m specs.Mount) bool { return filepath.Clean(m.Destination) == destination }
}
