package netpol

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// podSelector is a peer that selects pods.
type podSelector struct {
	namespace  string          // the only one, if namespaces is nil
	namespaces labels.Selector // by labels of the namespace
	pods       labels.Selector
}

// newPodSelector reads a peer of a policy in the given namespace.
func newPodSelector(namespace string, peer networkingv1.NetworkPolicyPeer) (podSelector, error) {
	if peer.PodSelector == nil && peer.NamespaceSelector == nil {
		return podSelector{}, errors.New("a peer without ipBlock and selector")
	}
	s := podSelector{namespace: namespace, pods: labels.Everything()}
	var err error
	if peer.PodSelector != nil {
		if s.pods, err = metav1.LabelSelectorAsSelector(peer.PodSelector); err != nil {
			return s, fmt.Errorf("podSelector: %w", err)
		}
	}
	if peer.NamespaceSelector != nil {
		s.namespace = ""
		if s.namespaces, err = metav1.LabelSelectorAsSelector(peer.NamespaceSelector); err != nil {
			return s, fmt.Errorf("namespaceSelector: %w", err)
		}
	}
	return s, nil
}

// String is equal for equal selectors, and different for different ones.
func (s podSelector) String() string {
	if s.namespaces == nil {
		return fmt.Sprintf("pods %q in %q", s.pods, s.namespace)
	}
	return fmt.Sprintf("pods %q in namespaces %q", s.pods, s.namespaces)
}

// selectPods returns the addresses of pods that any of the selectors selects.
func (v *view) selectPods(selectors []podSelector) AddrSet {
	names := make([]string, len(selectors))
	for i, s := range selectors {
		names[i] = s.String()
	}
	slices.Sort(names)
	id := strings.Join(slices.Compact(names), " or ")
	if set, ok := v.setsMade[id]; ok {
		return set
	}
	var addrs []netip.Addr
	for _, s := range selectors {
		if s.namespaces == nil {
			addrs = selectAddrs(addrs, v.pods[s.namespace], s.pods)
			continue
		}
		for _, n := range v.namespaces {
			if s.namespaces.Matches(labels.Set(n.Labels)) {
				addrs = selectAddrs(addrs, v.pods[n.Name], s.pods)
			}
		}
	}
	set := newPodSet(id, addrs)
	v.setsMade[id] = set
	return set
}

// selectAddrs appends the addresses of those pods that selector selects.
func selectAddrs(to []netip.Addr, pods []*endpoint, selector labels.Selector) []netip.Addr {
	for _, e := range pods {
		if selector.Matches(e.labels) {
			to = append(to, e.addrs...)
		}
	}
	return to
}
