package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func names() Names {
	return Names{
		Cluster:      "demo",
		ControlPlane: []netip.Addr{netip.MustParseAddr("10.88.7.2"), netip.MustParseAddr("fd88:1234::2")},
		APIServer:    "https://10.88.7.2:6443",
		Nodes: []NodeName{
			{Name: "demo-nodepool1-0", Addresses: []netip.Addr{netip.MustParseAddr("10.88.7.10"), netip.MustParseAddr("fd88:1234::10")}},
			{Name: "demo-nodepool1-1", Addresses: []netip.Addr{netip.MustParseAddr("10.88.7.11")}},
		},
	}
}

// withoutNodes is for tests that call Ensure often: each file is synced.
func withoutNodes() Names {
	n := names()
	n.Nodes = nil
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func ensure(t *testing.T, dir string, n Names, now time.Time) []string {
	t.Helper()
	changed, err := Ensure(dir, n, now)
	must(t, err)
	return changed
}

func certificate(t *testing.T, files Files) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(files.Cert)
	must(t, err)
	cert, err := parseCertificate(data)
	must(t, err)
	return cert
}

func pool(t *testing.T, dir, name string) *x509.CertPool {
	t.Helper()
	p := x509.NewCertPool()
	p.AddCert(certificate(t, Pair(dir, name)))
	return p
}

// content returns every file below dir.
func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	must(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, dir+"/")] = string(data)
		return err
	}))
	return files
}

func TestEnsureMakesAllOnce(t *testing.T) {
	dir := t.TempDir()
	changed := ensure(t, dir, names(), start)
	files := content(t, dir)
	if diff := cmp.Diff(slices.Sorted(slices.Values(changed)), sortedKeys(files)); diff != "" {
		t.Errorf("reported (-) and made (+):\n%s", diff)
	}
	for _, name := range []string{
		"pki/ca.crt", "pki/ca.key", "pki/sa.key", "pki/sa.pub", "pki/etcd-ca.crt", "pki/front-proxy-client.key", "pki/nodes/demo-nodepool1-1/kubelet-server.crt",
		"kubeconfig/admin.conf", "kubeconfig/coredns.conf", "kubeconfig/nodes/demo-nodepool1-0/netpol.conf",
	} {
		if files[name] == "" {
			t.Errorf("%s wasn't made", name)
		}
	}
	if changed := ensure(t, dir, names(), start.Add(24*time.Hour)); len(changed) != 0 {
		t.Errorf("a second call changed %v", changed)
	}
	if diff := cmp.Diff(files, content(t, dir)); diff != "" {
		t.Error(diff)
	}
	for name := range files {
		info, err := os.Stat(filepath.Join(dir, name))
		must(t, err)
		want := fs.FileMode(0o600)
		if strings.HasSuffix(name, ".crt") {
			want = 0o644
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has the mode %v, want %v", name, info.Mode(), want)
		}
	}
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func TestCertificates(t *testing.T) {
	dir := t.TempDir()
	ensure(t, dir, names(), start)
	client, server := x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth
	node := names().Nodes[0].Name
	tests := []struct {
		files    Files
		ca       string
		user     string
		group    string
		usages   []x509.ExtKeyUsage
		hosts    []string
		notHosts []string
	}{
		{files: Pair(dir, APIServer), ca: CA, user: "kube-apiserver", usages: []x509.ExtKeyUsage{server},
			hosts: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost",
				"127.0.0.1", "::1", "10.88.7.2", "fd88:1234::2", "10.96.0.1", "fd96::1"},
			notHosts: []string{"10.88.7.10", "example.org", node}},
		{files: Pair(dir, APIServerKubeletClient), ca: CA, user: "kube-apiserver-kubelet-client", usages: []x509.ExtKeyUsage{client}},
		{files: Pair(dir, APIServerEtcdClient), ca: EtcdCA, user: "kube-apiserver-etcd-client", usages: []x509.ExtKeyUsage{client}},
		{files: Pair(dir, FrontProxyClient), ca: FrontProxyCA, user: "front-proxy-client", usages: []x509.ExtKeyUsage{client}},
		{files: Pair(dir, EtcdServer), ca: EtcdCA, user: "etcd", usages: []x509.ExtKeyUsage{server, client}, hosts: []string{"localhost", "127.0.0.1", "::1"}, notHosts: []string{"10.88.7.2"}},
		{files: Pair(dir, Registry), ca: CA, user: "bulkhead:registry", usages: []x509.ExtKeyUsage{server}, hosts: []string{"10.88.7.2", "localhost"}},
		{files: Pair(dir, Admin), ca: CA, user: "bulkhead:admin", group: "system:masters", usages: []x509.ExtKeyUsage{client}},
		{files: Pair(dir, ControllerManager), ca: CA, user: "system:kube-controller-manager", usages: []x509.ExtKeyUsage{server, client}, hosts: []string{"10.88.7.2", "127.0.0.1"}},
		{files: Pair(dir, Scheduler), ca: CA, user: "system:kube-scheduler", usages: []x509.ExtKeyUsage{server, client}, hosts: []string{"10.88.7.2", "127.0.0.1"}},
		{files: Pair(dir, MetricsServer), ca: CA, user: "bulkhead:metrics-server", usages: []x509.ExtKeyUsage{server, client}, hosts: []string{"metrics-server.kube-system.svc", "10.88.7.2"}},
		{files: Pair(dir, CoreDNS), ca: CA, user: "bulkhead:coredns", usages: []x509.ExtKeyUsage{client}},
		{files: Pair(dir, Provisioner), ca: CA, user: "bulkhead:provisioner", usages: []x509.ExtKeyUsage{client}},
		{files: NodePair(dir, node, KubeletClient), ca: CA, user: "system:node:" + node, group: "system:nodes", usages: []x509.ExtKeyUsage{client}},
		{files: NodePair(dir, node, KubeletServer), ca: CA, user: "system:node:" + node, group: "system:nodes", usages: []x509.ExtKeyUsage{server},
			hosts: []string{node, "10.88.7.10", "fd88:1234::10", "127.0.0.1"}, notHosts: []string{"10.88.7.11", "demo-nodepool1-1"}},
		{files: NodePair(dir, node, KubeProxy), ca: CA, user: "system:kube-proxy", usages: []x509.ExtKeyUsage{client}},
		{files: NodePair(dir, node, NetPol), ca: CA, user: "bulkhead:netpol", usages: []x509.ExtKeyUsage{client}},
	}
	// every leaf is in the table, or it isn't tested
	if want := len(names().leaves(dir)) - 4; len(tests) != want { // the second node's four
		t.Errorf("%d certificates are tested, there are %d", len(tests), want)
	}
	for _, tt := range tests {
		t.Run(strings.TrimPrefix(tt.files.Cert, dir+"/"), func(t *testing.T) {
			cert := certificate(t, tt.files)
			for _, usage := range tt.usages {
				for _, at := range []time.Time{start.Add(-skew), start, start.Add(leafLife)} {
					if _, err := cert.Verify(x509.VerifyOptions{Roots: pool(t, dir, tt.ca), CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
						t.Errorf("at %v: %v", at, err)
					}
				}
			}
			for _, other := range []string{CA, FrontProxyCA, EtcdCA} {
				_, err := cert.Verify(x509.VerifyOptions{Roots: pool(t, dir, other), CurrentTime: start, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
				if (err == nil) != (other == tt.ca) {
					t.Errorf("with %s: %v", other, err)
				}
			}
			if diff := cmp.Diff(tt.usages, cert.ExtKeyUsage); diff != "" {
				t.Error(diff)
			}
			if cert.Subject.CommonName != tt.user || strings.Join(cert.Subject.Organization, ",") != tt.group {
				t.Errorf("it is for %v", cert.Subject)
			}
			for _, h := range tt.hosts {
				if err := cert.VerifyHostname(h); err != nil {
					t.Error(err)
				}
			}
			for _, h := range tt.notHosts {
				if cert.VerifyHostname(h) == nil {
					t.Errorf("it is for %s, too", h)
				}
			}
			if _, err := tls.LoadX509KeyPair(tt.files.Cert, tt.files.Key); err != nil {
				t.Error(err)
			}
		})
	}
}

// A server and a client, each with what Ensure made, authenticate each other; a client of another cluster gets nowhere.
func TestMutualTLS(t *testing.T) {
	dir, foreign := t.TempDir(), t.TempDir()
	now := time.Now()
	ensure(t, dir, names(), now)
	ensure(t, foreign, names(), now)
	serverPair, err := tls.LoadX509KeyPair(Pair(dir, APIServer).Cert, Pair(dir, APIServer).Key)
	must(t, err)
	server := &tls.Config{Certificates: []tls.Certificate{serverPair}, ClientCAs: pool(t, dir, CA), ClientAuth: tls.RequireAndVerifyClientCert}
	tests := []struct {
		name      string
		client    Files
		trust     string
		user      string // "": refused
		authority string
	}{
		{"kubelet", NodePair(dir, "demo-nodepool1-0", KubeletClient), dir, "system:node:demo-nodepool1-0", CA},
		{"client of another cluster", NodePair(foreign, "demo-nodepool1-0", KubeletClient), dir, "", CA},
		{"server of another cluster", NodePair(dir, "demo-nodepool1-0", KubeletClient), foreign, "", CA},
		{"client of another authority", Pair(dir, APIServerEtcdClient), dir, "", CA},
		{"server's certificate as a client", Pair(dir, Registry), dir, "", CA},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			pair, err := tls.LoadX509KeyPair(tt.client.Cert, tt.client.Key)
			must(t, err)
			client := &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool(t, tt.trust, tt.authority), ServerName: "10.96.0.1"}
			user, err := shake(t, server, client)
			if err != nil {
				user = ""
			}
			if user != tt.user {
				t.Errorf("the server saw %q (%v), want %q", user, err, tt.user)
			}
		})
	}
}

// shake returns whom the server saw.
func shake(t *testing.T, server, client *tls.Config) (string, error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer listener.Close()
	type result struct {
		user string
		err  error
	}
	results := make(chan result, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			results <- result{"", err}
			return
		}
		defer conn.Close()
		s := tls.Server(conn, server)
		if err := s.Handshake(); err != nil {
			results <- result{"", err}
			return
		}
		results <- result{s.ConnectionState().PeerCertificates[0].Subject.CommonName, nil}
	}()
	conn, err := tls.Dial("tcp", listener.Addr().String(), client)
	if err == nil {
		defer conn.Close()
	}
	r := <-results
	return r.user, errors.Join(err, r.err)
}

func TestRenewal(t *testing.T) {
	end := start.Add(leafLife)
	for _, tt := range []struct {
		name   string
		now    time.Time
		renews bool
	}{
		{"91 days before the end", end.Add(-91 * day), false},
		{"89 days before the end", end.Add(-89 * day), true},
		{"after the end", end.Add(day), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			ensure(t, dir, names(), start)
			before := content(t, dir)
			changed := ensure(t, dir, names(), tt.now)
			after := content(t, dir)
			for name := range after {
				// Certificates that aren't authorities, and the only kubeconfig that contains one.
				is := before[name] != after[name]
				want := tt.renews && (strings.HasSuffix(name, ".crt") && !strings.HasSuffix(name, "ca.crt") || name == "kubeconfig/admin.conf")
				if is != want || slices.Contains(changed, name) != want {
					t.Errorf("%s changed: %v, reported: %v, want %v", name, is, slices.Contains(changed, name), want)
				}
			}
			if tt.renews {
				if got, want := certificate(t, Pair(dir, APIServer)).NotAfter, tt.now.Add(leafLife); !got.Equal(want) {
					t.Errorf("valid until %v, want %v", got, want)
				}
			}
		})
	}
}

// Near its authority's end a certificate can't outlive it, and isn't made anew at each call.
func TestLeavesEndWithTheirAuthority(t *testing.T) {
	dir := t.TempDir()
	ensure(t, dir, names(), start)
	late := start.Add(caLife - 30*day)
	ensure(t, dir, names(), late)
	if got, want := certificate(t, Pair(dir, APIServer)).NotAfter, certificate(t, Pair(dir, CA)).NotAfter; !got.Equal(want) {
		t.Errorf("valid until %v, the authority until %v", got, want)
	}
	if changed := ensure(t, dir, names(), late.Add(day)); len(changed) != 0 {
		t.Errorf("changed: %v", changed)
	}
}

func TestLeafIsRepaired(t *testing.T) {
	foreign := t.TempDir()
	ensure(t, foreign, withoutNodes(), start)
	copyOver := func(t *testing.T, from, to string) {
		t.Helper()
		data, err := os.ReadFile(from)
		must(t, err)
		must(t, os.WriteFile(to, data, 0o600))
	}
	const cert, key = "pki/scheduler.crt", "pki/scheduler.key"
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, dir string, n *Names)
		want  []string
	}{
		{"certificate is missing", func(t *testing.T, dir string, _ *Names) { must(t, os.Remove(Pair(dir, Scheduler).Cert)) }, []string{cert}},
		{"key is missing", func(t *testing.T, dir string, _ *Names) { must(t, os.Remove(Pair(dir, Scheduler).Key)) }, []string{key, cert}},
		{"certificate is damaged", func(t *testing.T, dir string, _ *Names) {
			must(t, os.WriteFile(Pair(dir, Scheduler).Cert, []byte("-----BEGIN CERTIFICATE-----\nMII"), 0o644))
		}, []string{cert}},
		{"key is empty", func(t *testing.T, dir string, _ *Names) { must(t, os.Truncate(Pair(dir, Scheduler).Key, 0)) }, []string{key, cert}},
		{"key of another", func(t *testing.T, dir string, _ *Names) {
			copyOver(t, Pair(dir, CoreDNS).Key, Pair(dir, Scheduler).Key)
		}, []string{cert}},
		{"certificate of another", func(t *testing.T, dir string, _ *Names) {
			copyOver(t, Pair(dir, CoreDNS).Cert, Pair(dir, Scheduler).Cert)
			copyOver(t, Pair(dir, CoreDNS).Key, Pair(dir, Scheduler).Key)
		}, []string{cert}},
		{"of another authority", func(t *testing.T, dir string, _ *Names) {
			copyOver(t, Pair(foreign, Scheduler).Cert, Pair(dir, Scheduler).Cert)
			copyOver(t, Pair(foreign, Scheduler).Key, Pair(dir, Scheduler).Key)
		}, []string{cert}},
		{"key can be read by others", func(t *testing.T, dir string, _ *Names) { must(t, os.Chmod(Pair(dir, Scheduler).Key, 0o644)) }, []string{key}},
		{"the node has another address", func(_ *testing.T, _ string, n *Names) {
			n.Nodes[1].Addresses = []netip.Addr{netip.MustParseAddr("10.88.7.12")}
		}, []string{"pki/nodes/demo-nodepool1-1/kubelet-server.crt"}},
		{"a node fewer", func(_ *testing.T, _ string, n *Names) { n.Nodes = n.Nodes[:1] }, nil},
		{"kubeconfig is damaged", func(t *testing.T, dir string, _ *Names) { must(t, os.Truncate(Kubeconfig(dir, CoreDNS), 10)) }, []string{"kubeconfig/coredns.conf"}},
		{"public key is missing", func(t *testing.T, dir string, _ *Names) { must(t, os.Remove(filepath.Join(dir, "pki/sa.pub"))) }, []string{"pki/sa.pub"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir, n := t.TempDir(), names()
			ensure(t, dir, n, start)
			tt.spoil(t, dir, &n)
			if diff := cmp.Diff(tt.want, ensure(t, dir, n, start)); diff != "" {
				t.Errorf("changed:\n%s", diff)
			}
			if changed := ensure(t, dir, n, start); len(changed) != 0 {
				t.Errorf("a second repair changed %v", changed)
			}
			if _, err := tls.LoadX509KeyPair(Pair(dir, Scheduler).Cert, Pair(dir, Scheduler).Key); err != nil {
				t.Error(err)
			}
			if _, err := certificate(t, Pair(dir, Scheduler)).Verify(x509.VerifyOptions{Roots: pool(t, dir, CA), CurrentTime: start}); err != nil {
				t.Error(err)
			}
		})
	}
}

// An interrupted Ensure leaves the first files of a complete one, in the order in which they are written: the next completes them.
func TestInterruptedEnsure(t *testing.T) {
	whole, n := t.TempDir(), withoutNodes()
	order := ensure(t, whole, n, start)
	for cut := range order {
		if cut > 12 && cut%6 != 0 {
			continue // after the authorities each pair is like the next
		}
		dir := t.TempDir()
		for _, name := range order[:cut] {
			must(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700))
			data, err := os.ReadFile(filepath.Join(whole, name))
			must(t, err)
			must(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
		}
		changed := ensure(t, dir, n, start)
		for _, name := range order[:cut] {
			// A kubeconfig names files of the directory, so that one of the copied ones is made anew.
			if slices.Contains(changed, name) && !strings.HasSuffix(name, ".conf") {
				t.Errorf("after %d files %s was made again", cut, name)
			}
		}
		if got := len(content(t, dir)); got != len(order) {
			t.Errorf("after %d files there are %d, want %d", cut, got, len(order))
		}
	}
}

// The certificate that an authority gets for a key that was left keeps everything valid that the key has signed.
func TestAuthorityWithoutCertificate(t *testing.T) {
	dir := t.TempDir()
	ensure(t, dir, names(), start)
	must(t, os.Remove(Pair(dir, CA).Cert))
	changed := ensure(t, dir, names(), start.Add(day))
	if diff := cmp.Diff([]string{"pki/ca.crt", "kubeconfig/admin.conf"}, changed); diff != "" {
		t.Error(diff)
	}
}

func TestUnusableAuthority(t *testing.T) {
	other := t.TempDir()
	ensure(t, other, withoutNodes(), start)
	for _, tt := range []struct {
		name  string
		spoil func(t *testing.T, dir string)
		now   time.Time
		want  string
	}{
		{"expired", func(*testing.T, string) {}, start.Add(caLife + day), "ca.crt expired on 2036-02-27T12:00:00Z"},
		{"not yet valid", func(*testing.T, string) {}, start.Add(-day), "ca.crt is not valid before 2026-03-01T11:00:00Z and the clock says 2026-02-28T12:00:00Z"},
		{"key is missing", func(t *testing.T, dir string) { must(t, os.Remove(Pair(dir, CA).Key)) }, start, "ca.key is missing"},
		{"key is damaged", func(t *testing.T, dir string) { must(t, os.Truncate(Pair(dir, CA).Key, 20)) }, start, "ca.key is damaged"},
		{"certificate is damaged", func(t *testing.T, dir string) { must(t, os.Truncate(Pair(dir, CA).Cert, 20)) }, start, "ca.crt is damaged"},
		{"foreign key", func(t *testing.T, dir string) {
			data, err := os.ReadFile(Pair(other, CA).Key)
			must(t, err)
			must(t, os.WriteFile(Pair(dir, CA).Key, data, 0o600))
		}, start, "ca.crt is of another key"},
		{"no authority", func(t *testing.T, dir string) {
			for from, to := range map[string]string{Pair(dir, Admin).Cert: Pair(dir, CA).Cert, Pair(dir, Admin).Key: Pair(dir, CA).Key} {
				data, err := os.ReadFile(from)
				must(t, err)
				must(t, os.WriteFile(to, data, 0o600))
			}
		}, start, "ca.crt is no certificate authority"},
		{"service account key is damaged", func(t *testing.T, dir string) { must(t, os.Truncate(filepath.Join(dir, "pki/sa.key"), 3)) }, start, "sa.key is damaged"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			ensure(t, dir, withoutNodes(), start)
			tt.spoil(t, dir)
			before := content(t, dir)
			changed, err := Ensure(dir, withoutNodes(), tt.now)
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "restore ") {
				t.Errorf("error: %v, want %q and what to do", err, tt.want)
			}
			if len(changed) != 0 || !cmp.Equal(before, content(t, dir)) {
				t.Errorf("it changed files: %v", changed)
			}
		})
	}
}

// What the error of an unusable authority advises works.
func TestNewAuthority(t *testing.T) {
	dir := t.TempDir()
	ensure(t, dir, names(), start)
	before := content(t, dir)
	must(t, errors.Join(os.Remove(Pair(dir, CA).Cert), os.Remove(Pair(dir, CA).Key)))
	late := start.Add(caLife + day)
	// etcd's and the front proxy's have expired, too
	for _, name := range []string{EtcdCA, FrontProxyCA} {
		must(t, errors.Join(os.Remove(Pair(dir, name).Cert), os.Remove(Pair(dir, name).Key)))
	}
	ensure(t, dir, names(), late)
	for _, l := range names().leaves(dir) {
		usages := []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
		if _, err := certificate(t, l.files).Verify(x509.VerifyOptions{Roots: pool(t, dir, l.ca), CurrentTime: late, KeyUsages: usages}); err != nil {
			t.Errorf("%s: %v", l.files.Cert, err)
		}
	}
	if after := content(t, dir); after["pki/sa.key"] != before["pki/sa.key"] {
		t.Error("the key of service accounts was replaced")
	}
}

func TestEnsureRefusesNames(t *testing.T) {
	for name, change := range map[string]func(*Names){
		"no server":        func(n *Names) { n.APIServer = "" },
		"http":             func(n *Names) { n.APIServer = "http://10.88.7.2:6443" },
		"path as a node":   func(n *Names) { n.Nodes[0].Name = "../../etc" },
		"node has no name": func(n *Names) { n.Nodes[0].Name = "" },
	} {
		t.Run(name, func(t *testing.T) {
			dir, n := t.TempDir(), names()
			change(&n)
			if _, err := Ensure(dir, n, start); !errdefs.IsInvalidArgument(err) {
				t.Errorf("error: %v", err)
			}
			if files := content(t, dir); len(files) != 0 {
				t.Errorf("it made %v", sortedKeys(files))
			}
		})
	}
}

func TestRemoveNode(t *testing.T) {
	dir := t.TempDir()
	ensure(t, dir, names(), start)
	for range 2 {
		must(t, RemoveNode(dir, "demo-nodepool1-0"))
	}
	others := 0
	for name := range content(t, dir) {
		if strings.Contains(name, "demo-nodepool1-0") {
			t.Errorf("%s is left", name)
		}
		if strings.Contains(name, "demo-nodepool1-1") {
			others++
		}
	}
	if others != 11 {
		t.Errorf("the other node has %d files, want 11", others)
	}
	for _, name := range []string{"", ".", "..", "../nodes", "a/b"} {
		if err := RemoveNode(dir, name); !errdefs.IsInvalidArgument(err) {
			t.Errorf("RemoveNode(%q): %v", name, err)
		}
	}
}

func TestKubeconfigs(t *testing.T) {
	dir := t.TempDir()
	ensure(t, dir, names(), start)
	node := names().Nodes[0].Name
	for path, files := range map[string]Files{
		Kubeconfig(dir, ControllerManager): Pair(dir, ControllerManager), Kubeconfig(dir, Scheduler): Pair(dir, Scheduler),
		Kubeconfig(dir, CoreDNS): Pair(dir, CoreDNS), Kubeconfig(dir, MetricsServer): Pair(dir, MetricsServer), Kubeconfig(dir, Provisioner): Pair(dir, Provisioner),
		NodeKubeconfig(dir, node, Kubelet): NodePair(dir, node, KubeletClient), NodeKubeconfig(dir, node, KubeProxy): NodePair(dir, node, KubeProxy),
		NodeKubeconfig(dir, node, NetPol): NodePair(dir, node, NetPol),
	} {
		k := readKubeconfig(t, path)
		want := user{Cert: files.Cert, Key: files.Key}
		if diff := cmp.Diff(want, k.Users[0].User); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
		if diff := cmp.Diff(cluster{Server: "https://10.88.7.2:6443", CA: Pair(dir, CA).Cert}, k.Clusters[0].Cluster); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
		if k.CurrentContext != k.Contexts[0].Name || k.Contexts[0].Context.User != k.Users[0].Name || k.Contexts[0].Context.Cluster != k.Clusters[0].Name {
			t.Errorf("%s doesn't hold together: %+v", path, k)
		}
	}
	admin := readKubeconfig(t, Kubeconfig(dir, Admin))
	if admin.Users[0].User.Cert != "" || admin.Users[0].User.CertData == "" || admin.Clusters[0].Cluster.CAData == "" || admin.CurrentContext != "demo" {
		t.Errorf("admin.conf: %+v", admin)
	}
}

func readKubeconfig(t *testing.T, path string) kubeconfig {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	var k kubeconfig
	decoder := yaml.NewDecoder(strings.NewReader(string(data)))
	decoder.KnownFields(true)
	must(t, decoder.Decode(&k))
	if k.APIVersion != "v1" || k.Kind != "Config" || len(k.Clusters) != 1 || len(k.Users) != 1 || len(k.Contexts) != 1 {
		t.Fatal(fmt.Errorf("%s is no kubeconfig of one cluster:\n%s", path, data))
	}
	return k
}
