//go:build vm

package vm

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"bulkhead.dev/bulkhead/internal/node"
	"bulkhead.dev/bulkhead/test/cell"
	"bulkhead.dev/bulkhead/test/kit"
)

// handlers are the CRI runtime handlers to test: containerd's two ways to run a pod's sandbox. runc has the first only.
func handlers() []string {
	if suite.runtime == node.RuntimeBulkhead {
		return []string{"bulkhead", "bulkhead-sandboxer"}
	}
	return []string{"runc"}
}

func criClient(t *testing.T) cri.RuntimeServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+suite.node.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return cri.NewRuntimeServiceClient(conn)
}

// criPod is a pod as kubelet makes one.
type criPod struct {
	t       *testing.T
	ctx     context.Context
	service cri.RuntimeServiceClient
	config  *cri.PodSandboxConfig
	id, ip  string
	removed bool
	ip6     []string
}

func runCRIPod(t *testing.T, ctx context.Context, handler string, edit func(*cri.PodSandboxConfig)) *criPod {
	t.Helper()
	name := kit.NewID()
	p := &criPod{t: t, ctx: ctx, service: criClient(t), config: &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: name, Uid: name, Namespace: "default"},
		Hostname: "harbour", LogDirectory: t.TempDir(),
		DnsConfig: &cri.DNSConfig{Servers: []string{"10.77.0.53"}, Searches: []string{"default.svc.cluster.local"}, Options: []string{"ndots:5"}},
		Linux:     &cri.LinuxPodSandboxConfig{CgroupParent: "/" + cell.Token(), SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: containerPIDs()}},
	}}
	if edit != nil {
		edit(p.config)
	}
	response, err := p.service.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config, RuntimeHandler: handler})
	if err != nil {
		t.Fatalf("run pod: %v", err)
	}
	p.id = response.PodSandboxId
	t.Cleanup(p.remove)
	status, err := p.service.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		t.Fatal(err)
	}
	p.ip = status.GetStatus().GetNetwork().GetIp()
	for _, more := range status.GetStatus().GetNetwork().GetAdditionalIps() {
		p.ip6 = append(p.ip6, more.Ip)
	}
	if p.ip == "" || status.GetStatus().GetState() != cri.PodSandboxState_SANDBOX_READY {
		t.Fatalf("the pod's status is %v", status)
	}
	return p
}

func containerPIDs() *cri.NamespaceOption {
	return &cri.NamespaceOption{Pid: cri.NamespaceMode_CONTAINER}
}

// remove stops and removes the pod, if it wasn't before.
func (p *criPod) remove() {
	p.t.Helper()
	if p.removed {
		return
	}
	p.removed = true
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), 3*time.Minute)
	defer cancel()
	if _, err := p.service.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.t.Errorf("stop pod: %v", err)
	}
	if _, err := p.service.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.t.Errorf("remove pod: %v", err)
	}
}

// start creates a container in the pod and starts it.
func (p *criPod) start(name string, args []string, edit func(*cri.ContainerConfig)) string {
	p.t.Helper()
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name}, Image: &cri.ImageSpec{Image: kit.BaseImage}, Command: args, LogPath: name + ".log",
		Linux: &cri.LinuxContainerConfig{
			Resources:       &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuPeriod: 100_000, CpuQuota: 100_000},
			SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions},
		},
	}
	if edit != nil {
		edit(config)
	}
	created, err := p.service.CreateContainer(p.ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
	if err != nil {
		p.t.Fatalf("create container %s: %v", name, err)
	}
	if _, err := p.service.StartContainer(p.ctx, &cri.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		p.t.Fatalf("start container %s: %v", name, err)
	}
	return created.ContainerId
}

// exec runs a shell script in a container, as a probe does.
func (p *criPod) exec(container, script string) string {
	p.t.Helper()
	answer, err := p.service.ExecSync(p.ctx, &cri.ExecSyncRequest{ContainerId: container, Cmd: sh(script), Timeout: 120})
	if err != nil {
		p.t.Fatalf("exec %q: %v", script, err)
	}
	if answer.ExitCode != 0 {
		p.t.Errorf("exec %q: status %d, stdout %q, stderr %q", script, answer.ExitCode, answer.Stdout, answer.Stderr)
	}
	return strings.TrimSpace(string(answer.Stdout))
}

func (p *criPod) expect(container, script, want string) {
	p.t.Helper()
	if got := p.exec(container, script); got != want {
		p.t.Errorf("%s: got %q, want %q", script, got, want)
	}
}

// TestCRIPod lives a pod's whole life through the calls that kubelet makes.
func TestCRIPod(t *testing.T) {
	for _, handler := range handlers() {
		t.Run(handler, func(t *testing.T) {
			ctx := checked(t)
			// The bridge is the node's, not the pod's.
			p := runCRIPod(t, ctx, handler, nil)
			one := p.start("one", []string{"/bin/testprog", "listen", ":8080"}, nil)
			two := p.start("two", []string{"/bin/testprog", "shm-write", "4711", "shared memory"}, nil)

			t.Run("separate roots", func(t *testing.T) {
				p.exec(one, "echo mine > /only-one")
				p.expect(two, "ls /only-one 2>/dev/null | wc -l", "0")
			})
			t.Run("separate process ids", func(t *testing.T) {
				p.expect(one, "cat /proc/1/cmdline | tr '\\0' ' '", "/bin/testprog listen :8080")
				p.expect(two, "ps | grep -c '[l]isten' || true", "0")
			})
			t.Run("shared network", func(t *testing.T) {
				eventuallyIn(p, two, "testprog dial 127.0.0.1:8080 near", "heard near")
				p.expect(two, "hostname", "harbour")
				if a, b := p.exec(one, "ip -o addr"), p.exec(two, "ip -o addr"); a != b || !strings.Contains(a, p.ip) {
					t.Errorf("the containers see the addresses\n%s\nand\n%s", a, b)
				}
			})
			t.Run("shared ipc", func(t *testing.T) {
				eventuallyIn(p, one, "testprog shm-read 4711", "shared memory")
				p.exec(one, "echo text > /dev/shm/file")
				p.expect(two, "cat /dev/shm/file", "text")
			})
			t.Run("network", func(t *testing.T) { testPodNetwork(t, p, one) })
			t.Run("resolv.conf", func(t *testing.T) {
				p.expect(one, "cat /etc/resolv.conf", "search default.svc.cluster.local\nnameserver 10.77.0.53\noptions ndots:5")
				p.expect(one, "cat /etc/hostname", "harbour")
			})
			t.Run("exec", func(t *testing.T) {
				answer, err := p.service.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: one, Cmd: sh("echo out; echo err >&2; exit 5"), Timeout: 60})
				if err != nil || answer.ExitCode != 5 || string(answer.Stdout) != "out\n" || string(answer.Stderr) != "err\n" {
					t.Errorf("exec answers %v (%v)", answer, err)
				}
			})
			t.Run("logs", func(t *testing.T) { testLogs(t, p) })
			t.Run("stats", func(t *testing.T) {
				answer, err := p.service.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: one})
				if err != nil {
					t.Fatal(err)
				}
				if answer.GetStats().GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || answer.GetStats().GetMemory().GetWorkingSetBytes().GetValue() == 0 {
					t.Errorf("stats are %v", answer.GetStats())
				}
				if _, err := p.service.PodSandboxStats(ctx, &cri.PodSandboxStatsRequest{PodSandboxId: p.id}); err != nil {
					t.Errorf("stats of the pod: %v", err)
				}
			})
			t.Run("stop and start again", func(t *testing.T) {
				if _, err := p.service.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: one, Timeout: 60}); err != nil {
					t.Fatal(err)
				}
				if _, err := p.service.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: one}); err != nil {
					t.Fatal(err)
				}
				again := p.start("one", []string{"/bin/testprog", "pause"}, func(c *cri.ContainerConfig) { c.Metadata.Attempt = 1 })
				p.expect(again, "ls /only-one 2>/dev/null | wc -l", "0")
			})
		})
	}
}

// eventuallyIn repeats a command in a container until it answers as it should: a server in another has to come up first.
func eventuallyIn(p *criPod, container, script, want string) {
	p.t.Helper()
	eventually(p.t, func() string {
		answer, err := p.service.ExecSync(p.ctx, &cri.ExecSyncRequest{ContainerId: container, Cmd: sh(script), Timeout: 60})
		if err != nil || strings.TrimSpace(string(answer.Stdout)) != want {
			return fmt.Sprintf("%s answers %v (%v), want %q", script, answer, err, want)
		}
		return ""
	})
}

// testPodNetwork goes both ways between the pod and the machine on whose bridge it is, over both families.
func testPodNetwork(t *testing.T, p *criPod, container string) {
	for _, ip := range append([]string{p.ip}, p.ip6...) {
		eventually(t, func() string {
			conn, err := net.DialTimeout("tcp", net.JoinHostPort(ip, "8080"), 10*time.Second)
			if err != nil {
				return err.Error()
			}
			defer conn.Close()
			if _, err := fmt.Fprintln(conn, "far"); err != nil {
				return err.Error()
			}
			answer := make([]byte, 32)
			conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			n, err := conn.Read(answer)
			if got := string(answer[:n]); got != "heard far\n" {
				return fmt.Sprintf("%s answers %q (%v)", ip, got, err)
			}
			return ""
		})
	}
	if len(p.ip6) == 0 {
		t.Errorf("the pod has no IPv6 address")
	}
	listener, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(conn, conn.RemoteAddr().(*net.TCPAddr).IP)
			conn.Close()
		}
	}()
	port := listener.Addr().(*net.TCPAddr).Port
	bridge, err := net.InterfaceByName(suite.node.Bridge())
	if err != nil {
		t.Fatal(err)
	}
	addresses, err := bridge.Addrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range addresses {
		gateway := address.(*net.IPNet).IP
		source := p.ip
		if gateway.To4() == nil {
			source = strings.Join(p.ip6, "")
		}
		if gateway.IsLinkLocalUnicast() {
			continue
		}
		eventuallyIn(p, container, fmt.Sprintf("testprog dial %s x", net.JoinHostPort(gateway.String(), fmt.Sprint(port))), source)
		p.expect(container, fmt.Sprintf("(ip route; ip -6 route) | grep -c '^default via %s '", gateway), "1")
	}
	p.expect(container, "cat /sys/class/net/eth0/mtu", fmt.Sprint(bridge.MTU))
}

// testLogs compares what kubectl logs would show with what the container wrote, of both streams, to the last byte.
func testLogs(t *testing.T, p *criPod) {
	const lines = 5000
	id := p.start("talk", sh(fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; i=$((i+1)); done; echo problem >&2; printf unended", lines)), nil)
	eventually(t, func() string {
		status, err := p.service.ContainerStatus(p.ctx, &cri.ContainerStatusRequest{ContainerId: id})
		if err != nil || status.GetStatus().GetState() != cri.ContainerState_CONTAINER_EXITED {
			return fmt.Sprintf("the container is %v (%v)", status.GetStatus().GetState(), err)
		}
		return ""
	})
	var want bytes.Buffer
	for i := range lines {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	want.WriteString("unended")
	eventually(t, func() string {
		data, err := os.ReadFile(filepath.Join(p.config.LogDirectory, "talk.log"))
		if err != nil {
			return err.Error()
		}
		var stdout, stderr bytes.Buffer
		for line := range strings.Lines(string(data)) {
			fields := strings.SplitN(line, " ", 4) // time, stream, P or F, text
			if len(fields) != 4 {
				return fmt.Sprintf("log line %q", line)
			}
			text := fields[3]
			if fields[2] == "P" {
				text = strings.TrimSuffix(text, "\n")
			}
			if fields[1] == "stderr" {
				stderr.WriteString(text)
			} else {
				stdout.WriteString(text)
			}
		}
		// Whether a last line without an end gets one is containerd's affair.
		if got := strings.TrimSuffix(stdout.String(), "\n"); got != want.String() || stderr.String() != "problem\n" {
			return fmt.Sprintf("the log has %d bytes of stdout and %q of stderr, want %d bytes", len(got), stderr.String(), want.Len())
		}
		return ""
	})
}

// TestCRISharedPIDs asks for one PID namespace for the pod, and for a sysctl and a user.
func TestCRISharedPIDs(t *testing.T) {
	ctx := checked(t)
	p := runCRIPod(t, ctx, handlers()[0], func(c *cri.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &cri.NamespaceOption{Pid: cri.NamespaceMode_POD}
		c.Linux.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": "20000 30000"}
	})
	p.start("one", []string{"/bin/sleep", "12345"}, nil)
	two := p.start("two", []string{"/bin/testprog", "pause"}, func(c *cri.ContainerConfig) {
		c.Linux.SecurityContext.RunAsUser = &cri.Int64Value{Value: 1000}
		c.Linux.SecurityContext.SupplementalGroups = []int64{4000}
		c.Linux.SecurityContext.NoNewPrivs = true
		c.Linux.SecurityContext.ReadonlyRootfs = true
		c.Linux.SecurityContext.Capabilities = &cri.Capability{DropCapabilities: []string{"ALL"}}
		c.Envs = []*cri.KeyValue{{Key: "GREETING", Value: []byte("ahoy")}}
		c.WorkingDir = "/home/app"
	})
	_, err := p.service.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "three"}, Image: &cri.ImageSpec{Image: kit.BaseImage},
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
			RunAsUsername: "stowaway", NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions}},
	}})
	clearError(t, err, nil, "user") // containerd looks it up itself, and does not name it
	p.expect(two, "ps | grep -c '[s]leep 12345'", "1")
	p.expect(two, "cat /proc/sys/net/ipv4/ip_local_port_range", "20000\t30000")
	p.expect(two, "id -u; id -G; pwd; echo $GREETING; grep -E '^(CapBnd|NoNewPrivs):' /proc/self/status | cut -f2; touch /x 2>/dev/null || echo read-only",
		"1000\n1000 2000 4000\n/home/app\nahoy\n0000000000000000\n1\nread-only")
}

// TestCRIHostNetworkIsRefused: a pod with the host's network would have no wall.
func TestCRIHostNetworkIsRefused(t *testing.T) {
	onlyVM(t, "ordinary pods may have it")
	for _, handler := range handlers() {
		t.Run(handler, func(t *testing.T) {
			ctx := checked(t)
			name := kit.NewID()
			answer, err := criClient(t).RunPodSandbox(ctx, &cri.RunPodSandboxRequest{RuntimeHandler: handler, Config: &cri.PodSandboxConfig{
				Metadata: &cri.PodSandboxMetadata{Name: name, Uid: name, Namespace: "default"}, LogDirectory: t.TempDir(),
				Linux: &cri.LinuxPodSandboxConfig{CgroupParent: "/" + cell.Token(), SecurityContext: &cri.LinuxSandboxSecurityContext{
					NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}}},
			}})
			clearError(t, err, answer, "network")
		})
	}
}
