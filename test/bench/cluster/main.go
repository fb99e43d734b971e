// Cluster measures what an embedded cluster costs: the time to create and delete it, its memory, the time from a manifest to a
// ready pod, ordinary and sandboxed by turns, and how much memory of the host a sandboxed pod takes beyond what its container
// uses, at several sizes. It prints Markdown tables to standard output, which docs/performance.md explains, and what it is doing
// to standard error.
//
//	go run ./bench/cluster [-samples 5] [-bin DIR] [-guest DIR]
//
// It works by the command line, as a user would. It needs root, and runs in namespaces of its own (package cell).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"bulkhead.dev/bulkhead/test/cell"
)

const image = "bulkhead.dev/busybox:1"

func main() {
	cell.Main(func() int {
		if err := run(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
		return 0
	})
}

// bench is one run.
type bench struct {
	ctx        context.Context
	bin, state string
	samples    int
}

func run() error {
	samples := flag.Int("samples", 5, "how often each thing is measured")
	bin := flag.String("bin", "../bin", "directory of the programs")
	guest := flag.String("guest", "../.state/guest", "directory of the guest image")
	flag.Parse()
	if *samples < 1 || flag.NArg() > 0 {
		return errors.New("samples is a number of at least 1, and there are no arguments")
	}
	b := bench{ctx: context.Background(), state: filepath.Join(cell.Dir(), "state"), samples: *samples}
	var err error
	if b.bin, err = filepath.Abs(*bin); err != nil {
		return err
	}
	if err := os.CopyFS(filepath.Join(b.state, "guest"), os.DirFS(*guest)); err != nil {
		return fmt.Errorf("copy the guest image: %w", err)
	}
	if err := b.bulkhead("feature", "register", "EmulatedVMIsolation"); err != nil {
		return err
	}
	archive := filepath.Join(cell.Dir(), "busybox.tar")
	if err := b.bulkhead("image", "busybox", "--name", image, "--output", archive); err != nil {
		return err
	}
	return b.measure(archive)
}

func (b bench) measure(archive string) error {
	create, remove, err := b.cycles()
	if err != nil {
		return err
	}
	if err := b.create(); err != nil {
		return err
	}
	if err := b.bulkhead("image", "load", "--cluster-name", "bench", archive); err != nil {
		return err
	}
	progress("memory, once it has come to rest")
	time.Sleep(30 * time.Second)
	memory, err := clusterMemory(b.bin)
	if err != nil {
		return err
	}
	ordinary, sandboxed, err := b.pods()
	if err != nil {
		return err
	}
	pss, rss := memory.sum()
	fmt.Printf("%s; %d samples.\n\n| what | unit | p50 | largest | aim |\n|---|---|---:|---:|---|\n", time.Now().UTC().Format(time.DateOnly), b.samples)
	for _, r := range []struct {
		what, aim string
		values    []time.Duration
	}{
		{"Create a cluster of one node, until pods can be created", "≤ 25", create},
		{"Delete it", "≤ 15", remove},
		{"Ordinary pod, `kubectl apply` to Ready", "≤ 1.5", ordinary},
		{"Sandboxed pod (`bulkhead`), `kubectl apply` to Ready", "–", sandboxed},
	} {
		slices.Sort(r.values)
		fmt.Printf("| %s | s | %.1f | %.1f | %s |\n", r.what, r.values[(len(r.values)-1)/2].Seconds(), r.values[len(r.values)-1].Seconds(), r.aim)
	}
	fmt.Printf("| Memory of control plane and one idle node, each page once (PSS) | MB | %d | | ≤ 900 |\n", pss)
	fmt.Printf("| the same, with shared pages counted for each process (RSS) | MB | %d | | |\n\n", rss)
	fmt.Print(memory.table(), "\n")
	overhead, err := b.overheads()
	if err != nil {
		return err
	}
	fmt.Print(overhead)
	return b.bulkhead("cluster", "delete", "bench")
}

func (b bench) create() error {
	return b.bulkhead("cluster", "create", "bench", "--workload-runtime", "vm-isolation")
}

// cycles creates and deletes clusters. The first isn't counted: it probes the host for what runs VMs.
func (b bench) cycles() (create, remove []time.Duration, err error) {
	for i := range b.samples + 1 {
		progress("cluster %d of %d", i, b.samples)
		began := time.Now()
		if err := b.create(); err != nil {
			return nil, nil, err
		}
		created := time.Since(began)
		began = time.Now()
		if err := b.bulkhead("cluster", "delete", "bench"); err != nil {
			return nil, nil, err
		}
		if i > 0 {
			create, remove = append(create, created), append(remove, time.Since(began))
		}
	}
	return create, remove, nil
}

// pods starts ordinary and sandboxed pods by turns. The first of each isn't counted: it fills the node's caches.
func (b bench) pods() (ordinary, sandboxed []time.Duration, err error) {
	for i := range b.samples + 1 {
		progress("pod %d of %d", i, b.samples)
		for _, class := range []string{"", "bulkhead"} {
			began := time.Now()
			if err := b.pod("pod", class, "", "sleep 100000"); err != nil {
				return nil, nil, err
			}
			took := time.Since(began)
			if _, err := b.kubectl("", "delete", "pod", "pod", "--grace-period=1"); err != nil {
				return nil, nil, err
			}
			switch {
			case i == 0:
			case class == "":
				ordinary = append(ordinary, took)
			default:
				sandboxed = append(sandboxed, took)
			}
		}
	}
	return ordinary, sandboxed, nil
}

// pod applies a pod and returns when it is ready.
func (b bench) pod(name, class, limit, command string) error {
	manifest := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n", name)
	if class != "" {
		manifest += "  runtimeClassName: " + class + "\n"
	}
	manifest += fmt.Sprintf("  containers:\n  - name: main\n    image: %s\n    command: [sh, -c, %q]\n", image, command)
	if limit != "" {
		manifest += fmt.Sprintf("    resources: {limits: {memory: %s}}\n", limit)
	}
	if _, err := b.kubectl(manifest, "apply", "-f", "-"); err != nil {
		return err
	}
	_, err := b.kubectl("", "wait", "--for=condition=Ready", "--timeout=180s", "pod/"+name)
	return err
}

func (b bench) bulkhead(args ...string) error {
	cmd := exec.CommandContext(b.ctx, filepath.Join(b.bin, "bulkhead"), append(args, stateFlag(args, b.state)...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("bulkhead %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// stateFlag says where clusters are, to the commands that have to do with them.
func stateFlag(args []string, state string) []string {
	if args[0] == "image" && args[1] == "busybox" {
		return nil
	}
	return []string{"--state-dir", state}
}

func (b bench) kubectl(stdin string, args ...string) (string, error) {
	config := filepath.Join(b.state, "clusters", "bench", "kubeconfig", "admin.conf")
	cmd := exec.CommandContext(b.ctx, filepath.Join(b.bin, "bulkhead-kube"), append([]string{"kubectl", "--kubeconfig", config}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

func progress(format string, values ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", values...)
}
