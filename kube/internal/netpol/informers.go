package netpol

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	networkinglisters "k8s.io/client-go/listers/networking/v1"
	"k8s.io/client-go/tools/cache"
)

// watched is what the informers hold.
type watched struct {
	factory    informers.SharedInformerFactory
	synced     []cache.InformerSynced
	pods       corelisters.PodLister
	namespaces corelisters.NamespaceLister
	policies   networkinglisters.NetworkPolicyLister
}

// watch makes the informers. They call changed, from goroutines of their own, for every change that policies can see.
func watch(client kubernetes.Interface, changed func()) (*watched, error) {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(trim))
	w := &watched{
		factory:    factory,
		pods:       factory.Core().V1().Pods().Lister(),
		namespaces: factory.Core().V1().Namespaces().Lister(),
		policies:   factory.Networking().V1().NetworkPolicies().Lister(),
	}
	handler := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { changed() },
		UpdateFunc: func(before, now any) {
			if !same(before, now) {
				changed()
			}
		},
		DeleteFunc: func(any) { changed() },
	}
	for _, i := range []cache.SharedIndexInformer{
		factory.Core().V1().Pods().Informer(),
		factory.Core().V1().Namespaces().Informer(),
		factory.Networking().V1().NetworkPolicies().Informer(),
	} {
		registration, err := i.AddEventHandler(handler)
		if err != nil {
			return nil, fmt.Errorf("adding an event handler: %w", err)
		}
		w.synced = append(w.synced, registration.HasSynced)
	}
	return w, nil
}

// start returns when everything has been listed once; false if ctx ended before.
func (w *watched) start(ctx context.Context) bool {
	w.factory.Start(ctx.Done())
	return cache.WaitForCacheSync(ctx.Done(), w.synced...)
}

// state collects what there is now.
func (w *watched) state(node string, standIns []*corev1.Pod) (State, error) {
	s := State{Node: node, StandIns: standIns}
	var err error
	if s.Pods, err = w.pods.List(labels.Everything()); err != nil {
		return s, fmt.Errorf("listing pods: %w", err)
	}
	if s.Namespaces, err = w.namespaces.List(labels.Everything()); err != nil {
		return s, fmt.Errorf("listing namespaces: %w", err)
	}
	if s.Policies, err = w.policies.List(labels.Everything()); err != nil {
		return s, fmt.Errorf("listing network policies: %w", err)
	}
	return s, nil
}

// trim leaves of an object what policies look at, before an informer keeps it: a node holds all pods of its cluster.
func trim(obj any) (any, error) {
	switch o := obj.(type) {
	case *corev1.Pod:
		return &corev1.Pod{
			ObjectMeta: trimMeta(o.ObjectMeta),
			Spec: corev1.PodSpec{
				NodeName:       o.Spec.NodeName,
				HostNetwork:    o.Spec.HostNetwork,
				Containers:     trimContainers(o.Spec.Containers),
				InitContainers: trimContainers(o.Spec.InitContainers),
			},
			Status: corev1.PodStatus{Phase: o.Status.Phase, PodIP: o.Status.PodIP, PodIPs: o.Status.PodIPs},
		}, nil
	case *corev1.Namespace:
		return &corev1.Namespace{ObjectMeta: trimMeta(o.ObjectMeta)}, nil
	case *networkingv1.NetworkPolicy:
		return &networkingv1.NetworkPolicy{ObjectMeta: trimMeta(o.ObjectMeta), Spec: o.Spec}, nil
	default:
		return obj, nil // a tombstone
	}
}

func trimMeta(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Name:              m.Name,
		Namespace:         m.Namespace,
		ResourceVersion:   m.ResourceVersion,
		CreationTimestamp: m.CreationTimestamp,
		Labels:            m.Labels,
	}
}

// trimContainers keeps the containers that have named ports.
func trimContainers(containers []corev1.Container) []corev1.Container {
	var kept []corev1.Container
	for _, c := range containers {
		var ports []corev1.ContainerPort
		for _, p := range c.Ports {
			if p.Name != "" {
				ports = append(ports, corev1.ContainerPort{Name: p.Name, Protocol: p.Protocol, ContainerPort: p.ContainerPort})
			}
		}
		if len(ports) > 0 {
			kept = append(kept, corev1.Container{Name: c.Name, Ports: ports, RestartPolicy: c.RestartPolicy})
		}
	}
	return kept
}

// same tells whether two versions of a trimmed object differ in nothing but their version.
func same(a, b any) bool {
	return equality.Semantic.DeepEqual(withoutVersion(a), withoutVersion(b))
}

func withoutVersion(obj any) any {
	switch o := obj.(type) {
	case *corev1.Pod:
		c := *o
		c.ResourceVersion = ""
		return &c
	case *corev1.Namespace:
		c := *o
		c.ResourceVersion = ""
		return &c
	case *networkingv1.NetworkPolicy:
		c := *o
		c.ResourceVersion = ""
		return &c
	default:
		return obj
	}
}
