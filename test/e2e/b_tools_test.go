//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"bulkhead.dev/bulkhead/test/kit"
)

// inBoth runs a test with an ordinary and a sandboxed pod, side by side.
func inBoth(t *testing.T, f func(t *testing.T, k client, pod string)) {
	t.Helper()
	k := shared(t)
	for kind, pod := range map[string]string{"ordinary": ordinary0, "sandboxed": sandboxed0} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f(t, k, pod)
		})
	}
}

func TestExec(t *testing.T) {
	inBoth(t, func(t *testing.T, k client, pod string) {
		into := func(args ...string) []string {
			return append([]string{"exec", "-i", pod, "-c", mainContainer, "--"}, args...)
		}
		if r := k.try(into("sh", "-c", "echo out; echo err >&2; exit 7")...); r.code != 7 || r.stdout != "out\n" || !strings.HasPrefix(r.stderr, "err\n") {
			t.Errorf("exit code %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
		}
		// 1 MiB through both directions, to the last byte.
		data := strings.Repeat("0123456789abcde\n", 1<<16)
		if r := k.feed(data, into("cat")...); r.stdout != data {
			t.Errorf("of %d bytes through cat, %d came back; %v", len(data), len(r.stdout), r.failure())
		}
		if r := k.try(into("nonsense")...); r.code == 0 || !strings.Contains(r.stderr, "nonsense") {
			t.Errorf("a program that isn't there: exit code %d, stderr %q", r.code, r.stderr)
		}
		if r := k.try("exec", pod, "-c", shellContainer, "--", "sh", "-c", "cat /proc/[0-9]*/cmdline"); strings.Contains(r.stdout, "serve\x008080") {
			t.Errorf("container %s sees the processes of %s: %q", shellContainer, mainContainer, r.stdout)
		}
	})
}

func TestExecOnTerminal(t *testing.T) {
	inBoth(t, func(t *testing.T, k client, pod string) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*generous)
		defer cancel()
		s := startOnTerminal(t, k.command(ctx, "exec", "-it", pod, "-c", mainContainer, "--", "sh"), 33, 111)
		s.typeLine(t, "test -t 0 && test -t 1 && echo ter''minal")
		s.says(t, "terminal\r\n")
		s.typeLine(t, "stty size")
		s.says(t, "33 111\r\n")
		s.typeLine(t, "exit 5")
		var exit *exec.ExitError
		if err := s.end(t); !errors.As(err, &exit) || exit.ExitCode() != 5 {
			t.Errorf("it ended with %v after %q", err, s.output)
		}
	})
}

func TestLogsAndAttach(t *testing.T) {
	inBoth(t, func(t *testing.T, k client, pod string) {
		ctx, cancel := context.WithTimeout(context.Background(), 2*generous)
		defer cancel()
		logs := start(t, k.command(ctx, "logs", "-f", pod, "-c", shellContainer))
		logs.says(t, "began\n")
		attached := start(t, k.command(ctx, "attach", "-i", pod, "-c", shellContainer))
		attached.typeLine(t, "one line")
		attached.says(t, "got one line\n")
		logs.says(t, "got one line\n")
		attached.typeLine(t, "another")
		attached.says(t, "got another\n")
		if all := k.run(t, "logs", pod, "-c", shellContainer); all != "began\ngot one line\ngot another" {
			t.Errorf("the logs are %q", all)
		}
		if last := k.run(t, "logs", pod, "-c", shellContainer, "--tail=1"); last != "got another" {
			t.Errorf("the last line is %q", last)
		}
	})
}

func TestCopy(t *testing.T) {
	inBoth(t, func(t *testing.T, k client, pod string) {
		// tar of a real tree: a binary file, an empty one, a directory.
		source, back := filepath.Join(t.TempDir(), "tree"), filepath.Join(t.TempDir(), "back")
		blob := make([]byte, 3<<20)
		if _, err := rand.Read(blob); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(source, "below"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string][]byte{"blob": blob, "below/empty": nil, "below/text": []byte("text\n")} {
			if err := os.WriteFile(filepath.Join(source, name), content, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		k.run(t, "cp", source, pod+":/tmp/tree", "-c", mainContainer)
		if text := k.exec(t, pod, "cat", "/tmp/tree/below/text"); text != "text" {
			t.Errorf("in the pod the file is %q", text)
		}
		k.run(t, "cp", pod+":/tmp/tree", back, "-c", mainContainer)
		for name, want := range map[string][]byte{"blob": blob, "below/empty": nil, "below/text": []byte("text\n")} {
			if got, err := os.ReadFile(filepath.Join(back, name)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s came back with %d bytes of %d, or others (%v)", name, len(got), len(want), err)
			}
		}
		k.exec(t, pod, "rm", "-r", "/tmp/tree")
	})
}

// forwardPort forwards a port of the pod and returns the local address.
func forwardPort(t *testing.T, k client, pod string, port int) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*generous)
	t.Cleanup(cancel)
	forward := start(t, k.command(ctx, "port-forward", "pod/"+pod, fmt.Sprintf(":%d", port)))
	forward.says(t, "Forwarding from 127.0.0.1:")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("port-forward says %q", forward.output)
		}
	})
	local := regexp.MustCompile(fmt.Sprintf(`127\.0\.0\.1:[0-9]+ -> %d`, port)).FindString(forward.output.String())
	if local == "" {
		t.Fatalf("port-forward says %q", forward.output)
	}
	address, _, _ := strings.Cut(local, " ")
	return address
}

// tell sends a line and returns the answer.
func tell(address, line string) (string, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(generous)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSuffix(answer, "\n"), err
}

const listeners = `
apiVersion: v1
kind: Pod
metadata: {name: listeners}
spec:
  runtimeClassName: %s
  terminationGracePeriodSeconds: 1
  containers:
  - {name: ipv4, image: %[2]s, command: [testprog, listen, "127.0.0.1:9004"]}
  - {name: ipv6, image: %[2]s, command: [testprog, listen, "[::1]:9006"]}
`

func TestPortForward(t *testing.T) {
	k, own := shared(t), newNamespace(t, "forward")
	own.apply(t, fmt.Sprintf(listeners, classMSHV, kit.BaseImage))
	for _, pod := range []string{ordinary0, sandboxed1} {
		t.Run(pod, func(t *testing.T) {
			address := forwardPort(t, k, pod, 8080)
			for i := range 3 {
				if answer, err := tell(address, fmt.Sprintf("line %d", i)); err != nil || answer != fmt.Sprintf("%s heard line %d", pod, i) {
					t.Errorf("the answer is %q, %v", answer, err)
				}
			}
		})
	}
	// What listens on a sandboxed pod's own loopback addresses is in the VM, and reached all the same.
	own.ready(t, "listeners")
	for _, port := range []int{9004, 9006} {
		t.Run(fmt.Sprintf("loopback %d", port), func(t *testing.T) {
			address := forwardPort(t, own, "listeners", port)
			var all sync.WaitGroup
			for i := range 100 {
				all.Go(func() {
					if answer, err := tell(address, fmt.Sprintf("line %d", i)); err != nil || answer != fmt.Sprintf("heard line %d", i) {
						t.Errorf("answer %d is %q, %v", i, answer, err)
					}
				})
			}
			all.Wait()
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		if answer, err := tell(forwardPort(t, own, "listeners", 9999), "line"); err == nil {
			t.Errorf("the answer is %q", answer)
		}
	})
}

// An ephemeral container with a target sees its processes: in an ordinary pod, and in a sandboxed one where the target is the
// only container that could be meant, or where all share their process IDs (docs/adr/0007-task-pids.md).
func TestDebug(t *testing.T) {
	k, own := shared(t), newNamespace(t, "debug")
	own.apply(t, plainPod(t, "alone", classMSHV))
	own.ready(t, "alone")
	for _, c := range []struct {
		client
		pod string
	}{{k, ordinary0}, {k, sandboxed1}, {own, "alone"}} {
		t.Run(c.pod, func(t *testing.T) {
			t.Parallel()
			k := c.client
			kernel := k.exec(t, c.pod, "uname", "-r")
			ctx, cancel := context.WithTimeout(context.Background(), 2*generous)
			defer cancel()
			s := startOnTerminal(t, k.command(ctx, "debug", "-it", c.pod, "--image="+kit.BaseImage, "--target="+mainContainer,
				"--container=debugger", "--profile=baseline", "--", "sh"), 40, 200)
			// The prompt comes when the container runs and kubectl is attached; what is typed before that is lost.
			s.says(t, "# ")
			s.typeLine(t, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; echo; echo do''ne")
			s.says(t, "done\r\n")
			if !strings.Contains(s.output.String(), "testprog serve 8080") {
				t.Errorf("the debugger doesn't see processes of its target; it says %q", s.output)
			}
			s.typeLine(t, "echo kernel $(uname -r) $(hostname)")
			s.says(t, "kernel "+kernel+" "+c.pod+"\r\n")
			s.typeLine(t, "exit")
			if err := s.end(t); err != nil {
				t.Errorf("kubectl debug: %v: %q", err, s.output)
			}
			if image := k.get(t, "pod/"+c.pod, "{.spec.ephemeralContainers[?(@.name=='debugger')].image}"); image != kit.BaseImage {
				t.Errorf("the pod's ephemeral container has the image %q", image)
			}
		})
	}
}

func TestTop(t *testing.T) {
	k := shared(t)
	eventually(t, func() string {
		nodes, pods := k.try("top", "node", "--no-headers"), k.try("top", "pod", "--containers", "--no-headers")
		for _, r := range []result{nodes, pods} {
			if err := r.failure(); err != nil {
				return err.Error()
			}
		}
		if lines := strings.Count(nodes.stdout, "\n"); lines != 2 || strings.Contains(nodes.stdout, "<unknown>") {
			return "of two nodes: " + nodes.stdout
		}
		for _, pod := range sharedPods() {
			for _, container := range []string{mainContainer, shellContainer} {
				if !regexp.MustCompile(`(?m)^` + pod + `\s+` + container + `\s+[0-9]+m\s+[0-9]+Mi`).MatchString(pods.stdout) {
					return "there is nothing of " + pod + " " + container + " in:\n" + pods.stdout
				}
			}
		}
		return ""
	})
}
