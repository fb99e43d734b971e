package component

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"bulkhead.dev/bulkhead/internal/cluster/fabric"
	"bulkhead.dev/bulkhead/internal/cluster/pki"
	"bulkhead.dev/bulkhead/internal/cluster/spec"
	"bulkhead.dev/bulkhead/internal/cluster/supervise"
)

// Ports of the control plane, in its own network namespace.
const (
	APIServerPort     = 6443
	MetricsServerPort = 4443
	RegistryPort      = fabric.HostPort
)

// Names of the control plane's processes.
const (
	Etcd              = "etcd"
	KMS               = "kms"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
	CoreDNS           = "coredns"
	MetricsServer     = "metrics-server"
	Provisioner       = "provisioner"
	Registry          = "registry"
)

// ControlPlaneOptions say where a control plane is.
type ControlPlaneOptions struct {
	// Dir is the cluster's directory, Sockets the one for its unix sockets, Bin the one of the programs. All are absolute.
	Dir, Sockets, Bin string
	Network           fabric.Network
	Config            spec.Config
	// Resolvers are the name servers that CoreDNS asks about names outside of the cluster; none: it knows no others.
	Resolvers []netip.Addr
}

// APIServerURL is where the API server of a cluster answers.
func APIServerURL(n fabric.Network) string {
	return fmt.Sprintf("https://%s", netip.AddrPortFrom(controlPlaneAddr(n), APIServerPort))
}

// controlPlaneAddr is the first, IPv4, address of the control plane.
func controlPlaneAddr(n fabric.Network) netip.Addr { return n.ControlPlaneAddrs()[0] }

// ControlPlane returns the processes of the control plane, and the configuration files that they read, by path.
func ControlPlane(o ControlPlaneOptions) ([]supervise.Process, map[string][]byte, error) {
	files := map[string][]byte{
		o.config("authentication.yaml"): []byte(authentication),
		o.config("audit.yaml"):          []byte(auditPolicy),
		o.config("encryption.yaml"):     o.encryption(),
		o.config("Corefile"):            o.corefile(),
	}
	admission, err := admissionConfig(o.Config)
	if err != nil {
		return nil, nil, fmt.Errorf("write the API server's admission configuration: %w", err)
	}
	files[o.config("admission.yaml")] = admission
	processes := []supervise.Process{
		o.etcd(), o.kms(), o.apiServer(), o.controllerManager(), o.scheduler(), o.coreDNS(), o.metricsServer(), o.provisioner(), o.registry(),
	}
	return processes, files, nil
}

func (o ControlPlaneOptions) config(name string) string { return filepath.Join(o.Dir, "config", name) }
func (o ControlPlaneOptions) cert(name string) string   { return pki.Pair(o.Dir, name).Cert }
func (o ControlPlaneOptions) key(name string) string    { return pki.Pair(o.Dir, name).Key }
func (o ControlPlaneOptions) kubeconfig(name string) string {
	return pki.Kubeconfig(o.Dir, name)
}
func (o ControlPlaneOptions) kmsSocket() string { return filepath.Join(o.Sockets, "kms.sock") }

// process is one of bulkhead-kube's programs.
func (o ControlPlaneOptions) process(name string, args ...string) supervise.Process {
	p := kubeProcess(o.Bin, name, args...)
	p.Log = filepath.Join(o.Dir, "logs", name+".log")
	return p
}

// kubeProcess is one of bulkhead-kube's programs.
func kubeProcess(bin, name string, args ...string) supervise.Process {
	return supervise.Process{
		Name: name, Args: append([]string{filepath.Join(bin, "bulkhead-kube"), name}, args...),
		// A small cluster's processes live on little garbage: collecting it sooner costs a few percent of one processor at the
		// start and saves a quarter of their memory.
		Env: []string{"GOGC=50"},
	}
}

// etcd has one member, which only the API server talks to, on loopback.
func (o ControlPlaneOptions) etcd() supervise.Process {
	p := o.process(
		Etcd, "--name=bulkhead", "--data-dir="+filepath.Join(o.Dir, "etcd"),
		"--listen-client-urls=https://127.0.0.1:2379", "--advertise-client-urls=https://127.0.0.1:2379",
		"--listen-peer-urls=https://127.0.0.1:2380", "--initial-advertise-peer-urls=https://127.0.0.1:2380",
		"--initial-cluster=bulkhead=https://127.0.0.1:2380",
		"--client-cert-auth", "--trusted-ca-file="+o.cert(pki.EtcdCA),
		"--cert-file="+o.cert(pki.EtcdServer), "--key-file="+o.key(pki.EtcdServer),
		"--peer-client-cert-auth", "--peer-trusted-ca-file="+o.cert(pki.EtcdCA),
		"--peer-cert-file="+o.cert(pki.EtcdServer), "--peer-key-file="+o.key(pki.EtcdServer),
		"--listen-metrics-urls=http://127.0.0.1:2381",
		// The default, 100,000 entries, is memory that a small cluster has no use for.
		"--snapshot-count=10000",
		"--log-level=warn",
	)
	p.Ready = &supervise.Probe{URL: "http://127.0.0.1:2381/readyz"}
	return p
}

func (o ControlPlaneOptions) kms() supervise.Process {
	p := o.process(KMS, "--listen=unix://"+o.kmsSocket(), "--key-file="+filepath.Join(o.Dir, "kms-keys.json"))
	p.Ready = &supervise.Probe{URL: "unix://" + o.kmsSocket()}
	return p
}

func (o ControlPlaneOptions) apiServer() supervise.Process {
	private, public := pki.ServiceAccount(o.Dir)
	p := o.process(
		APIServer, "--advertise-address="+controlPlaneAddr(o.Network).String(), fmt.Sprintf("--secure-port=%d", APIServerPort),
		"--etcd-servers=https://127.0.0.1:2379", "--etcd-cafile="+o.cert(pki.EtcdCA),
		"--etcd-certfile="+o.cert(pki.APIServerEtcdClient), "--etcd-keyfile="+o.key(pki.APIServerEtcdClient),
		"--client-ca-file="+o.cert(pki.CA), "--tls-cert-file="+o.cert(pki.APIServer), "--tls-private-key-file="+o.key(pki.APIServer),
		"--tls-min-version=VersionTLS12",
		"--kubelet-client-certificate="+o.cert(pki.APIServerKubeletClient), "--kubelet-client-key="+o.key(pki.APIServerKubeletClient),
		"--kubelet-certificate-authority="+o.cert(pki.CA), "--kubelet-preferred-address-types=InternalIP",
		"--proxy-client-cert-file="+o.cert(pki.FrontProxyClient), "--proxy-client-key-file="+o.key(pki.FrontProxyClient),
		"--requestheader-client-ca-file="+o.cert(pki.FrontProxyCA), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		// This namespace has no kube-proxy: services are reached by the addresses of their endpoints.
		"--enable-aggregator-routing=true",
		"--service-cluster-ip-range="+join(o.Network.ServiceCIDRs()),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+public, "--service-account-signing-key-file="+private,
		"--authorization-mode=Node,RBAC", "--authentication-config="+o.config("authentication.yaml"),
		"--enable-admission-plugins=NodeRestriction", "--admission-control-config-file="+o.config("admission.yaml"),
		"--encryption-provider-config="+o.config("encryption.yaml"),
		"--audit-policy-file="+o.config("audit.yaml"), "--audit-log-path="+filepath.Join(o.Dir, "logs", "audit.log"),
		"--audit-log-maxsize=20", "--audit-log-maxbackup=2",
		"--allow-privileged=true", "--profiling=false",
	)
	p.Ready = &supervise.Probe{URL: APIServerURL(o.Network) + "/readyz", CA: o.cert(pki.CA)}
	p.After = []string{Etcd, KMS}
	// It waits this long for requests that take long (watches) before it ends.
	p.StopTimeout = 5 * time.Second
	return p
}

// controller is a client of the API server that serves its own metrics on loopback.
func (o ControlPlaneOptions) controller(name, identity string, port int, args ...string) supervise.Process {
	kubeconfig := o.kubeconfig(identity)
	p := o.process(name, append([]string{
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1", "--tls-cert-file=" + o.cert(identity), "--tls-private-key-file=" + o.key(identity), "--profiling=false",
		// There is one of each: an election would only delay the start.
		"--leader-elect=false",
	}, args...)...)
	p.After = []string{APIServer}
	p.Ready = &supervise.Probe{URL: fmt.Sprintf("https://127.0.0.1:%d/healthz", port), CA: o.cert(pki.CA)}
	return p
}

func (o ControlPlaneOptions) controllerManager() supervise.Process {
	private, _ := pki.ServiceAccount(o.Dir)
	return o.controller(
		ControllerManager, pki.ControllerManager, 10257,
		"--client-ca-file="+o.cert(pki.CA), "--root-ca-file="+o.cert(pki.CA),
		"--cluster-signing-cert-file="+o.cert(pki.CA), "--cluster-signing-key-file="+o.key(pki.CA),
		"--service-account-private-key-file="+private, "--use-service-account-credentials=true",
		"--service-cluster-ip-range="+join(o.Network.ServiceCIDRs()), "--cluster-cidr="+join(o.Network.ClusterPodCIDRs()),
		// A node's pod network follows from the node's number (package fabric), so that nobody has to be asked for it.
		"--allocate-node-cidrs=false", "--controllers=*,-node-ipam-controller,-node-route-controller,-service-lb-controller",
	)
}

func (o ControlPlaneOptions) scheduler() supervise.Process {
	return o.controller(Scheduler, pki.Scheduler, 10259)
}

func (o ControlPlaneOptions) coreDNS() supervise.Process {
	p := o.process(CoreDNS, "-conf="+o.config("Corefile"))
	p.After = []string{APIServer}
	p.Ready = &supervise.Probe{URL: "http://127.0.0.1:8181/ready"}
	return p
}

// corefile answers for the cluster's zone, and asks the host's name servers about the rest.
func (o ControlPlaneOptions) corefile() []byte {
	var b strings.Builder
	var binds []string
	for _, a := range o.Network.ControlPlaneAddrs() {
		binds = append(binds, a.String())
	}
	fmt.Fprintf(&b, `.:53 {
    bind %s
    errors
    ready 127.0.0.1:8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {
        kubeconfig "%s"
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
        ttl 30
    }
`, strings.Join(binds, " "), o.kubeconfig(pki.CoreDNS))
	if len(o.Resolvers) > 0 {
		var to []string
		for _, r := range o.Resolvers {
			to = append(to, netip.AddrPortFrom(r, 53).String())
		}
		fmt.Fprintf(&b, "    forward . %s {\n        max_concurrent 1000\n    }\n", strings.Join(to, " "))
	}
	b.WriteString("    cache 30\n    loadbalance\n}\n")
	return []byte(b.String())
}

func (o ControlPlaneOptions) metricsServer() supervise.Process {
	kubeconfig := o.kubeconfig(pki.MetricsServer)
	p := o.process(
		MetricsServer, "--kubeconfig="+kubeconfig, "--authentication-kubeconfig="+kubeconfig, "--authorization-kubeconfig="+kubeconfig,
		fmt.Sprintf("--secure-port=%d", MetricsServerPort), "--bind-address="+controlPlaneAddr(o.Network).String(),
		"--tls-cert-file="+o.cert(pki.MetricsServer), "--tls-private-key-file="+o.key(pki.MetricsServer),
		"--kubelet-certificate-authority="+o.cert(pki.CA), "--kubelet-preferred-address-types=InternalIP",
		"--metric-resolution=15s",
	)
	p.After = []string{APIServer}
	p.Ready = &supervise.Probe{URL: fmt.Sprintf("https://%s/livez", netip.AddrPortFrom(controlPlaneAddr(o.Network), MetricsServerPort)), CA: o.cert(pki.CA)}
	return p
}

func (o ControlPlaneOptions) provisioner() supervise.Process {
	p := o.process(Provisioner, "--kubeconfig="+o.kubeconfig(pki.Provisioner), "--root="+filepath.Join(o.Dir, "nodes"), "--name=bulkhead.dev/local")
	p.After = []string{APIServer}
	return p
}

func (o ControlPlaneOptions) registry() supervise.Process {
	address := netip.AddrPortFrom(controlPlaneAddr(o.Network), RegistryPort)
	// From the host one may push; pods and nodes have other addresses, and only pull.
	var pushers []netip.Prefix
	for _, a := range o.Network.HostAddrs() {
		pushers = append(pushers, netip.PrefixFrom(a, a.BitLen()))
	}
	p := o.process(Registry, "--listen="+address.String(), "--root="+filepath.Join(o.Dir, "registry"), "--push-from="+join(pushers))
	p.Ready = &supervise.Probe{URL: "tcp://" + address.String()}
	return p
}

// RegistryURL is where the cluster's own registry answers.
func RegistryURL(n fabric.Network) string {
	return "http://" + netip.AddrPortFrom(controlPlaneAddr(n), RegistryPort).String()
}

func join(prefixes []netip.Prefix) string {
	var all []string
	for _, p := range prefixes {
		all = append(all, p.String())
	}
	return strings.Join(all, ",")
}

// authentication lets nobody in without credentials, except to ask whether the API server is well.
const authentication = `apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions:
  - path: /livez
  - path: /readyz
  - path: /healthz
`

// auditPolicy keeps who did what, without what was said: bodies would put Secrets into a file.
const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
# The components' own reading and renewing of leases is most of the traffic, and says nothing.
- level: None
  userGroups: ["system:nodes", "system:serviceaccounts:kube-system"]
  verbs: [get, list, watch]
- level: None
  users: ["system:kube-controller-manager", "system:kube-scheduler", "system:kube-proxy", "system:apiserver"]
  verbs: [get, list, watch]
- level: None
  resources:
  - {group: coordination.k8s.io, resources: [leases]}
- level: None
  nonResourceURLs: ["/healthz*", "/livez*", "/readyz*", "/openapi*"]
- level: Metadata
`

// encryption has Secrets encrypted by the cluster's own KMS v2 provider. What was written before (nothing, in a cluster that
// was made with it) stays readable.
func (o ControlPlaneOptions) encryption() []byte {
	return fmt.Appendf(nil, `apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - kms: {apiVersion: v2, name: bulkhead, endpoint: "unix://%s", timeout: 3s}
  - identity: {}
`, o.kmsSocket())
}

// Resolvers returns the name servers of a resolv.conf that can be reached from another network namespace: those on loopback,
// such as systemd-resolved's, can't. At most three, as the resolver has it.
func Resolvers(resolvConf string) []netip.Addr {
	var found []netip.Addr
	for line := range strings.Lines(resolvConf) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil && !a.IsLoopback() && a.Zone() == "" && !a.IsLinkLocalUnicast() {
			found = append(found, a)
		}
	}
	return slices.Compact(found[:min(3, len(found))])
}
