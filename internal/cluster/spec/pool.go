package spec

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Runtime is what a pool runs its pods with.
type Runtime string

const (
	// OCI runs pods as ordinary containers, with runc.
	OCI Runtime = "oci"
	// VMIsolation also offers runtime classes that run each pod in a VM of its own.
	VMIsolation Runtime = "vm-isolation"
)

// DefaultPool is the name of the pool that "cluster create" makes.
const DefaultPool = "nodepool1"

const (
	// MaxNodes is how many nodes a cluster has at most: their addresses and pod networks are numbered from 0 to 99.
	MaxNodes = 100
	// maxPoolName is AKS's limit for the name of a Linux node pool.
	maxPoolName = 12
	// maxClusterName lets the longest node name, CLUSTER-POOL-99, be a DNS label.
	maxClusterName = 63 - len("-") - maxPoolName - len("-99")
)

// ParseRuntime reads a workload runtime. Case doesn't matter, and the reference's values OCIContainer, KataMshvVmIsolation and
// KataVmIsolation are aliases. Another value is a *ParameterError.
func ParseRuntime(s string) (Runtime, error) {
	switch strings.ToLower(s) {
	case "oci", "ocicontainer":
		return OCI, nil
	case "vm-isolation", "katamshvvmisolation", "katavmisolation":
		return VMIsolation, nil
	}
	return "", noRuntime(s)
}

func noRuntime(s string) error {
	return &ParameterError{
		Parameter: "--workload-runtime", Value: s, Reason: "is no workload runtime",
		Fix: "write oci (alias OCIContainer) or vm-isolation (aliases KataMshvVmIsolation, KataVmIsolation)",
	}
}

// Pool is a group of nodes that are alike.
type Pool struct {
	// Name is unique in the cluster.
	Name string `json:"name"`
	// Count is how many nodes the pool is to have; 0 is allowed.
	Count int `json:"count"`
	// Runtime is what its pods run with.
	Runtime Runtime `json:"workloadRuntime"`
	// Labels are given to its nodes.
	Labels map[string]string `json:"labels,omitempty"`
	// Taints are given to its nodes, each as KEY=VALUE:EFFECT or KEY:EFFECT.
	Taints []string `json:"taints,omitempty"`
}

var (
	poolName    = regexp.MustCompile(`^[a-z][a-z0-9]{0,11}$`)
	clusterName = regexp.MustCompile(`^[a-z]([a-z0-9-]*[a-z0-9])?$`)
	// labelName and labelPrefix are the parts of a label's key, and labelValue its value: "Labels and Selectors" of the
	// Kubernetes documentation.
	labelName   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$`)
	labelPrefix = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$`)
	labelValue  = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$`)
)

// ValidatePoolName keeps AKS's rule for Linux node pools: 1 to 12 lower-case letters and digits, the first a letter. The error
// is a *ParameterError of --name; see ForParameter.
func ValidatePoolName(name string) error {
	if poolName.MatchString(name) {
		return nil
	}
	const rule = "a pool's name has 1 to 12 lower-case letters and digits and begins with a letter"
	lower := strings.ToLower(name)
	return &ParameterError{
		Parameter: "--name", Value: name, Reason: nameFault(name, maxPoolName, "") + "; " + rule,
		Fix: propose(keep(lower, ""), maxPoolName, DefaultPool, func(s string) bool { return poolName.MatchString(s) }),
	}
}

// ValidateClusterName wants lower-case letters, digits and hyphens, the first a letter and the last none of the hyphens, and so
// few of them that the names of the nodes are DNS labels. The error is a *ParameterError of NAME; see ForParameter.
func ValidateClusterName(name string) error {
	if len(name) <= maxClusterName && clusterName.MatchString(name) {
		return nil
	}
	rule := fmt.Sprintf("a cluster's name has 1 to %d lower-case letters, digits and hyphens, begins with a letter and ends with a letter or digit", maxClusterName)
	lower := strings.ReplaceAll(strings.ToLower(name), "_", "-")
	return &ParameterError{
		Parameter: "NAME", Value: name, Reason: nameFault(name, maxClusterName, "-") + "; " + rule,
		Fix: propose(keep(lower, "-"), maxClusterName, "demo", func(s string) bool { return clusterName.MatchString(s) }),
	}
}

// nameFault says what is first wrong with a name of lower-case letters, digits and the extra characters.
func nameFault(name string, most int, extra string) string {
	if name == "" {
		return "is empty"
	}
	for _, r := range name {
		switch {
		case r >= 'A' && r <= 'Z':
			return "has an upper-case letter"
		case (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune(extra, r):
			return fmt.Sprintf("has the character %q", r)
		}
	}
	switch {
	case name[0] < 'a' || name[0] > 'z':
		return "doesn't begin with a letter"
	case strings.HasSuffix(name, "-"):
		return "ends with a hyphen"
	}
	return fmt.Sprintf("has %d characters, more than %d", len(name), most)
}

// keep drops all but lower-case letters, digits and the extra characters.
func keep(name, extra string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune(extra, r) {
			return r
		}
		return -1
	}, name)
}

// propose writes a fix: the name that is nearest to what was meant, or an example where nothing is left of it.
func propose(name string, most int, example string, valid func(string) bool) string {
	name = strings.TrimLeft(name, "-0123456789")
	name = strings.TrimRight(name[:min(len(name), most)], "-")
	if !valid(name) {
		return fmt.Sprintf("write, for example, %q", example)
	}
	return fmt.Sprintf("write %q", name)
}

// Validate checks everything about a pool that can be known without its cluster. Its errors are *ParameterError.
func (p Pool) Validate() error {
	if err := ValidatePoolName(p.Name); err != nil {
		return err
	}
	if err := ValidateNodeCount(p.Count); err != nil {
		return err
	}
	if p.Runtime != OCI && p.Runtime != VMIsolation {
		return noRuntime(string(p.Runtime))
	}
	for key, value := range p.Labels {
		if !validLabelKey(key) || !labelValue.MatchString(value) {
			return &ParameterError{
				Parameter: "--labels", Value: key + "=" + value, Reason: "is no label of Kubernetes",
				Fix: "write KEY=VALUE, each with at most 63 letters, digits, hyphens, underscores and dots, such as tier=web",
			}
		}
		if reservedLabel(key) {
			return &ParameterError{
				Parameter: "--labels", Value: key + "=" + value, Reason: "is set by the cluster, or not allowed on nodes by the kubelet",
				Fix: "take a prefix of your own or none, topology.kubernetes.io/zone or region, or node.kubernetes.io",
			}
		}
	}
	for _, taint := range p.Taints {
		if err := validateTaint(taint); err != nil {
			return err
		}
	}
	return nil
}

// ValidateNodeCount checks a pool's number of nodes.
func ValidateNodeCount(n int) error {
	if n >= 0 && n <= MaxNodes {
		return nil
	}
	return &ParameterError{
		Parameter: "--node-count", Value: strconv.Itoa(n), Reason: fmt.Sprintf("a cluster has 0 to %d nodes", MaxNodes),
		Fix: fmt.Sprintf("write a number from 0 to %d", MaxNodes),
	}
}

func validLabelKey(key string) bool {
	prefix, name, found := strings.Cut(key, "/")
	if !found {
		return labelName.MatchString(key)
	}
	return len(prefix) <= 253 && labelPrefix.MatchString(prefix) && labelName.MatchString(name)
}

// reservedLabel says whether a label is the cluster's own, or one with which a kubelet would not start: it takes few of
// Kubernetes' (--node-labels), among them those by which it names itself.
func reservedLabel(key string) bool {
	prefix, _, found := strings.Cut(key, "/")
	if !found {
		return false
	}
	if prefix == "node.kubernetes.io" || key == "topology.kubernetes.io/zone" || key == "topology.kubernetes.io/region" {
		return false
	}
	for _, reserved := range []string{"kubernetes.io", "k8s.io", "bulkhead.dev"} {
		if prefix == reserved || strings.HasSuffix(prefix, "."+reserved) {
			return true
		}
	}
	return false
}

func validateTaint(taint string) error {
	rest, effect, _ := strings.Cut(taint, ":")
	key, value, _ := strings.Cut(rest, "=")
	if validLabelKey(key) && labelValue.MatchString(value) && slices.Contains([]string{"NoSchedule", "PreferNoSchedule", "NoExecute"}, effect) {
		return nil
	}
	return &ParameterError{
		Parameter: "--node-taints", Value: taint, Reason: "is no taint",
		Fix: "write KEY=VALUE:EFFECT with the effect NoSchedule, PreferNoSchedule or NoExecute, such as sandbox=only:NoSchedule",
	}
}
