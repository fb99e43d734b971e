//go:build root

package shim

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	bootstrapapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	"bulkhead.dev/bulkhead/internal/config"
)

const patience = 30 * time.Second

// bundleOf makes a bundle as containerd does, with the fifo for the log.
func bundleOf(t *testing.T, id string) string {
	t.Helper()
	bundle := filepath.Join(t.TempDir(), id)
	if err := os.MkdirAll(filepath.Join(bundle, "rootfs"), 0o711); err != nil {
		t.Fatal(err)
	}
	spec := `{"ociVersion":"1.2.0","process":{"args":["true"],"cwd":"/"},"root":{"path":"rootfs"},
		"linux":{"namespaces":[{"type":"network"},{"type":"pid"},{"type":"mount"},{"type":"ipc"},{"type":"uts"}]}}`
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), []byte(spec), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(bundle, "log"), 0o700); err != nil {
		t.Fatal(err)
	}
	return bundle
}

// verb runs a verb as containerd does, and returns its standard output.
func verb(t *testing.T, bundle, name string, input []byte, env ...string) []byte {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-namespace", "ns", "-id", filepath.Base(bundle), "-address", t.Name(), "-publish-binary", "", "-bundle", bundle, name)
	cmd.Dir = bundle
	cmd.Env = append(append(os.Environ(), asShim+"=1"), env...)
	cmd.Stdin = bytes.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, &stderr)
	}
	if stderr.Len() > 0 {
		t.Errorf("%s writes %q to standard error, which containerd takes for its answer", name, &stderr)
	}
	return stdout.Bytes()
}

func connect(t *testing.T, address string) taskapi.TTRPCTaskService {
	t.Helper()
	conn, err := net.Dial("unix", strings.TrimPrefix(address, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	client := ttrpc.NewClient(conn)
	t.Cleanup(func() { client.Close() })
	return taskapi.NewTTRPCTaskClient(client)
}

func startModern(t *testing.T, bundle string) string {
	t.Helper()
	sockets, err := os.MkdirTemp("", "bh") // the paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	input := marshal(t, &bootstrapapi.BootstrapParams{InstanceID: filepath.Base(bundle), Namespace: "ns", SocketDir: &sockets, LogLevel: bootstrapapi.LogLevel_LOG_LEVEL_DEBUG})
	var result bootstrapapi.BootstrapResult
	if err := proto.Unmarshal(verb(t, bundle, "start", input), &result); err != nil {
		t.Fatal(err)
	}
	if result.Version != 3 || result.Protocol != "ttrpc" {
		t.Errorf("result %v", &result)
	}
	t.Cleanup(func() { verb(t, bundle, "delete", nil) }) // whatever the test did
	return result.Address
}

func pidOf(t *testing.T, bundle string) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(bundle, pidFile))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(string(data))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// gone waits until a process has ended. It may stay a zombie, of whoever adopted it.
func gone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
	}
	t.Errorf("process %d lives on", pid)
}

func noSocket(t *testing.T, address string) {
	t.Helper()
	if _, err := os.Lstat(strings.TrimPrefix(address, "unix://")); !os.IsNotExist(err) {
		t.Errorf("socket %s: %v", address, err)
	}
}

func TestProcessEndsWhenItIsShutDown(t *testing.T) {
	bundle := bundleOf(t, "c1")
	address := startModern(t, bundle)
	if got := readAddress(bundle); got != address {
		t.Errorf("the bundle names %q, the answer %q", got, address)
	}
	client := connect(t, address)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	answer, err := client.Connect(ctx, &taskapi.ConnectRequest{ID: "c1"})
	if err != nil {
		t.Fatal(err)
	}
	pid := pidOf(t, bundle)
	if int(answer.ShimPid) != pid {
		t.Errorf("shim %d, recorded as %d", answer.ShimPid, pid)
	}
	if sid, err := syscall.Getpgid(pid); err != nil || sid != pid {
		t.Errorf("the shim is in group %d, %v", sid, err)
	}
	if _, err := client.Shutdown(ctx, &taskapi.ShutdownRequest{ID: "c1"}); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	gone(t, pid)
	noSocket(t, address)
}

func TestSecondStartFindsTheFirst(t *testing.T) {
	bundle := bundleOf(t, "c1")
	address := startModern(t, bundle)
	pid := pidOf(t, bundle)
	sockets := filepath.Dir(strings.TrimPrefix(address, "unix://"))
	input := marshal(t, &bootstrapapi.BootstrapParams{InstanceID: "c1", Namespace: "ns", SocketDir: &sockets})
	var result bootstrapapi.BootstrapResult
	if err := proto.Unmarshal(verb(t, bundle, "start", input), &result); err != nil || result.Address != address {
		t.Errorf("second start: %v, %v", &result, err)
	}
	if now := pidOf(t, bundle); now != pid {
		t.Errorf("a second shim %d beside %d", now, pid)
	}
}

func TestOlderForm(t *testing.T) {
	bundle := bundleOf(t, "c1")
	address := string(verb(t, bundle, "start", nil))
	t.Cleanup(func() { verb(t, bundle, "delete", nil) })
	if !strings.HasPrefix(address, "unix://"+defaultSocketDir+"/") {
		t.Fatalf("address %q", address)
	}
	client := connect(t, address)
	if _, err := client.Connect(t.Context(), &taskapi.ConnectRequest{ID: "c1"}); err != nil {
		t.Error(err)
	}
}

func TestDeleteAfterAKill(t *testing.T) {
	bundle := bundleOf(t, "c1")
	address := startModern(t, bundle)
	pid := pidOf(t, bundle)
	// As if it had died after it began a sandbox.
	dir := filepath.Join(t.TempDir(), "sandbox")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeRecord(bundle, sandboxFile, sandboxRecord{Version: 1, Dir: dir, Config: config.Default()}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for range 2 { // twice is no error
		var answer taskapi.DeleteResponse
		if err := proto.Unmarshal(verb(t, bundle, "delete", nil), &answer); err != nil {
			t.Fatal(err)
		}
		if answer.ExitStatus != 137 || int(answer.Pid) != pid || answer.ExitedAt.AsTime().Unix() <= 0 {
			t.Errorf("answer %v", &answer)
		}
	}
	gone(t, pid)
	noSocket(t, address)
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Errorf("the sandbox's directory: %v", err)
	}
}

func TestDeleteEndsAShimThatHangs(t *testing.T) {
	bundle := bundleOf(t, "c1")
	address := startModern(t, bundle)
	pid := pidOf(t, bundle)
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	verb(t, bundle, "delete", nil)
	gone(t, pid)
	noSocket(t, address)
}

func TestDeleteOfAContainerSparesThePod(t *testing.T) {
	bundle := bundleOf(t, "p1")
	startModern(t, bundle)
	pid := pidOf(t, bundle)
	container := filepath.Join(filepath.Dir(bundle), "c1")
	if err := os.Mkdir(container, 0o700); err != nil {
		t.Fatal(err)
	}
	verb(t, container, "delete", nil)
	if err := syscall.Kill(pid, 0); err != nil {
		t.Errorf("the shim of the pod: %v", err)
	}
}

func TestDeleteUnmountsTheRoot(t *testing.T) {
	bundle := bundleOf(t, "c1")
	root := filepath.Join(bundle, "rootfs")
	for range 2 {
		if err := syscall.Mount("x", root, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	verb(t, bundle, "delete", nil)
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), root) {
		t.Errorf("mounts are left, %v", err)
	}
}

func TestSignalEndsTheProcess(t *testing.T) {
	bundle := bundleOf(t, "c1")
	address := startModern(t, bundle)
	pid := pidOf(t, bundle)
	if _, err := connect(t, address).Connect(t.Context(), &taskapi.ConnectRequest{}); err != nil {
		t.Fatal(err) // it runs
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	gone(t, pid)
	noSocket(t, address)
}

func TestHostThatCanRunNoVM(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.toml")
	text := "version = 1\nstate_dir = \"" + dir + "/state\"\nrun_dir = \"" + dir + "/run\"\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(config.PathVariable, file)
	bundle := bundleOf(t, "c1")
	client := connect(t, startModern(t, bundle))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err := client.Create(ctx, &taskapi.CreateTaskRequest{ID: "c1", Bundle: bundle})
	if native := errgrpc.ToNative(err); !errdefs.IsFailedPrecondition(native) || !strings.Contains(native.Error(), "guest") {
		t.Errorf("create without a guest image: %v", native)
	}
	if _, err := client.Shutdown(ctx, &taskapi.ShutdownRequest{}); err != nil {
		t.Error(err)
	}
	gone(t, pidOf(t, bundle))
	if left, err := filepath.Glob(dir + "/run/*/*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestResidentMemory(t *testing.T) {
	bundle := bundleOf(t, "c1")
	client := connect(t, startModern(t, bundle))
	if _, err := client.Connect(t.Context(), &taskapi.ConnectRequest{}); err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pidOf(t, bundle)) + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "RssAnon") {
			t.Log(strings.TrimSpace(line))
		}
		if kib, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			if n, err := strconv.Atoi(strings.Fields(kib)[0]); err != nil || n > 20<<10 {
				t.Errorf("private memory %q", line)
			}
		}
	}
}
