//go:build ftry

package component

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bulkhead.dev/bulkhead/internal/cluster/fabric"
	"bulkhead.dev/bulkhead/internal/cluster/spec"
	"bulkhead.dev/bulkhead/internal/node"
)

func sh(t *testing.T, s string) string {
	out, err := exec.Command("sh", "-c", s).CombinedOutput()
	if err != nil {
		t.Logf("%s: %v", s, err)
	}
	t.Logf("$ %s\n%s", s, out)
	return string(out)
}

func TestTry(t *testing.T) {
	dir := os.Getenv("FTRY_DIR")
	os.MkdirAll(dir, 0o755)
	sh(t, "ip netns add ftry; ip -n ftry link set lo up; ip -n ftry link add eth0 type veth peer name eth1; ip -n ftry link set eth1 up; ip -n ftry addr add 10.88.7.10/24 dev eth0; ip -n ftry -6 addr add fd88:123:abcd::10/64 dev eth0 nodad; ip -n ftry link set eth0 up; ip -n ftry route add default via 10.88.7.1; ip netns exec ftry sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")
	defer sh(t, "ip netns del ftry")
	network := fabric.Network{ID: "0123abcd", Subnet: 7, IPv6: true}
	bin := "/work/main/bin"
	o := NodeOptions{
		Dir: dir, Bin: bin, Network: network, Config: spec.Default(),
		Node:      spec.Node{Name: "demo-sandboxed-0", Pool: "sandboxed", Index: 0},
		Pool:      spec.Pool{Name: "sandboxed", Count: 1, Runtime: spec.VMIsolation},
		Isolation: "emulated",
	}
	no := node.Options{
		Dir: filepath.Join(dir, "nodes", o.Node.Name), Bin: bin, Guest: os.Getenv("FTRY_GUEST"), Acceleration: "emulated",
		Member: &node.Member{Cgroup: "/bulkhead-0123abcd/n0/pods", PodCIDRs: network.PodCIDRs(0), VM: true,
			Mirrors: map[string][]string{"*": {"local"}, "docker.io": {"local", "https://mirror.example"}}, Registry: "http://10.88.7.2:5000"},
	}
	n, err := node.At(no)
	if err != nil {
		t.Fatal(err)
	}
	o.Containerd = n
	defer func() {
		began := time.Now()
		if err := n.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		t.Log("stop took", time.Since(began))
	}()
	if err := n.Prepare(); err != nil {
		t.Fatal(err)
	}
	procs, files, err := NodeProcesses(o)
	if err != nil {
		t.Fatal(err)
	}
	for p, c := range files {
		os.MkdirAll(filepath.Dir(p), 0o755)
		os.WriteFile(p, c, 0o644)
	}
	if err := fabric.In("/run/netns/ftry", func() error { _, err := node.Start(context.Background(), no); return err }); err != nil {
		t.Fatal(err)
	}
	if err := n.ImportPause(context.Background()); err != nil {
		t.Fatal(err)
	}
	sh(t, "/work/main/bin/bulkhead image busybox --name bulkhead.dev/try:1 -o "+dir+"/b.tar || true; ls "+dir)
	if err := n.Import(context.Background(), dir+"/b.tar"); err != nil {
		t.Error(err)
	}
	// kubelet without API server: static pods.
	static := filepath.Join(dir, "static")
	os.MkdirAll(static, 0o755)
	cfg := string(files[o.config("kubelet.yaml")]) + "\nstaticPodPath: " + static + "\n"
	cfg = strings.Replace(cfg, "mode: Webhook", "mode: AlwaysAllow", 1)
	cfg = strings.Replace(cfg, "webhook:\n    enabled: true", "webhook:\n    enabled: false", 1)
	cfg = strings.Replace(cfg, "configMapAndSecretChangeDetectionStrategy: Watch", "", 1)
	sh(t, "mkdir -p "+dir+"/pki/nodes/demo-sandboxed-0; cd "+dir+"/pki; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -subj /CN=x -days 2; cp ca.crt nodes/demo-sandboxed-0/kubelet-server.crt; cp ca.key nodes/demo-sandboxed-0/kubelet-server.key")
	os.WriteFile(o.config("kubelet.yaml"), []byte(cfg), 0o644)
	pod := func(name string, extra string) {
		os.WriteFile(filepath.Join(static, name+".yaml"), []byte(fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default}
spec:
  %s
  containers:
  - name: c
    image: bulkhead.dev/try:1
    imagePullPolicy: Never
    command: [sh, -c, "ip a; ip r; ip -6 r; cat /etc/resolv.conf; uname -r; cat /v/x; while true; do date; sleep 1; done"]
    volumeMounts: [{name: e, mountPath: /e}, {name: e, mountPath: /s, subPath: sub}]
    resources: {limits: {memory: 64Mi}}
  volumes:
  - {name: e, emptyDir: {medium: Memory}}
  terminationGracePeriodSeconds: 1
`, name, extra)), 0o644)
	}
	pod("plain", "")
	k := procs[1]
	var args []string
	for _, a := range k.Args {
		if !strings.HasPrefix(a, "--kubeconfig") && !strings.HasPrefix(a, "--node-labels") {
			args = append(args, a)
		}
	}
	log, _ := os.Create(dir + "/kubelet.log")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), k.Env...)
	if err := fabric.In("/run/netns/ftry", cmd.Start); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Signal(os.Interrupt); cmd.Wait() }()
	for i := 0; i < 60; i++ {
		time.Sleep(time.Second)
		out, _ := exec.Command("sh", "-c", "cat "+n.Dir()+"/pods/*/c/*.log").Output()
		if strings.Contains(string(out), "UTC") {
			break
		}
	}
	sh(t, "cat "+n.Dir()+"/pods/*/c/*.log; ls -la /var/log/containers /var/lib/cni/results /var/lib/kubelet "+n.Dir()+"/kubelet-*/ /run/bulkhead* "+n.Dir())
	sh(t, "grep -i 'error\\|fail\\|^E' "+dir+"/kubelet.log | cut -c1-300 | tail -40")
	sh(t, "for s in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops; do echo $s $(cat /proc/sys/$s); done; cat /run/bulkhead-tunables.json")
	sh(t, "grep bulkhead /proc/self/mountinfo | cut -c1-200; ls /var/lib/kubelet; find /sys/fs/cgroup/memory/bulkhead-0123abcd -type d; ip netns exec ftry nft list ruleset | head -40; ip -n ftry a")
	if sec := os.Getenv("FTRY_WAIT"); sec != "" {
		sh(t, "sleep "+sec)
	}
}
