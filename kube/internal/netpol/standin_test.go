package netpol

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const standInPod = `apiVersion: v1
kind: Pod
metadata: {name: dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec: {containers: [{name: dns, ports: [{name: dns, protocol: UDP, containerPort: 53}]}]}
status: {podIPs: [{ip: 10.88.0.2}, {ip: "fd88::2"}]}
`

func indent(s, by string) string {
	return strings.ReplaceAll(strings.TrimSuffix(s, "\n"), "\n", "\n"+by) + "\n"
}

func TestReadStandIns(t *testing.T) {
	second := strings.NewReplacer("dns, namespace: kube-system", "other", "10.88.0.2", "10.88.0.3").Replace(standInPod)
	tests := map[string]struct {
		text, err string
		want      []string
	}{
		"a pod":                   {text: standInPod, want: []string{"kube-system/dns 10.88.0.2 fd88::2"}},
		"documents":               {text: "# none\n---\n" + standInPod + "---\n" + second, want: []string{"kube-system/dns 10.88.0.2 fd88::2", "default/other 10.88.0.3 fd88::2"}},
		"a list":                  {text: "apiVersion: v1\nkind: List\nitems:\n- " + indent(standInPod, "  "), want: []string{"kube-system/dns 10.88.0.2 fd88::2"}},
		"a plain list":            {text: "- " + indent(standInPod, "  ") + "- " + indent(second, "  "), want: []string{"kube-system/dns 10.88.0.2 fd88::2", "default/other 10.88.0.3 fd88::2"}},
		"nothing":                 {text: ""},
		"not YAML":                {text: "a: [", err: "document 1: parsing"},
		"a number":                {text: "7", err: "document 1: neither a pod nor a list"},
		"an unknown field":        {text: strings.Replace(standInPod, "podIPs", "podIPz", 1), err: "document 1: pod 1: decoding"},
		"another kind":            {text: strings.Replace(standInPod, "kind: Pod", "kind: Node", 1), err: "is no v1 Pod"},
		"without address":         {text: strings.Split(standInPod, "status")[0], err: "kube-system/dns: status.podIPs has no address"},
		"an error in a later one": {text: standInPod + "---\n- 7\n", err: "document 2: pod 1"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "stand-ins.yaml")
			if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			pods, err := ReadStandIns(file)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) || !strings.Contains(err.Error(), file) {
					t.Errorf("error %v, want one that names %q and the file", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range pods {
				line := p.Namespace + "/" + p.Name
				for _, a := range podAddrs(p) {
					line += " " + a.String()
				}
				got = append(got, line)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("pods (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := ReadStandIns(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that doesn't exist is read")
	}
}
