package component

import (
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"bulkhead.dev/bulkhead/internal/cluster/fabric"
	"bulkhead.dev/bulkhead/internal/cluster/pki"
	"bulkhead.dev/bulkhead/internal/cluster/spec"
	"bulkhead.dev/bulkhead/internal/cluster/supervise"
	"bulkhead.dev/bulkhead/internal/node"
)

// Names of a node's processes, besides its containerd's.
const (
	Kubelet   = "kubelet"
	KubeProxy = "kube-proxy"
	NetPol    = "netpol"
)

// Labels of nodes.
const (
	PoolLabel = "bulkhead.dev/pool"
	// IsolationLabel says what runs the VMs of a node's pods: "hardware" or "emulated". Nodes without VMs don't have it.
	IsolationLabel = "bulkhead.dev/isolation"
)

// NodeOptions say what a node is.
type NodeOptions struct {
	// Dir is the cluster's directory, Bin the one of the programs. Both are absolute.
	Dir, Bin string
	Network  fabric.Network
	Config   spec.Config
	Node     spec.Node
	Pool     spec.Pool
	// Containerd is the node's containerd, a member of the cluster.
	Containerd *node.Node
	// Isolation is the value of IsolationLabel; it goes with pools of the runtime VMIsolation.
	Isolation string
	// Resolvers are the name servers of pods with dnsPolicy Default.
	Resolvers []netip.Addr
}

// NodeProcesses returns the processes of a node, and the configuration files that they read, by path.
func NodeProcesses(o NodeOptions) ([]supervise.Process, map[string][]byte, error) {
	taints, err := o.taints()
	if err != nil {
		return nil, nil, err
	}
	files := map[string][]byte{o.config("resolv.conf"): o.resolvConf()}
	for name, content := range map[string]any{
		"kubelet.yaml":    o.kubeletConfig(taints),
		"kube-proxy.yaml": o.proxyConfig(),
		"stand-ins.yaml":  o.standIns(),
	} {
		if files[o.config(name)], err = yaml.Marshal(content); err != nil {
			return nil, nil, fmt.Errorf("encode %s of node %s: %w", name, o.Node.Name, err)
		}
	}
	return []supervise.Process{o.Containerd.Process(), o.kubelet(), o.kubeProxy(), o.netPol()}, files, nil
}

// path is that of a file of the node.
func (o NodeOptions) path(name string) string { return filepath.Join(o.Containerd.Dir(), name) }

func (o NodeOptions) config(name string) string { return o.path(filepath.Join("config", name)) }

func (o NodeOptions) process(name string, args ...string) supervise.Process {
	return supervise.Process{
		Name: name, Args: append([]string{filepath.Join(o.Bin, "bulkhead-kube"), name}, args...), Log: o.path(name + ".log"),
		Env: []string{"GOGC=50"}, // as for the control plane
	}
}

func (o NodeOptions) kubelet() supervise.Process {
	var addresses []string
	for _, a := range o.Network.NodeAddrs(o.Node.Index) {
		addresses = append(addresses, a.String())
	}
	p := o.process(
		Kubelet, "--config="+o.config("kubelet.yaml"), "--kubeconfig="+pki.NodeKubeconfig(o.Dir, o.Node.Name, pki.Kubelet),
		"--root-dir="+o.Containerd.KubeletDir(), "--cert-dir="+o.path("kubelet-pki"),
		"--hostname-override="+o.Node.Name, "--node-ip="+strings.Join(addresses, ","), "--node-labels="+o.labels(),
		// Else the logs of the container before the last restart are gone at times.
		"--minimum-container-ttl-duration=1m",
	)
	p.Env = append(p.Env, o.Containerd.KubeletEnv()...)
	p.After = []string{node.Containerd}
	p.Ready = &supervise.Probe{URL: "http://127.0.0.1:10248/healthz"}
	return p
}

func (o NodeOptions) labels() string {
	labels := maps.Clone(o.Pool.Labels)
	if labels == nil {
		labels = make(map[string]string)
	}
	labels[PoolLabel] = o.Pool.Name
	if o.Pool.Runtime == spec.VMIsolation {
		labels[IsolationLabel] = o.Isolation
	}
	var pairs []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, key+"="+labels[key])
	}
	return strings.Join(pairs, ",")
}

// taint is v1.Taint.
type taint struct {
	Key    string `json:"key"`
	Value  string `json:"value,omitempty"`
	Effect string `json:"effect"`
}

func (o NodeOptions) taints() ([]taint, error) {
	var taints []taint
	for _, text := range o.Pool.Taints {
		pair, effect, ok := strings.Cut(text, ":")
		if !ok {
			return nil, fmt.Errorf("pool %s: taint %q has no effect", o.Pool.Name, text)
		}
		key, value, _ := strings.Cut(pair, "=")
		taints = append(taints, taint{Key: key, Value: value, Effect: effect})
	}
	return taints, nil
}

// object is a part of a configuration file of Kubernetes.
type object = map[string]any

// kubeletConfig is a kubelet.config.k8s.io/v1beta1 KubeletConfiguration: what differs from the defaults.
func (o NodeOptions) kubeletConfig(taints []taint) object {
	serving := pki.NodePair(o.Dir, o.Node.Name, pki.KubeletServer)
	config := object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"authentication": object{
			"anonymous": object{"enabled": false},
			"webhook":   object{"enabled": true},
			"x509":      object{"clientCAFile": pki.Pair(o.Dir, pki.CA).Cert},
		},
		"authorization": object{"mode": "Webhook"},
		"tlsCertFile":   serving.Cert, "tlsPrivateKeyFile": serving.Key,

		"containerRuntimeEndpoint": "unix://" + o.Containerd.Socket(),
		"cgroupDriver":             "cgroupfs", "cgroupRoot": o.Containerd.Cgroup(), "failCgroupV1": false,
		// Swap is the host's business. Pods get none.
		"failSwapOn":   false,
		"maxPods":      o.Config.Kubelet.MaxPods,
		"podPidsLimit": 4096,
		// A lower value takes CAP_SYS_RESOURCE, which root in a container doesn't have.
		"oomScoreAdj":    0,
		"seccompDefault": true,

		"clusterDNS": []string{o.Network.ClusterDNS().String()}, "clusterDomain": "cluster.local",
		"resolvConf":             o.config("resolv.conf"),
		"makeIPTablesUtilChains": false,

		// All places are the node's own.
		"podLogsDir": o.path("pods"), "volumePluginDir": o.path("volume-plugins"),
		"containerLogMaxSize": "10Mi", "containerLogMaxFiles": 3,

		// Changes are seen soon: the cluster is small.
		"configMapAndSecretChangeDetectionStrategy": "Watch",
		"nodeStatusUpdateFrequency":                 "5s",
		"nodeStatusReportFrequency":                 "1m",
		"volumeStatsAggPeriod":                      "10s", // how late a pod beyond its ephemeral storage is noticed
		"serializeImagePulls":                       false,
	}
	maps.Copy(config, eviction())
	if len(taints) > 0 {
		config["registerWithTaints"] = taints
	}
	return config
}

// eviction is when a kubelet takes the machine to be full. It shares the disk with everything else on it, so that amounts are
// meant and not parts; and no image is removed to make room as long as pods needn't be: one that was loaded by hand can't be
// pulled again.
func eviction() object {
	return object{
		"evictionHard": map[string]string{
			"memory.available": "100Mi", "nodefs.available": "1Gi", "nodefs.inodesFree": "2%", "imagefs.available": "1Gi", "imagefs.inodesFree": "2%",
		},
		"evictionPressureTransitionPeriod": "30s",
		"imageGCHighThresholdPercent":      100,
		"imageGCLowThresholdPercent":       99,
	}
}

// resolvConf has name servers only: pods shall not look up names in the domains that the host searches.
func (o NodeOptions) resolvConf() []byte {
	var b strings.Builder
	for _, r := range o.Resolvers {
		fmt.Fprintf(&b, "nameserver %s\n", r)
	}
	return []byte(b.String())
}

func (o NodeOptions) kubeProxy() supervise.Process {
	p := o.process(KubeProxy, "--config="+o.config("kube-proxy.yaml"))
	p.Ready = &supervise.Probe{URL: "http://127.0.0.1:10256/healthz"}
	return p
}

// proxyConfig is a kubeproxy.config.k8s.io/v1alpha1 KubeProxyConfiguration.
func (o NodeOptions) proxyConfig() object {
	return object{
		"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"clientConnection": object{"kubeconfig": pki.NodeKubeconfig(o.Dir, o.Node.Name, pki.KubeProxy)},
		"hostnameOverride": o.Node.Name,
		"mode":             "nftables",
		"nftables":         object{"minSyncPeriod": "100ms", "syncPeriod": "30s"},
		"detectLocalMode":  "ClusterCIDR", "clusterCIDR": join(o.Network.ClusterPodCIDRs()),
		"nodePortAddresses":  []string{"primary"},
		"healthzBindAddress": "127.0.0.1:10256", "metricsBindAddress": "127.0.0.1:10249",
		"oomScoreAdj": 0,
		// The size of the connection table is the whole kernel's, and can't be set in a network namespace.
		"conntrack": object{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
	}
}

func (o NodeOptions) netPol() supervise.Process {
	return o.process(
		NetPol, "--kubeconfig="+pki.NodeKubeconfig(o.Dir, o.Node.Name, pki.NetPol), "--node-name="+o.Node.Name,
		"--stand-ins="+o.config("stand-ins.yaml"))
}

// standIns is what network policies take for the pod of the cluster's DNS server, which is none: a v1 Pod.
func (o NodeOptions) standIns() object {
	var addresses []object
	for _, a := range o.Network.ControlPlaneAddrs() {
		addresses = append(addresses, object{"ip": a.String()})
	}
	return object{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": object{"name": "coredns", "namespace": "kube-system", "labels": object{"k8s-app": "kube-dns"}},
		"spec": object{"containers": []object{{
			"name": "coredns", "ports": []object{
				{"name": "dns", "containerPort": 53, "protocol": "UDP"}, {"name": "dns-tcp", "containerPort": 53, "protocol": "TCP"},
			},
		}}},
		"status": object{"podIPs": addresses},
	}
}
