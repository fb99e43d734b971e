package spec

import (
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/config"
)

const (
	// APIVersion and Kind stand at the top of a cluster config file.
	APIVersion = "bulkhead.dev/v1alpha1"
	// Kind is the kind of a cluster config file.
	Kind = "ClusterConfig"
)

// Levels of the Pod Security Standards.
const (
	Privileged = "privileged"
	Baseline   = "baseline"
	Restricted = "restricted"
)

// LocalRegistry stands, in Registry.Mirrors, for the cluster's own registry; AnyHost for every host without an entry.
const (
	LocalRegistry = "local"
	AnyHost       = "*"
)

// Config is the configuration of a cluster: the content of a cluster config file, with every default filled in.
type Config struct {
	// PodSecurity are the cluster-wide defaults of Pod Security Admission.
	PodSecurity PodSecurity `json:"podSecurity"`
	// Registry says where nodes pull images from.
	Registry Registry `json:"registry"`
	// Kubelet is for the kubelets of all nodes.
	Kubelet Kubelet `json:"kubelet"`
	// VM is for the pods of vm-isolation pools.
	VM VM `json:"vm"`
}

// PodSecurity is what holds for a namespace that has no labels of its own (Pod Security Admission, KEP-2579).
type PodSecurity struct {
	// Enforce, Audit and Warn are each Privileged, Baseline or Restricted.
	Enforce string `json:"enforce"`
	// EnforceVersion, AuditVersion and WarnVersion are "latest" or the minor version whose standard holds, such as "v1.36".
	EnforceVersion string `json:"enforceVersion"`
	Audit          string `json:"audit"`
	AuditVersion   string `json:"auditVersion"`
	Warn           string `json:"warn"`
	WarnVersion    string `json:"warnVersion"`
	// ExemptNamespaces are not checked at all. kube-system is always among them.
	ExemptNamespaces []string `json:"exemptNamespaces"`
}

// Registry says where nodes pull images from.
type Registry struct {
	// Mirrors are, by the host in an image's name (or AnyHost), what is asked before that host, in this order: URLs, or
	// LocalRegistry.
	Mirrors map[string][]string `json:"mirrors,omitempty"`
}

// Kubelet configures kubelets.
type Kubelet struct {
	// MaxPods is how many pods a node takes.
	MaxPods int `json:"maxPods"`
}

// VM configures the VMs of pods.
type VM struct {
	// Acceleration is one of config.AccelerationAuto, config.AccelerationHardware and config.AccelerationEmulated.
	Acceleration string `json:"acceleration"`
	// Profile is how the runtime class "bulkhead" sizes VMs: config.ProfileStandard or config.ProfileAKS.
	Profile string `json:"profile"`
}

const (
	systemNamespace = "kube-system"
	latest          = "latest"
	// maxPods is what a node's pod network, a /24, has addresses for: without the network's, the gateway's and the
	// broadcast address.
	maxPods = 253
)

// Default is the configuration of a cluster without a config file.
func Default() Config {
	return Config{
		PodSecurity: PodSecurity{
			Enforce: Privileged, EnforceVersion: latest, Audit: Restricted, AuditVersion: latest, Warn: Baseline, WarnVersion: latest,
			ExemptNamespaces: []string{systemNamespace},
		},
		Kubelet: Kubelet{MaxPods: 110},
		VM:      VM{Acceleration: config.AccelerationAuto, Profile: config.ProfileStandard},
	}
}

var (
	minorVersion = regexp.MustCompile(`^v1\.(0|[1-9][0-9]{0,2})$`)
	namespace    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	registryHost = regexp.MustCompile(`^([a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?$`)
)

// keyError is a value that isn't allowed, by the path of its key.
type keyError struct{ key, message string }

func (e *keyError) Error() string { return e.key + ": " + e.message }

// Unwrap gives the class.
func (e *keyError) Unwrap() error { return errdefs.ErrInvalidArgument }

func notAllowed(key string, value any, allowed string) error {
	return &keyError{key, fmt.Sprintf("%#v is not allowed: %s", value, allowed)}
}

// Validate checks every value. Its errors name the key by its path and say what is allowed.
func (c Config) Validate() error {
	oneOf := func(key, value string, allowed ...string) error {
		if slices.Contains(allowed, value) {
			return nil
		}
		return notAllowed(key, value, "write one of "+strings.Join(allowed, ", "))
	}
	version := func(key, value string) error {
		if value == latest || minorVersion.MatchString(value) {
			return nil
		}
		return notAllowed(key, value, `write "latest" or a minor version of Kubernetes such as "v1.36"`)
	}
	p := c.PodSecurity
	for _, err := range []error{
		oneOf("podSecurity.enforce", p.Enforce, Privileged, Baseline, Restricted), version("podSecurity.enforceVersion", p.EnforceVersion),
		oneOf("podSecurity.audit", p.Audit, Privileged, Baseline, Restricted), version("podSecurity.auditVersion", p.AuditVersion),
		oneOf("podSecurity.warn", p.Warn, Privileged, Baseline, Restricted), version("podSecurity.warnVersion", p.WarnVersion),
		validateNamespaces(p.ExemptNamespaces), c.Registry.validate(),
		oneOf("vm.acceleration", c.VM.Acceleration, config.AccelerationAuto, config.AccelerationHardware, config.AccelerationEmulated),
		oneOf("vm.profile", c.VM.Profile, config.ProfileStandard, config.ProfileAKS),
	} {
		if err != nil {
			return err
		}
	}
	if c.Kubelet.MaxPods < 1 || c.Kubelet.MaxPods > maxPods {
		return notAllowed("kubelet.maxPods", c.Kubelet.MaxPods, fmt.Sprintf("write a number from 1 to %d", maxPods))
	}
	return nil
}

func validateNamespaces(names []string) error {
	for i, n := range names {
		if !namespace.MatchString(n) {
			return notAllowed(fmt.Sprintf("podSecurity.exemptNamespaces[%d]", i), n, "write the name of a namespace")
		}
	}
	return nil
}

func (r Registry) validate() error {
	for _, host := range slices.Sorted(maps.Keys(r.Mirrors)) {
		key := fmt.Sprintf("registry.mirrors[%q]", host)
		if host != AnyHost && !registryHost.MatchString(host) {
			return &keyError{key, `is no host: write what an image's name begins with, such as "docker.io" or "registry.example:5000", or "*" for any`}
		}
		if len(r.Mirrors[host]) == 0 {
			return &keyError{key, "has no mirrors: write at least one, or leave the host out"}
		}
		for i, mirror := range r.Mirrors[host] {
			if mirror != LocalRegistry && !isMirror(mirror) {
				return notAllowed(fmt.Sprintf("%s[%d]", key, i), mirror, `write a URL such as "https://mirror.example" without user, query and fragment, or "local" for the cluster's own registry`)
			}
		}
	}
	return nil
}

func isMirror(text string) bool {
	u, err := url.Parse(text)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && registryHost.MatchString(u.Host) && u.User == nil &&
		u.RawQuery == "" && !u.ForceQuery && u.Fragment == "" && !strings.HasSuffix(text, "#")
}
