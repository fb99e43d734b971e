package netpol

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// view is the cluster as policies see it.
type view struct {
	pods       map[string][]*endpoint // by namespace; those with addresses
	local      []*endpoint            // the node's own, also without addresses yet
	namespaces []*corev1.Namespace
	// named has where a named port leads to, of all pods. It is made when first asked for.
	named map[namedPort][]target
	// setsMade and namedMade keep what selectPods and namedRules made, by what it was made for.
	setsMade  map[string]AddrSet
	namedMade map[string][]Rule
}

// endpoint is a pod with a network of its own.
type endpoint struct {
	pod       *corev1.Pod
	namespace string
	labels    labels.Set
	addrs     []netip.Addr
	// pending: the pod is one of the node's and has got no address yet.
	pending bool
}

// target is a named port of one pod.
type target struct {
	addr   netip.Addr
	number uint16
}

func newView(s State) *view {
	v := &view{
		pods:       map[string][]*endpoint{},
		namespaces: s.Namespaces,
		setsMade:   map[string]AddrSet{},
		namedMade:  map[string][]Rule{},
	}
	all := make([]*endpoint, 0, len(s.Pods)+len(s.StandIns))
	for _, pod := range s.StandIns {
		all = append(all, newEndpoint(pod))
	}
	for _, pod := range s.Pods {
		if pod.Spec.HostNetwork || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			continue
		}
		e := newEndpoint(pod)
		all = append(all, e)
		if s.Node != "" && pod.Spec.NodeName == s.Node {
			e.pending = len(e.addrs) == 0
			v.local = append(v.local, e)
		}
	}
	keepNewestOwner(all)
	for _, e := range all {
		if len(e.addrs) > 0 {
			v.pods[e.namespace] = append(v.pods[e.namespace], e)
		}
	}
	return v
}

func newEndpoint(pod *corev1.Pod) *endpoint {
	return &endpoint{pod: pod, namespace: pod.Namespace, labels: pod.Labels, addrs: podAddrs(pod)}
}

// podAddrs returns the addresses that a pod's status names, without what can't be a pod's.
func podAddrs(pod *corev1.Pod) []netip.Addr {
	var addrs []netip.Addr
	ips := pod.Status.PodIPs
	if len(ips) == 0 {
		ips = []corev1.PodIP{{IP: pod.Status.PodIP}}
	}
	for _, ip := range ips {
		a, err := netip.ParseAddr(ip.IP)
		if err != nil || a.Zone() != "" {
			continue
		}
		a = a.Unmap()
		if a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || slices.Contains(addrs, a) {
			continue
		}
		addrs = append(addrs, a)
	}
	return addrs
}

// keepNewestOwner leaves an address that several pods claim with the newest of them: a pod that ends may keep its address in
// the API for a while after it has been given to another.
func keepNewestOwner(all []*endpoint) {
	owner := make(map[netip.Addr]*endpoint, len(all))
	for _, e := range all {
		for _, a := range e.addrs {
			if old := owner[a]; old == nil || newer(e.pod, old.pod) {
				owner[a] = e
			}
		}
	}
	for _, e := range all {
		e.addrs = slices.DeleteFunc(e.addrs, func(a netip.Addr) bool { return owner[a] != e })
	}
}

func newer(a, b *corev1.Pod) bool {
	return cmp.Or(
		a.CreationTimestamp.Compare(b.CreationTimestamp.Time),
		cmp.Compare(a.Namespace, b.Namespace),
		cmp.Compare(a.Name, b.Name)) > 0
}

// known returns the addresses of the node's pods.
func (v *view) known() []netip.Addr {
	var addrs []netip.Addr
	for _, e := range v.local {
		addrs = append(addrs, e.addrs...)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs
}

// port returns the number that the pod's containers give to a port: the first that has the name and protocol, in the
// order in which services look (FindPort of k8s.io/kubernetes/pkg/api/v1/pod).
func (e *endpoint) port(p namedPort) (uint16, bool) {
	for _, c := range e.pod.Spec.Containers {
		if n, ok := findPort(c, p); ok {
			return n, true
		}
	}
	for _, c := range e.pod.Spec.InitContainers {
		if !sidecar(c) {
			continue
		}
		if n, ok := findPort(c, p); ok {
			return n, true
		}
	}
	return 0, false
}

// sidecar tells whether an init container goes on to run beside the pod's containers.
func sidecar(c corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

func findPort(c corev1.Container, p namedPort) (uint16, bool) {
	for _, cp := range c.Ports {
		protocol, ok := protocolOf(cp.Protocol)
		if ok && cp.Name == p.name && protocol == p.protocol && cp.ContainerPort >= 1 && cp.ContainerPort <= 65535 {
			return uint16(cp.ContainerPort), true
		}
	}
	return 0, false
}

// namedRules returns the rules for a named port of those pods that are among the peers: one for each number that it has.
func (v *view) namedRules(among peers, p namedPort) []Rule {
	if v.named == nil {
		v.indexNamed()
	}
	id := fmt.Sprint("port ", p.name, " ", p.protocol, " of ", among.id())
	if rules, ok := v.namedMade[id]; ok {
		return rules
	}
	addrs := map[uint16][]netip.Addr{}
	for _, t := range v.named[p] {
		if among.contains(t.addr) {
			addrs[t.number] = append(addrs[t.number], t.addr)
		}
	}
	rules := make([]Rule, 0, len(addrs))
	for number, a := range addrs {
		set := newPodSet(fmt.Sprint(number, " is ", id), a)
		rules = append(rules, Rule{Peers: set, Protocol: p.protocol, Ports: []PortRange{{number, number}}})
	}
	v.namedMade[id] = rules
	return rules
}

func (v *view) indexNamed() {
	v.named = map[namedPort][]target{}
	for _, pods := range v.pods {
		for _, e := range pods {
			for _, p := range e.portNames() {
				number, ok := e.port(p)
				if !ok {
					continue
				}
				for _, a := range e.addrs {
					v.named[p] = append(v.named[p], target{a, number})
				}
			}
		}
	}
}

// portNames returns the names of the pod's ports, each once.
func (e *endpoint) portNames() []namedPort {
	var names []namedPort
	for _, containers := range [][]corev1.Container{e.pod.Spec.Containers, e.pod.Spec.InitContainers} {
		for _, c := range containers {
			for _, cp := range c.Ports {
				protocol, ok := protocolOf(cp.Protocol)
				name := namedPort{cp.Name, protocol}
				if ok && cp.Name != "" && !slices.Contains(names, name) {
					names = append(names, name)
				}
			}
		}
	}
	return names
}
