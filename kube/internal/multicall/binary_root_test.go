//go:build root

package multicall_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bulkhead.dev/bulkhead/kube/internal/multicall"
)

// binary returns the path of bulkhead-kube as it is installed.
func binary(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("BULKHEAD_TEST_BIN")
	if dir == "" {
		dir = "../../../bin"
	}
	path, err := filepath.Abs(filepath.Join(dir, "bulkhead-kube"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run make bin-kube", err)
	}
	return path
}

// pinned returns the version of a module that go.mod leads to.
func pinned(t *testing.T, module string) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{with .Replace}}{{.Version}}{{else}}{{.Version}}{{end}}", module).CombinedOutput()
	if err != nil {
		t.Fatalf("go list -m %s: %v: %s", module, err, out)
	}
	return strings.TrimSpace(string(out))
}

func output(t *testing.T, path string, args ...string) string {
	t.Helper()
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", path, args, err, out)
	}
	return string(out)
}

func TestBinaryReportsTheVersionsOfGoMod(t *testing.T) {
	var got multicall.Versions
	if err := json.Unmarshal([]byte(output(t, binary(t), "version", "-o", "json")), &got); err != nil {
		t.Fatal(err)
	}
	for program, module := range map[string]string{
		"etcd": "go.etcd.io/etcd/server/v3", "coredns": "github.com/coredns/coredns", "metrics-server": "sigs.k8s.io/metrics-server",
		"kube-apiserver": "k8s.io/kubernetes", "kube-controller-manager": "k8s.io/kubernetes", "kube-scheduler": "k8s.io/kubernetes",
		"kubelet": "k8s.io/kubernetes", "kube-proxy": "k8s.io/kubernetes", "kubectl": "k8s.io/kubernetes",
	} {
		if want := pinned(t, module); got.Programs[program] != want {
			t.Errorf("version says that %s is %q; go.mod has %s", program, got.Programs[program], want)
		}
	}
}

// Each program says its version itself too: from variables that the Makefile sets, or constants.
func TestProgramsReportTheirVersions(t *testing.T) {
	path, kubernetes := binary(t), pinned(t, "k8s.io/kubernetes")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"etcd", "--version"}, "etcd Version: " + strings.TrimPrefix(pinned(t, "go.etcd.io/etcd/server/v3"), "v")},
		{[]string{"kube-apiserver", "--version"}, "Kubernetes " + kubernetes},
		{[]string{"kube-controller-manager", "--version"}, "Kubernetes " + kubernetes},
		{[]string{"kube-scheduler", "--version"}, "Kubernetes " + kubernetes},
		{[]string{"kubelet", "--version"}, "Kubernetes " + kubernetes},
		{[]string{"kube-proxy", "--version"}, "Kubernetes " + kubernetes},
		{[]string{"coredns", "-version"}, "CoreDNS-" + strings.TrimPrefix(pinned(t, "github.com/coredns/coredns"), "v")},
		{[]string{"metrics-server", "--version"}, pinned(t, "sigs.k8s.io/metrics-server")},
		{[]string{"kubectl", "version", "--client"}, "Client Version: " + kubernetes},
	} {
		if out := output(t, path, c.args...); !strings.HasPrefix(out, c.want+"\n") {
			t.Errorf("%q says %q; want %q", c.args, out, c.want)
		}
	}
	if out := output(t, filepath.Join(filepath.Dir(path), "kubectl"), "version", "--client"); !strings.HasPrefix(out, "Client Version: "+kubernetes+"\n") {
		t.Errorf("the link kubectl says %q", out)
	}
}
