package guest

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// object is a JSON object of which the agent changes some fields and hands on the others as they are.
type object map[string]json.RawMessage

func (o object) get(key string, into any) error {
	raw, ok := o[key]
	if !ok {
		return nil
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s: %w: %w", key, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (o object) set(key string, value any) {
	raw, err := json.Marshal(value)
	if err != nil {
		panic(err) // plain data
	}
	o[key] = raw
}

// bundleSpec is what the agent adds to a spec, or makes sure of.
type bundleSpec struct {
	id       string
	root     string
	readonly bool
	terminal bool
	mounts   string             // the directory below which sources of bind mounts may be
	isInit   func(pid int) bool // tells whether a process is a container's init
	// sharedPIDs returns the path of the pid namespace of those that come without one.
	sharedPIDs func() (string, error)
}

// prepare turns the host's spec into the runtime's, and returns the OOM score adjustment in it. What would let a container
// reach the agent or depend on what is not the container's is refused: namespaces by path other than that of another
// container's pids, hooks, sources of bind mounts elsewhere. Without a pid namespace a container gets the pod's shared one,
// never the agent's.
func (b bundleSpec) prepare(raw []byte) (config []byte, oomScoreAdj int, err error) {
	var spec object
	if err := json.Unmarshal(raw, &spec); err != nil {
		return nil, 0, fmt.Errorf("spec: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	var process object
	if err := spec.get("process", &process); err != nil {
		return nil, 0, fmt.Errorf("spec: %w", err)
	}
	if oomScoreAdj, err = prepareProcess(process, b.terminal); err != nil {
		return nil, 0, fmt.Errorf("spec: %w", err)
	}
	spec.set("process", process)

	var root specs.Root
	if err := spec.get("root", &root); err != nil {
		return nil, 0, fmt.Errorf("spec: %w", err)
	}
	spec.set("root", specs.Root{Path: b.root, Readonly: root.Readonly || b.readonly})

	var hooks map[string][]json.RawMessage
	if err := spec.get("hooks", &hooks); err != nil {
		return nil, 0, fmt.Errorf("spec: %w", err)
	}
	for name, list := range hooks {
		if len(list) > 0 {
			return nil, 0, fmt.Errorf("spec has a %s hook, which is a program of the host: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	delete(spec, "hooks")
	if err := b.checkMounts(spec); err != nil {
		return nil, 0, fmt.Errorf("spec: %w", err)
	}
	if err := b.prepareLinux(spec); err != nil {
		return nil, 0, fmt.Errorf("spec: %w", err)
	}
	config, err = json.Marshal(spec)
	return config, oomScoreAdj, err
}

// prepareProcess checks an OCI process and sets what the agent decides.
func prepareProcess(process object, terminal bool) (oomScoreAdj int, err error) {
	var args []string
	if err := process.get("args", &args); err != nil {
		return 0, err
	}
	if len(args) == 0 || args[0] == "" {
		return 0, fmt.Errorf("process has no args: %w", errdefs.ErrInvalidArgument)
	}
	if err := process.get("oomScoreAdj", &oomScoreAdj); err != nil {
		return 0, err
	}
	process.set("oomScoreAdj", oomScoreAdj)
	process.set("terminal", terminal)
	return oomScoreAdj, nil
}

// prepareExec turns the host's OCI process into the runtime's.
func prepareExec(raw []byte, terminal bool) (config []byte, oomScoreAdj int, err error) {
	var process object
	if err := json.Unmarshal(raw, &process); err != nil {
		return nil, 0, fmt.Errorf("process: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if oomScoreAdj, err = prepareProcess(process, terminal); err != nil {
		return nil, 0, err
	}
	config, err = json.Marshal(process)
	return config, oomScoreAdj, err
}

func (b bundleSpec) checkMounts(spec object) error {
	var list []specs.Mount
	if err := spec.get("mounts", &list); err != nil {
		return err
	}
	for _, m := range list {
		bind := m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
		if !bind {
			continue
		}
		source := filepath.Clean(m.Source)
		if source != m.Source || (source != podShm && filepath.Dir(source) != b.mounts) {
			return fmt.Errorf("mount at %s: source %q is not one that the agent has made: %w", m.Destination, m.Source, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// joinable tells whether a namespace path is of the one kind that is let through: the pids of another container.
func (b bundleSpec) joinable(ns specs.LinuxNamespace) bool {
	s, ok := strings.CutPrefix(ns.Path, "/proc/")
	if !ok || ns.Type != specs.PIDNamespace {
		return false
	}
	s, ok = strings.CutSuffix(s, "/ns/pid")
	pid, err := strconv.Atoi(s)
	return ok && err == nil && strconv.Itoa(pid) == s && b.isInit(pid)
}

func (b bundleSpec) prepareLinux(spec object) error {
	var linux object
	if err := spec.get("linux", &linux); err != nil {
		return err
	}
	var namespaces []specs.LinuxNamespace
	if err := linux.get("namespaces", &namespaces); err != nil {
		return err
	}
	has := make(map[specs.LinuxNamespaceType]bool)
	for _, ns := range namespaces {
		has[ns.Type] = true
		if ns.Path != "" && !b.joinable(ns) {
			return fmt.Errorf("%s namespace at %q: %w", ns.Type, ns.Path, errdefs.ErrInvalidArgument)
		}
	}
	if !has[specs.MountNamespace] {
		return fmt.Errorf("a container needs a mount namespace of its own: %w", errdefs.ErrInvalidArgument)
	}
	if !has[specs.PIDNamespace] {
		path, err := b.sharedPIDs()
		if err != nil {
			return err
		}
		linux.set("namespaces", append(namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: path}))
	}
	linux.set("cgroupsPath", podCgroup+"/"+b.id)

	var resources object
	if err := linux.get("resources", &resources); err != nil {
		return err
	}
	var devices []specs.LinuxDeviceCgroup
	if err := resources.get("devices", &devices); err != nil {
		return err
	}
	if len(devices) == 0 {
		// Without a rule the runtime would allow every device, the agent's channel among them.
		if resources == nil {
			resources = make(object)
		}
		resources.set("devices", []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}})
		linux.set("resources", resources)
	}
	spec.set("linux", linux)
	return nil
}
