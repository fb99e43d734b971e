package pki

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// leaf is a certificate that there is to be.
type leaf struct {
	ca        string
	files     Files
	user      string
	group     string // may be empty
	client    bool
	server    bool
	dns       []string
	addresses []netip.Addr
}

// mastersGroup may do everything, whatever RBAC says: the API server can't lock it out.
const mastersGroup = "system:masters"

// leaves lists all certificates. The users are those that Kubernetes' own roles are bound to, and bulkhead:… for whom the
// cluster's manifests bind roles.
func (n Names) leaves(dir string) []leaf {
	local := []string{"localhost"}
	loopback := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	here := slices.Concat(n.ControlPlane, loopback)
	leaves := []leaf{
		{ca: CA, files: Pair(dir, APIServer), user: "kube-apiserver", server: true,
			dns:       append([]string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}, local...),
			addresses: slices.Concat(here, kubernetesService())},
		{ca: CA, files: Pair(dir, APIServerKubeletClient), user: "kube-apiserver-kubelet-client", client: true},
		{ca: EtcdCA, files: Pair(dir, APIServerEtcdClient), user: "kube-apiserver-etcd-client", client: true},
		{ca: FrontProxyCA, files: Pair(dir, FrontProxyClient), user: "front-proxy-client", client: true},
		// etcd shows its server's certificate as a client, too: to its peers and to itself.
		{ca: EtcdCA, files: Pair(dir, EtcdServer), user: "etcd", server: true, client: true, dns: local, addresses: loopback},
		{ca: CA, files: Pair(dir, Registry), user: "bulkhead:registry", server: true, dns: local, addresses: here},
		{ca: CA, files: Pair(dir, Admin), user: "bulkhead:admin", group: mastersGroup, client: true},
		{ca: CA, files: Pair(dir, ControllerManager), user: "system:kube-controller-manager", client: true, server: true, dns: local, addresses: here},
		{ca: CA, files: Pair(dir, Scheduler), user: "system:kube-scheduler", client: true, server: true, dns: local, addresses: here},
		{ca: CA, files: Pair(dir, MetricsServer), user: "bulkhead:metrics-server", client: true, server: true,
			dns: append([]string{"metrics-server.kube-system.svc"}, local...), addresses: here},
		{ca: CA, files: Pair(dir, CoreDNS), user: "bulkhead:coredns", client: true},
		{ca: CA, files: Pair(dir, Provisioner), user: "bulkhead:provisioner", client: true},
	}
	for _, node := range n.Nodes {
		user := "system:node:" + node.Name
		leaves = append(leaves,
			leaf{ca: CA, files: NodePair(dir, node.Name, KubeletClient), user: user, group: "system:nodes", client: true},
			leaf{ca: CA, files: NodePair(dir, node.Name, KubeletServer), user: user, group: "system:nodes", server: true,
				dns: append([]string{node.Name}, local...), addresses: slices.Concat(node.Addresses, loopback)},
			leaf{ca: CA, files: NodePair(dir, node.Name, KubeProxy), user: "system:kube-proxy", client: true},
			leaf{ca: CA, files: NodePair(dir, node.Name, NetPol), user: "bulkhead:netpol", client: true})
	}
	return leaves
}

func (l leaf) usages() []x509.ExtKeyUsage {
	var usages []x509.ExtKeyUsage
	if l.server {
		usages = append(usages, x509.ExtKeyUsageServerAuth)
	}
	if l.client {
		usages = append(usages, x509.ExtKeyUsageClientAuth)
	}
	return usages
}

// leaf makes a certificate where there is none that is right.
func (e *ensurer) leaf(a authority, l leaf) error {
	keyData, err := read(l.files.Key)
	if err != nil {
		return err
	}
	key, err := parseKey(keyData)
	if err != nil {
		if key, keyData, err = newKey(); err != nil {
			return err
		}
		if err := e.write(l.files.Key, keyData, 0o600); err != nil {
			return err
		}
	}
	if err := e.tighten(l.files.Key); err != nil {
		return err
	}
	certData, err := read(l.files.Cert)
	if err != nil {
		return err
	}
	end := e.now.Add(leafLife)
	if a.cert.NotAfter.Before(end) {
		end = a.cert.NotAfter
	}
	if l.isRight(certData, a, key, e.now, end) {
		return nil
	}
	data, err := l.sign(a, key, e.now, end)
	if err != nil {
		return err
	}
	return e.write(l.files.Cert, data, 0o644)
}

// isRight says whether what is there can stay; end is when a new certificate would end.
func (l leaf) isRight(data []byte, a authority, key *ecdsa.PrivateKey, now, end time.Time) bool {
	cert, err := parseCertificate(data)
	if err != nil || !key.PublicKey.Equal(cert.PublicKey) || cert.CheckSignatureFrom(a.cert) != nil {
		return false
	}
	// Near its authority's end a new certificate would live no longer than the old one.
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) || cert.NotAfter.Sub(now) < renewBefore && cert.NotAfter.Before(end.Truncate(time.Second)) {
		return false
	}
	addresses := make([]netip.Addr, 0, len(cert.IPAddresses))
	for _, ip := range cert.IPAddresses {
		addr, _ := netip.AddrFromSlice(ip)
		addresses = append(addresses, addr.Unmap())
	}
	want := l.template(now, end)
	return cert.Subject.String() == want.Subject.String() && !cert.IsCA && cert.KeyUsage == want.KeyUsage &&
		slices.Equal(cert.ExtKeyUsage, want.ExtKeyUsage) && slices.Equal(cert.DNSNames, want.DNSNames) && slices.Equal(addresses, l.addresses)
}

func (l leaf) template(now, end time.Time) *x509.Certificate {
	subject := pkix.Name{CommonName: l.user}
	if l.group != "" {
		subject.Organization = []string{l.group}
	}
	ips := make([]net.IP, 0, len(l.addresses))
	for _, a := range l.addresses {
		ips = append(ips, a.AsSlice())
	}
	return &x509.Certificate{
		Subject: subject, NotBefore: now.Add(-skew), NotAfter: end, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: l.usages(), DNSNames: l.dns, IPAddresses: ips,
	}
}

func (l leaf) sign(a authority, key *ecdsa.PrivateKey, now, end time.Time) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, l.template(now, end), a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", l.files.Cert, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: der}), nil
}
