// Package pki makes a cluster's certificate authorities, certificates, keys and kubeconfigs, and renews them.
//
//	Names ─► Ensure ─► authorities (10 years) ─► certificates (1 year) ─► kubeconfigs
//	                   what is there and right stays, and what isn't is made; see Ensure
//	admin.conf ─► MergeKubeconfig ─► the user's kubeconfig ─► RemoveFromKubeconfig
//
// There are three authorities, so that each opens one door only: "ca" for Kubernetes, "etcd-ca" for etcd, "front-proxy-ca" for
// what aggregated API servers take from the API server (Kubernetes documentation, "PKI certificates and requirements"). All keys
// are ECDSA P-256.
//
// The files are found by [Pair], [NodePair], [ServiceAccount], [Kubeconfig] and [NodeKubeconfig]. Whoever calls Ensure or
// RemoveNode holds the cluster's lock.
package pki

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/cluster/spec/durable"
)

const (
	day = 24 * time.Hour
	// caLife and leafLife are how long what is made is valid.
	caLife   = 3650 * day
	leafLife = 365 * day
	// renewBefore is how long before its end a certificate is replaced: a cluster that is updated, or started, once in nine
	// months never meets an expired one.
	renewBefore = 90 * day
	// skew is how far back the validity begins: another clock, such as a VM's, may be late.
	skew = time.Hour
)

// Names is what certificates and kubeconfigs are made for.
type Names struct {
	// Cluster is the cluster's name: that of the context in admin.conf, and in the authorities' subjects.
	Cluster string
	// ControlPlane are the addresses of the control plane: servers there can be reached by them, and by localhost. The API
	// server can also be reached by the addresses of the service "kubernetes", which aren't listed here.
	ControlPlane []netip.Addr
	// APIServer is the API server's URL: https://10.88.7.2:6443.
	APIServer string
	// Nodes are the cluster's nodes. What was made for others stays until RemoveNode.
	Nodes []NodeName
}

// NodeName is a node's name and its addresses.
type NodeName struct {
	// Name is a DNS label.
	Name string
	// Addresses are those by which the API server reaches the node's kubelet.
	Addresses []netip.Addr
}

// kubernetesService are the first addresses of the service networks, 10.96.0.0/16 and fd96::/112, which the API server gives to
// the service "kubernetes".
func kubernetesService() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("fd96::1")}
}

// Ensure makes every file that is missing below dir, the cluster's directory, and returns the paths of those that it made or
// changed, relative to dir. A second call with the same names changes nothing.
//
// A certificate is made anew when it ends within 90 days, is damaged, is for other names, or is of another authority or key. Its
// key stays, so that nobody sees the key of one and the certificate of another, unless the key is damaged too. Authorities and the
// key of service accounts are never replaced, for everything depends on them: where one is damaged or has expired, that is an
// error of the class ErrFailedPrecondition which says what to do.
//
// Each file is replaced atomically. Keys and kubeconfigs have the mode 0600, also where somebody has widened it.
func Ensure(dir string, n Names, now time.Time) (changed []string, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("make certificates: %w", err)
	}
	if n.Cluster == "" {
		n.Cluster = filepath.Base(dir)
	}
	e := &ensurer{dir: dir, now: now}
	if err := e.ensure(n); err != nil {
		return e.changed, fmt.Errorf("make certificates of cluster %s: %w", n.Cluster, err)
	}
	return e.changed, nil
}

// ensurer is one call of Ensure.
type ensurer struct {
	dir     string
	now     time.Time
	changed []string
}

var dnsLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (n Names) validate() error {
	u, err := url.Parse(n.APIServer)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%q is no https URL of an API server", n.APIServer))
	}
	for _, node := range n.Nodes {
		// The name becomes that of a directory, too.
		if !dnsLabel.MatchString(node.Name) {
			return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%q is no name of a node", node.Name))
		}
	}
	return nil
}

func (e *ensurer) ensure(n Names) error {
	if err := n.validate(); err != nil {
		return err
	}
	directories := []string{filepath.Join(e.dir, "pki"), filepath.Join(e.dir, "kubeconfig")}
	for _, node := range n.Nodes {
		directories = append(directories, nodePKI(e.dir, node.Name), nodeKubeconfigs(e.dir, node.Name))
	}
	for _, d := range directories {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	authorities := map[string]authority{}
	for _, name := range []string{CA, FrontProxyCA, EtcdCA} {
		a, err := e.authority(name, n.Cluster)
		if err != nil {
			return err
		}
		authorities[name] = a
	}
	if err := e.serviceAccount(); err != nil {
		return err
	}
	for _, l := range n.leaves(e.dir) {
		if err := e.leaf(authorities[l.ca], l); err != nil {
			return err
		}
	}
	return e.kubeconfigs(n)
}

// RemoveNode removes a node's keys, certificates and kubeconfigs. What isn't there is removed already.
func RemoveNode(dir, name string) error {
	if !dnsLabel.MatchString(name) {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("remove certificates of node: %q is no name of a node", name))
	}
	if err := errors.Join(os.RemoveAll(nodePKI(dir, name)), os.RemoveAll(nodeKubeconfigs(dir, name))); err != nil {
		return fmt.Errorf("remove certificates of node %s: %w", name, err)
	}
	return nil
}

// maxFile bounds what is read: certificates and kubeconfigs are a few KiB.
const maxFile = 1 << 20

// read returns nil for a file that isn't there.
func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%s has more than %d bytes", path, maxFile))
	}
	return data, nil
}

// keep writes what can't be made again, and records that it changed. It is on disk before anything that depends on it is written.
func (e *ensurer) keep(path string, data []byte, mode fs.FileMode) error {
	if err := durable.Write(path, data, mode); err != nil {
		return err
	}
	return e.record(path)
}

// write replaces a file that the next Ensure makes anew if it is damaged, and records that it changed.
func (e *ensurer) write(path string, data []byte, mode fs.FileMode) error {
	if err := durable.Replace(path, data, mode); err != nil {
		return err
	}
	return e.record(path)
}

// tighten takes away what others may do with a secret file.
func (e *ensurer) tighten(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 == 0 {
		return nil
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	return e.record(path)
}

// settle makes a secret file have that content, and writes nothing where it has.
func (e *ensurer) settle(path string, data []byte) error {
	present, err := read(path)
	if err != nil {
		return err
	}
	if present != nil && bytes.Equal(present, data) {
		return e.tighten(path)
	}
	return e.write(path, data, 0o600)
}

func (e *ensurer) record(path string) error {
	name, err := filepath.Rel(e.dir, path)
	if err != nil {
		return err
	}
	e.changed = append(e.changed, name)
	return nil
}
