package pki

import (
	"bytes"
	"encoding/base64"
	"fmt"

	"go.yaml.in/yaml/v3"
)

// kubeconfig is the part of k8s.io/client-go/tools/clientcmd/api/v1.Config that is written here.
type kubeconfig struct {
	APIVersion     string         `yaml:"apiVersion"`
	Kind           string         `yaml:"kind"`
	Clusters       []namedCluster `yaml:"clusters"`
	Contexts       []namedContext `yaml:"contexts"`
	CurrentContext string         `yaml:"current-context"`
	Users          []namedUser    `yaml:"users"`
}

type namedCluster struct {
	Name    string  `yaml:"name"`
	Cluster cluster `yaml:"cluster"`
}

type cluster struct {
	Server string `yaml:"server"`
	CA     string `yaml:"certificate-authority,omitempty"`
	CAData string `yaml:"certificate-authority-data,omitempty"`
}

type namedContext struct {
	Name    string         `yaml:"name"`
	Context clusterAndUser `yaml:"context"`
}

type clusterAndUser struct {
	Cluster string `yaml:"cluster"`
	User    string `yaml:"user"`
}

type namedUser struct {
	Name string `yaml:"name"`
	User user   `yaml:"user"`
}

type user struct {
	Cert     string `yaml:"client-certificate,omitempty"`
	CertData string `yaml:"client-certificate-data,omitempty"`
	Key      string `yaml:"client-key,omitempty"`
	KeyData  string `yaml:"client-key-data,omitempty"`
}

// entryName is what a cluster's entries are named by in a kubeconfig, for cluster and user; the context has the cluster's name.
func entryName(cluster string) string { return "bulkhead-" + cluster }

func newKubeconfig(context, entry string, c cluster, u user) kubeconfig {
	return kubeconfig{
		APIVersion: "v1", Kind: "Config", CurrentContext: context,
		Clusters: []namedCluster{{entry, c}},
		Contexts: []namedContext{{context, clusterAndUser{Cluster: entry, User: entry}}},
		Users:    []namedUser{{entry, u}},
	}
}

// kubeconfigs writes all kubeconfigs. They name files, so that clients see renewed certificates, except admin.conf, which holds
// everything, since people copy it.
func (e *ensurer) kubeconfigs(n Names) error {
	ca := Pair(e.dir, CA).Cert
	byFile := func(path string, files Files, context string) error {
		k := newKubeconfig(context, context, cluster{Server: n.APIServer, CA: ca}, user{Cert: files.Cert, Key: files.Key})
		return e.kubeconfig(path, k)
	}
	for _, name := range []string{ControllerManager, Scheduler, CoreDNS, MetricsServer, Provisioner} {
		if err := byFile(Kubeconfig(e.dir, name), Pair(e.dir, name), name); err != nil {
			return err
		}
	}
	for _, node := range n.Nodes {
		for _, k := range []struct{ name, pair string }{{Kubelet, KubeletClient}, {KubeProxy, KubeProxy}, {NetPol, NetPol}} {
			if err := byFile(NodeKubeconfig(e.dir, node.Name, k.name), NodePair(e.dir, node.Name, k.pair), k.name); err != nil {
				return err
			}
		}
	}
	return e.adminKubeconfig(n)
}

func (e *ensurer) adminKubeconfig(n Names) error {
	files := Pair(e.dir, Admin)
	var data [3]string
	for i, path := range []string{Pair(e.dir, CA).Cert, files.Cert, files.Key} {
		content, err := read(path)
		if err != nil {
			return err
		}
		data[i] = base64.StdEncoding.EncodeToString(content)
	}
	entry := entryName(n.Cluster)
	k := newKubeconfig(n.Cluster, entry, cluster{Server: n.APIServer, CAData: data[0]}, user{CertData: data[1], KeyData: data[2]})
	return e.kubeconfig(Kubeconfig(e.dir, Admin), k)
}

func (e *ensurer) kubeconfig(path string, k kubeconfig) error {
	data, err := encodeYAML(k, true)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return e.settle(path, data)
}

// encodeYAML writes YAML as kubectl does: two spaces, and, where compact, lists as far left as their key.
func encodeYAML(v any, compact bool) ([]byte, error) {
	var b bytes.Buffer
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(2)
	if compact {
		encoder.CompactSeqIndent()
	}
	if err := encoder.Encode(v); err != nil {
		return nil, err
	}
	if err := encoder.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
