//go:build e2e

// Package e2e tests a cluster as a user meets it: by the programs bulkhead and kubectl, with pods of both kinds, ordinary ones
// and sandboxed ones, on two nodes.
//
//	TestMain ─ cell ─ cluster "e2e": create ── fixtures ── tests ── delete ─ leak check
//
// Making a cluster takes most of a minute and a VM seconds to boot where it is emulated, so the tests share one cluster, and
// its fixtures wherever a pod of their own isn't what they are about (see fixtures). Tests run one after another in the order
// of the files: those that disturb the cluster are in files that begin with "z". What takes minutes of waiting runs only with
// BULKHEAD_TEST_LONG=1.
package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/test/cell"
	"bulkhead.dev/bulkhead/test/kit"
	"bulkhead.dev/bulkhead/test/leak"
)

// generous is a deadline for one step. It tells "hangs" from "slow" and nothing else.
const generous = 3 * time.Minute

const (
	clusterName = "e2e"
	// busybox is the image of the examples.
	busybox = "bulkhead.dev/busybox:1"
)

// clusterConfig has what the tests tell from the defaults: stricter pod security, and the cluster's registry as a mirror.
const clusterConfig = `apiVersion: bulkhead.dev/v1alpha1
kind: ClusterConfig
podSecurity:
  enforce: baseline
  audit: restricted
  warn: restricted
  exemptNamespaces: [exempt]
registry:
  mirrors:
    docker.io: [local]
`

// suite is what the tests of this run share.
var suite struct {
	dir, bin, state string
	// images are archives to load, by name.
	busybox, base string
	kubeconfig    string
}

func TestMain(m *testing.M) {
	cell.Main(func() int {
		if err := prepare(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e tier can't run:", err)
			return 1
		}
		before, err := leak.Take(scope())
		if err != nil {
			fmt.Fprintln(os.Stderr, "e2e tier can't run:", err)
			return 1
		}
		code := 1
		if err := setUp(); err != nil {
			fmt.Fprintln(os.Stderr, "e2e tier: make the cluster:", err)
			fmt.Fprintln(os.Stderr, tails())
		} else {
			code = m.Run()
		}
		if os.Getenv("BULKHEAD_TEST_KEEP") != "" {
			return code
		}
		if err := tearDown(before); err != nil {
			fmt.Fprintln(os.Stderr, "e2e tier:", err)
			code = 1
		}
		return code
	})
}

// prepare makes what a cluster needs and what is there before it.
func prepare() error {
	suite.dir = cell.Dir()
	suite.state = filepath.Join(suite.dir, "state")
	suite.kubeconfig = filepath.Join(suite.dir, "kubeconfig")
	var err error
	if suite.bin, err = filepath.Abs(either("BULKHEAD_TEST_BIN", "../../bin")); err != nil {
		return err
	}
	guest, err := filepath.Abs(either("BULKHEAD_GUEST_DIR", "../../.state/guest"))
	if err != nil {
		return err
	}
	if err := os.Mkdir(suite.state, 0o711); err != nil {
		return err
	}
	if err := os.CopyFS(filepath.Join(suite.state, "guest"), os.DirFS(guest)); err != nil {
		return fmt.Errorf("copy the guest image: %w", err)
	}
	if err := os.WriteFile(filepath.Join(suite.dir, "cluster.yaml"), []byte(clusterConfig), 0o600); err != nil {
		return err
	}
	// The go command's caches are in the home directory: the images, which it builds a program for, come before the next step.
	if err := prepareImages(); err != nil {
		return err
	}
	for _, dir := range emptied() {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("mount an empty directory on %s: %w", dir, err)
		}
	}
	// kubectl and bulkhead write below the home directory.
	home := filepath.Join(suite.dir, "home")
	if err := errors.Join(os.Mkdir(home, 0o700), os.Setenv("HOME", home), os.Setenv("BULKHEAD_STATE_DIR", suite.state), os.Unsetenv("KUBECONFIG")); err != nil {
		return err
	}
	// The tests' own clusters, by the name that their control groups have.
	for _, name := range []string{clusterName, "second", "third"} {
		if err := cell.Claim("bulkhead-" + clusterID(name)); err != nil {
			return err
		}
	}
	return prepareFeature()
}

func either(variable, fallback string) string {
	if value := os.Getenv(variable); value != "" {
		return value
	}
	return fallback
}

// prepareFeature registers the preview feature that makes pools with VMs possible without hardware. Where there is hardware
// it isn't needed, and does no harm.
func prepareFeature() error {
	return limited(func(ctx context.Context) error {
		return bulkhead(ctx, "feature", "register", "EmulatedVMIsolation").failure()
	})
}

func prepareImages() error {
	suite.busybox, suite.base = filepath.Join(suite.dir, "busybox.tar"), filepath.Join(suite.dir, "base.tar")
	return limited(func(ctx context.Context) error {
		program, err := kit.BuildTestProgram(ctx, suite.dir)
		if err != nil {
			return err
		}
		if err := bulkhead(ctx, "image", "busybox", "--name", busybox, "-o", suite.busybox).failure(); err != nil {
			return err
		}
		layer, err := kit.BaseLayer(program)
		if err != nil {
			return err
		}
		file, err := os.Create(suite.base)
		if err != nil {
			return err
		}
		return errors.Join(kit.Archive(file, kit.BaseImage, kit.BaseConfig(), layer), file.Close())
	})
}

func setUp() error {
	return limited(func(ctx context.Context) error {
		for _, args := range [][]string{
			{"cluster", "create", clusterName, "--node-count", "2", "--workload-runtime", "vm-isolation", "--config", filepath.Join(suite.dir, "cluster.yaml")},
			{"cluster", "get-credentials", clusterName, "--file", suite.kubeconfig},
			{"image", "load", "--cluster-name", clusterName, suite.busybox, suite.base},
		} {
			if err := bulkhead(ctx, args...).failure(); err != nil {
				return err
			}
		}
		return applyFixtures(ctx)
	})
}

// tearDown deletes the cluster and tells what is left of it.
func tearDown(before leak.Things) error {
	err := limited(func(ctx context.Context) error { return bulkhead(ctx, "cluster", "delete", clusterName).failure() })
	left, leakErr := leak.Wait(before, scope())
	err = errors.Join(err, leakErr)
	if len(left) > 0 {
		err = errors.Join(err, fmt.Errorf("left behind after the cluster's deletion:\n  %s", strings.Join(left, "\n  ")))
	}
	return err
}

// scope is where a cluster's things may be, less what stays by design.
func scope() leak.Scope {
	return leak.Scope{
		Dirs:   append(emptied(), suite.state, "/run", "/dev/shm", "/etc/cni", "/etc/kubernetes", "/usr/libexec/kubernetes"),
		Ignore: []string{filepath.Join(suite.state, "guest"), "/run/mount"}, // the latter is mount(8)'s
		Tables: true,
	}
}

// emptied are directories of the machine that are empty ones in the cell. Kubernetes' components like to write there; so others
// who do can't disturb the leak check, and what the cluster writes there is seen.
func emptied() []string { return []string{"/var/lib", "/var/log", "/opt"} }

// limited calls f with a context that has a deadline for several steps.
func limited(f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*generous)
	defer cancel()
	return f(ctx)
}

// clusterDir is where a cluster keeps its files.
func clusterDir(name string) string { return filepath.Join(suite.state, "clusters", name) }

// clusterID is in the names of what a cluster has outside its directory.
func clusterID(name string) string {
	hash := sha256.Sum256([]byte(clusterDir(name)))
	return hex.EncodeToString(hash[:4])
}

// long skips a test that takes minutes.
func long(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("BULKHEAD_TEST_LONG") == "" {
		t.Skipf("only with BULKHEAD_TEST_LONG=1: %s", why)
	}
}

// eventually calls condition until it says nothing, and fails the test with what it says if it never does.
func eventually(t *testing.T, condition func() string) {
	t.Helper()
	deadline := time.Now().Add(generous)
	for {
		complaint := condition()
		if complaint == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still after %v: %s", generous, complaint)
		}
		time.Sleep(250 * time.Millisecond)
	}
}
