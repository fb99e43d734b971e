//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	// patient is how long a probe waits for an answer that should come. brief is for one that should not: a probe that is
	// wrongly allowed is answered in milliseconds.
	patient, brief = "30s", "2s"
	blocked        = "-"
)

// probe asks targets, as testprog does, from a pod, and returns who answered by target; blocked for nobody.
func (k client) probe(t *testing.T, from, limit string, targets ...string) map[string]string {
	t.Helper()
	return k.probeIn(t, from, limit, nil, targets)
}

// probeIn is probe that also fills in why there was no answer.
func (k client) probeIn(t *testing.T, from, limit string, why map[string]string, targets []string) map[string]string {
	t.Helper()
	answers := map[string]string{}
	for line := range strings.Lines(k.exec(t, from, append([]string{"testprog", "probe", limit}, targets...)...)) {
		fields := strings.SplitN(strings.TrimSpace(line), " ", 3)
		if len(fields) != 3 {
			t.Fatalf("testprog probe wrote %q", line)
		}
		if fields[1] == "ok" {
			answers[fields[0]] = fields[2]
			continue
		}
		answers[fields[0]] = blocked
		if why != nil {
			why[fields[0]] = fields[2]
		}
	}
	return answers
}

// podIPs returns a pod's addresses, IPv4 first; IPv6 only if the cluster has it.
func (k client) podIPs(t *testing.T, pod string) []netip.Addr {
	t.Helper()
	return addresses(t, k.get(t, "pod/"+pod, "{.status.podIPs[*].ip}"))
}

func addresses(t *testing.T, list string) []netip.Addr {
	t.Helper()
	var all []netip.Addr
	for text := range strings.FieldsSeq(list) {
		a, err := netip.ParseAddr(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, a)
	}
	slices.SortStableFunc(all, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return all
}

// wantFamilies fails a test where the cluster has two families of addresses and there aren't that many.
func wantFamilies(t *testing.T, what string, got []netip.Addr) {
	t.Helper()
	families := len(show(t, clusterName).Subnets)
	if len(got) != families || !got[0].Is4() || families == 2 && !got[1].Is6() {
		t.Errorf("%s: the addresses are %v; the cluster has %d families", what, got, families)
	}
}

func target(network string, a netip.Addr, port int) string {
	return fmt.Sprintf("%s:%s", network, netip.AddrPortFrom(a, uint16(port)))
}

// Every pod reaches every other by its addresses, whatever their nodes and runtimes.
func TestPodToPod(t *testing.T) {
	k := shared(t)
	want := map[string]string{}
	for _, pod := range sharedPods() {
		ips := k.podIPs(t, pod)
		wantFamilies(t, pod, ips)
		for _, ip := range ips {
			want[target("tcp", ip, 8080)], want[target("udp", ip, 9000)] = pod, pod
		}
	}
	var targets []string
	for name := range want {
		targets = append(targets, name)
	}
	for _, from := range sharedPods() {
		t.Run("from "+from, func(t *testing.T) {
			t.Parallel()
			why := map[string]string{}
			if diff := cmp.Diff(want, k.probeIn(t, from, patient, why, targets)); diff != "" {
				t.Errorf("who answers (-want +got):\n%s%v", diff, why)
			}
		})
	}
}

const servicesManifest = `
{{- range . }}
---
apiVersion: v1
kind: Service
metadata: {name: to-{{ . }}}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {kind: {{ . }}}
  ports:
  - {name: tcp, port: 80, targetPort: web, protocol: TCP}
  - {name: udp, port: 53, targetPort: 9000, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: headless-{{ . }}}
spec:
  clusterIP: None
  ipFamilyPolicy: PreferDualStack
  selector: {kind: {{ . }}}
  ports: [{port: 8080}]
{{- end }}
`

// Services are reached by address and by name, over both families, across nodes and runtimes, and on the nodes' ports.
func TestServices(t *testing.T) {
	k := shared(t)
	kinds := []string{"ordinary", "sandboxed"}
	manifest, err := render(servicesManifest, kinds)
	if err != nil {
		t.Fatal(err)
	}
	k.apply(t, manifest)
	t.Cleanup(func() {
		if err := k.feed(manifest, "delete", "--wait=false", "-f", "-").failure(); err != nil {
			t.Error(err)
		}
	})
	want := map[string]string{}
	for _, kind := range kinds {
		ips := addresses(t, k.get(t, "service/to-"+kind, "{.spec.clusterIPs[*]}"))
		wantFamilies(t, "service to-"+kind, ips)
		for _, ip := range ips {
			want[target("tcp", ip, 80)], want[target("udp", ip, 53)] = kind, kind
		}
		for _, name := range []string{"to-" + kind, "to-" + kind + "." + sharedNamespace, "to-" + kind + "." + sharedNamespace + ".svc.cluster.local"} {
			want["tcp:"+name+":80"] = kind
		}
		if len(ips) == 2 {
			want["tcp6:to-"+kind+":80"] = kind
		}
		want["tcp:headless-"+kind+":8080"] = kind
	}
	var targets []string
	for name := range want {
		targets = append(targets, name)
	}
	t.Run("from pods", func(t *testing.T) {
		for _, from := range sharedPods() {
			t.Run(from, func(t *testing.T) {
				t.Parallel()
				eventually(t, func() string { // endpoints take their way through several components
					why := map[string]string{}
					got := k.probeIn(t, from, patient, why, targets)
					for name, who := range got {
						got[name] = strings.TrimRight(who, "-01") // either pod of the kind
						if who == blocked {
							got[name] = why[name]
						}
					}
					return cmp.Diff(want, got)
				})
			})
		}
	})
	t.Run("names", func(t *testing.T) { serviceNames(t, k, kinds) })
	t.Run("node ports", func(t *testing.T) { nodePorts(t, k, kinds) })
}

// serviceNames asks for what the names stand for: a headless service's are its pods'.
func serviceNames(t *testing.T, k client, kinds []string) {
	for _, kind := range kinds {
		var ips []netip.Addr
		for _, pod := range []string{kind + "-0", kind + "-1"} {
			ips = append(ips, k.podIPs(t, pod)...)
		}
		for _, c := range []struct {
			name string
			want []netip.Addr
		}{
			{"headless-" + kind, ips},
			{"to-" + kind, addresses(t, k.get(t, "service/to-"+kind, "{.spec.clusterIPs[*]}"))},
		} {
			for _, from := range []string{ordinary0, sandboxed1} {
				eventually(t, func() string {
					_, list, _ := strings.Cut(k.exec(t, from, "testprog", "lookup", c.name), " ")
					var want []string
					for _, ip := range c.want {
						want = append(want, ip.String())
					}
					slices.Sort(want)
					return cmp.Diff(strings.Join(want, " "), list)
				})
			}
		}
	}
}

// nodePorts asks each node's address from this machine, which is no node.
func nodePorts(t *testing.T, k client, kinds []string) {
	for _, kind := range kinds {
		port := k.get(t, "service/to-"+kind, "{.spec.ports[?(@.name=='tcp')].nodePort}")
		nodes := strings.Fields(client{}.run(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"))
		if len(nodes) != 2 {
			t.Errorf("the nodes are %v", nodes)
		}
		for _, node := range nodes {
			ips := addresses(t, k.get(t, "node/"+node, `{.status.addresses[?(@.type=="InternalIP")].address}`))
			wantFamilies(t, node, ips)
			for _, ip := range ips {
				eventually(t, func() string {
					if who, err := askFromHost(net.JoinHostPort(ip.String(), port)); err != nil || !strings.HasPrefix(who, kind) {
						return fmt.Sprintf("node port of %s on %s %v: %q answers, %v", kind, node, ip, who, err)
					}
					return ""
				})
			}
		}
	}
}

// askFromHost asks a server of testprog for its name from where the test runs.
func askFromHost(address string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), generous)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(conn, "who"); err != nil {
		return "", err
	}
	answer := make([]byte, 100)
	n, err := conn.Read(answer)
	return string(answer[:n]), err
}

// The rest of the world's names are the host's resolver's business; those of the cluster that don't exist, nobody's.
func TestUnknownNames(t *testing.T) {
	k := shared(t)
	for _, pod := range []string{ordinary1, sandboxed1} {
		if got := k.exec(t, pod, "testprog", "lookup", "nothing."+sharedNamespace+".svc.cluster.local"); !strings.Contains(got, "no such host") {
			t.Errorf("%s: a service that isn't there: %q", pod, got)
		}
		if got := k.exec(t, pod, "testprog", "lookup", "kubernetes.default"); !strings.HasPrefix(got, "kubernetes.default 10.96.0.1") {
			t.Errorf("%s: the API server's service: %q", pod, got)
		}
	}
}
