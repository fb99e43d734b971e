package netpol

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	corev1 "k8s.io/api/core/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// ReadStandIns reads pods that the API doesn't know and that policies shall nevertheless see as pods, such as the
// cluster's DNS server. The file is YAML: documents of which each is a v1 Pod, a v1 List or PodList of pods, or a plain
// list of pods. What counts are name, namespace (default: default), labels, status.podIPs, and ports of containers.
func ReadStandIns(file string) ([]*corev1.Pod, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("opening the stand-ins: %w", err)
	}
	defer f.Close()
	pods, err := parseStandIns(f)
	if err != nil {
		return nil, fmt.Errorf("reading stand-ins from %s: %w", file, err)
	}
	return pods, nil
}

func parseStandIns(r io.Reader) ([]*corev1.Pod, error) {
	var pods []*corev1.Pod
	docs := utilyaml.NewYAMLReader(bufio.NewReader(r))
	for n := 1; ; n++ {
		doc, err := docs.Read()
		if errors.Is(err, io.EOF) {
			return pods, nil
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		more, err := parseStandInDocument(doc)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		pods = append(pods, more...)
	}
}

func parseStandInDocument(doc []byte) ([]*corev1.Pod, error) {
	var content any
	if err := yaml.Unmarshal(doc, &content); err != nil {
		return nil, fmt.Errorf("parsing: %w", err)
	}
	var items []any
	switch c := content.(type) {
	case nil:
		return nil, nil
	case []any:
		items = c
	case map[string]any:
		switch c["kind"] {
		case "List", "PodList":
			items, _ = c["items"].([]any)
		default:
			items = []any{c}
		}
	default:
		return nil, fmt.Errorf("neither a pod nor a list of pods")
	}
	pods := make([]*corev1.Pod, 0, len(items))
	for i, item := range items {
		pod, err := parseStandIn(item)
		if err != nil {
			return nil, fmt.Errorf("pod %d: %w", i+1, err)
		}
		pods = append(pods, pod)
	}
	return pods, nil
}

func parseStandIn(item any) (*corev1.Pod, error) {
	raw, err := yaml.Marshal(item)
	if err != nil {
		return nil, fmt.Errorf("encoding: %w", err)
	}
	pod := &corev1.Pod{}
	if err := yaml.UnmarshalStrict(raw, pod); err != nil {
		return nil, fmt.Errorf("decoding: %w", err)
	}
	if pod.Kind != "Pod" || pod.APIVersion != "v1" {
		return nil, fmt.Errorf("%s: %s %s is no v1 Pod", pod.Name, pod.APIVersion, pod.Kind)
	}
	if pod.Namespace == "" {
		pod.Namespace = corev1.NamespaceDefault
	}
	if len(podAddrs(pod)) == 0 {
		return nil, fmt.Errorf("%s/%s: status.podIPs has no address", pod.Namespace, pod.Name)
	}
	return pod, nil
}
