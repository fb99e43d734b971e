package provisioner

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

const (
	node = "c-nodepool1-0"
	pv   = "pvc-0a1b"
)

// nodes returns a provisioner with the directories of two nodes.
func nodes(t *testing.T) *local {
	t.Helper()
	l := &local{root: t.TempDir()}
	for _, n := range []string{node, "c-nodepool1-1"} {
		if err := os.Mkdir(filepath.Join(l.root, n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// options is a claim that can have a volume.
func options() controller.ProvisionOptions {
	policy, mode, class := corev1.PersistentVolumeReclaimDelete, storagev1.VolumeBindingWaitForFirstConsumer, "local"
	return controller.ProvisionOptions{
		PVName:           pv,
		SelectedNodeName: node,
		StorageClass: &storagev1.StorageClass{
			ObjectMeta:        metav1.ObjectMeta{Name: class},
			Provisioner:       "bulkhead.dev/local",
			ReclaimPolicy:     &policy,
			VolumeBindingMode: &mode,
		},
		PVC: &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Name: "data", Namespace: "default", UID: types.UID("0a1b")},
			Spec: corev1.PersistentVolumeClaimSpec{
				StorageClassName: &class,
				AccessModes:      []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceStorage: resource.MustParse("1Gi"),
				}},
			},
		},
	}
}

func provision(t *testing.T, l *local) *corev1.PersistentVolume {
	t.Helper()
	volume, state, err := l.Provision(t.Context(), options())
	if err != nil || state != controller.ProvisioningFinished {
		t.Fatalf("Provision: %v, %v", state, err)
	}
	return volume
}

func TestProvision(t *testing.T) {
	l := nodes(t)
	volume := provision(t, l)
	path := filepath.Join(l.root, node, "volumes", pv)
	if volume.Name != pv || volume.Spec.Local == nil || volume.Spec.Local.Path != path {
		t.Errorf("volume = %v", volume)
	}
	if diff := cmp.Diff(affinity(node), volume.Spec.NodeAffinity); diff != "" {
		t.Error(diff)
	}
	if got := volume.Spec.Capacity[corev1.ResourceStorage]; got.String() != "1Gi" {
		t.Errorf("capacity = %s", got.String())
	}
	for dir, want := range map[string]os.FileMode{path: 0o777, filepath.Dir(path): 0o700} {
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode() & (os.ModePerm | os.ModeSticky); got != want {
			t.Errorf("mode of %s = %v, want %v", dir, got, want)
		}
	}

	// The object could not be stored: the library calls again.
	again := provision(t, l)
	if diff := cmp.Diff(volume, again); diff != "" {
		t.Error(diff)
	}
}

func TestRefusals(t *testing.T) {
	block, name := corev1.PersistentVolumeBlock, "fast"
	for title, tc := range map[string]struct {
		change func(*controller.ProvisionOptions)
		want   string
		state  controller.ProvisioningState
	}{
		"ReadWriteMany": {func(o *controller.ProvisionOptions) {
			o.PVC.Spec.AccessModes = append(o.PVC.Spec.AccessModes, corev1.ReadWriteMany)
		}, "access mode ReadWriteMany: a volume is a directory on one node", controller.ProvisioningFinished},
		"ReadOnlyMany": {func(o *controller.ProvisionOptions) {
			o.PVC.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadOnlyMany}
		}, "access mode ReadOnlyMany", controller.ProvisioningFinished},
		"block":    {func(o *controller.ProvisionOptions) { o.PVC.Spec.VolumeMode = &block }, "volumeMode Block", controller.ProvisioningFinished},
		"selector": {func(o *controller.ProvisionOptions) { o.PVC.Spec.Selector = &metav1.LabelSelector{} }, "selector", controller.ProvisioningFinished},
		"data source": {func(o *controller.ProvisionOptions) {
			o.PVC.Spec.DataSource = &corev1.TypedLocalObjectReference{Kind: "VolumeSnapshot", Name: "s"}
		}, "VolumeSnapshot/s", controller.ProvisioningFinished},
		"data source reference": {func(o *controller.ProvisionOptions) {
			o.PVC.Spec.DataSourceRef = &corev1.TypedObjectReference{Kind: "PersistentVolumeClaim", Name: "s"}
		},
			"PersistentVolumeClaim/s", controller.ProvisioningFinished},
		"attributes": {func(o *controller.ProvisionOptions) { o.PVC.Spec.VolumeAttributesClassName = &name }, "volumeAttributesClassName fast", controller.ProvisioningFinished},
		"parameters": {func(o *controller.ProvisionOptions) {
			o.StorageClass.Parameters = map[string]string{"b": "1", "a": "2"}
		},
			"StorageClass local has parameters that this provisioner doesn't know: a, b", controller.ProvisioningFinished},
		"binds at once": {func(o *controller.ProvisionOptions) { o.SelectedNodeName = "" }, "WaitForFirstConsumer", controller.ProvisioningFinished},
		"no such node":  {func(o *controller.ProvisionOptions) { o.SelectedNodeName = "other" }, "on node other: it has no directory", controller.ProvisioningReschedule},
		"node ..":       {func(o *controller.ProvisionOptions) { o.SelectedNodeName = ".." }, `node name ".."`, controller.ProvisioningFinished},
		"node a/b":      {func(o *controller.ProvisionOptions) { o.SelectedNodeName = node + "/volumes" }, "node name", controller.ProvisioningFinished},
		"volume ..":     {func(o *controller.ProvisionOptions) { o.PVName = ".." }, `volume name ".."`, controller.ProvisioningFinished},
		"volume a/b":    {func(o *controller.ProvisionOptions) { o.PVName = "../../x" }, "volume name", controller.ProvisioningFinished},
		"volume .d":     {func(o *controller.ProvisionOptions) { o.PVName = ".deleting-x" }, "volume name", controller.ProvisioningFinished},
		"long volume":   {func(o *controller.ProvisionOptions) { o.PVName = strings.Repeat("x", maxName+1) }, "longer than", controller.ProvisioningFinished},
	} {
		t.Run(title, func(t *testing.T) {
			l := nodes(t)
			o := options()
			tc.change(&o)
			volume, state, err := l.Provision(t.Context(), o)
			if err == nil || !strings.Contains(err.Error(), tc.want) || state != tc.state {
				t.Errorf("Provision = %v, %v, %v; want %v, %q", volume, state, err, tc.state, tc.want)
			}
			if made, _ := filepath.Glob(filepath.Join(l.root, "*", "volumes", "*")); len(made) > 0 {
				t.Errorf("made %v", made)
			}
		})
	}
	t.Run("ReadWriteOncePod", func(t *testing.T) {
		o := options()
		o.PVC.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
		if _, _, err := nodes(t).Provision(t.Context(), o); err != nil {
			t.Error(err)
		}
	})
	t.Run("the longest volume", func(t *testing.T) {
		l, o := nodes(t), options()
		o.PVName = strings.Repeat("x", maxName)
		volume, _, err := l.Provision(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Delete(t.Context(), volume); err != nil {
			t.Error(err)
		}
	})
}

func TestDelete(t *testing.T) {
	l := nodes(t)
	volume := provision(t, l)
	path := volume.Spec.Local.Path
	precious := filepath.Join(t.TempDir(), "precious")
	if err := os.MkdirAll(filepath.Join(path, "a", "b"), 0o500); err != nil {
		t.Fatal(err)
	}
	neighbour := filepath.Join(filepath.Dir(path), "pvc-2")
	for _, file := range []string{precious, filepath.Join(path, "file"), neighbour} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"outside": filepath.Dir(precious), "beside": "../pvc-2", "up": ".."} {
		if err := os.Symlink(target, filepath.Join(path, link)); err != nil {
			t.Fatal(err)
		}
	}
	// What an interrupted removal has left.
	if err := os.MkdirAll(filepath.Join(filepath.Dir(path), deleting+pv, "rest"), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.Delete(t.Context(), volume); err != nil {
			t.Fatal(err)
		}
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*"))
	if diff := cmp.Diff([]string{neighbour}, left); err != nil || diff != "" {
		t.Errorf("left: %v %s", err, diff)
	}
	if hidden, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(hidden) > 0 {
		t.Errorf("left: %v", hidden)
	}
	if _, err := os.Stat(precious); err != nil {
		t.Error(err)
	}
}

func TestDeleteWithoutNode(t *testing.T) {
	l := nodes(t)
	volume := provision(t, l)
	if err := os.RemoveAll(filepath.Join(l.root, node)); err != nil {
		t.Fatal(err)
	}
	if err := l.Delete(t.Context(), volume); err != nil {
		t.Errorf("without the node: %v", err)
	}
	if err := os.RemoveAll(l.root); err != nil {
		t.Fatal(err)
	}
	if err := l.Delete(t.Context(), volume); err == nil {
		t.Error("without the root, the volume counts as removed")
	}
}

func TestDeleteRefuses(t *testing.T) {
	for title, change := range map[string]func(*corev1.PersistentVolume){
		"another path":      func(v *corev1.PersistentVolume) { v.Spec.Local.Path = "/etc" },
		"path of another":   func(v *corev1.PersistentVolume) { v.Name = "pvc-2" },
		"path with dots":    func(v *corev1.PersistentVolume) { v.Spec.Local.Path += "/../" + pv },
		"host path":         func(v *corev1.PersistentVolume) { v.Spec.Local = nil },
		"name with slashes": func(v *corev1.PersistentVolume) { v.Name = "../volumes/" + pv },
		"no affinity":       func(v *corev1.PersistentVolume) { v.Spec.NodeAffinity = nil },
		"no terms":          func(v *corev1.PersistentVolume) { v.Spec.NodeAffinity.Required.NodeSelectorTerms = nil },
		"two nodes": func(v *corev1.PersistentVolume) {
			e := &v.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0]
			e.Values = append(e.Values, "c-nodepool1-1")
		},
		"node with slashes": func(v *corev1.PersistentVolume) {
			v.Spec.NodeAffinity = affinity("c-nodepool1-1/../" + node)
		},
	} {
		t.Run(title, func(t *testing.T) {
			l := nodes(t)
			volume := provision(t, l)
			path := volume.Spec.Local.Path
			change(volume)
			if err := l.Delete(t.Context(), volume); err == nil {
				t.Error("Delete took it")
			}
			if _, err := os.Stat(path); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestLinks puts symbolic links where directories should be.
func TestLinks(t *testing.T) {
	outside := t.TempDir()
	kept := filepath.Join(outside, pv, "kept")
	if err := os.MkdirAll(kept, 0o700); err != nil {
		t.Fatal(err)
	}
	for title, tc := range map[string]struct{ link, target string }{
		"node outside":     {node, outside},
		"node beside":      {node, "c-nodepool1-1"},
		"volumes outside":  {node + "/volumes", outside},
		"volumes beside":   {node + "/volumes", "../c-nodepool1-1"},
		"volume outside":   {node + "/volumes/" + pv, filepath.Dir(kept)},
		"volume dangling":  {node + "/volumes/" + pv, "nowhere"},
		"volume is a file": {node + "/volumes/" + pv, ""},
	} {
		t.Run(title, func(t *testing.T) {
			l := nodes(t)
			volume := provision(t, l)
			link := filepath.Join(l.root, tc.link)
			if err := os.RemoveAll(link); err != nil {
				t.Fatal(err)
			}
			if tc.target == "" {
				if err := os.WriteFile(link, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			} else if err := os.Symlink(tc.target, link); err != nil {
				t.Fatal(err)
			}
			if _, _, err := l.Provision(t.Context(), options()); err == nil {
				t.Error("Provision took it")
			}
			// At most the link itself may go.
			_ = l.Delete(t.Context(), volume)
			if _, err := os.Stat(kept); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestController lets the library do it, with the objects that a user, the scheduler and the controller of volumes make.
func TestController(t *testing.T) {
	l := nodes(t)
	o := options()
	claim := o.PVC
	claim.Annotations = map[string]string{
		"volume.kubernetes.io/storage-provisioner": o.StorageClass.Provisioner,
		"volume.kubernetes.io/selected-node":       node,
	}
	shared := claim.DeepCopy()
	shared.Name, shared.UID = "shared", "0a1c"
	shared.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
	waiting := claim.DeepCopy()
	waiting.Name, waiting.UID, waiting.Annotations = "waiting", "0a1d", nil
	lost := claim.DeepCopy()
	lost.Name, lost.UID = "lost", "0a1e"
	lost.Annotations["volume.kubernetes.io/selected-node"] = "gone"

	client := fake.NewClientset(o.StorageClass, claim, shared, waiting, lost)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		serve(ctx, client, o.StorageClass.Provisioner, l, slog.New(slog.DiscardHandler))
	}()
	defer func() { cancel(); <-done }()

	volumes := client.CoreV1().PersistentVolumes()
	var volume *corev1.PersistentVolume
	wait(t, "a volume", func() (err error) {
		volume, err = volumes.Get(ctx, pv, metav1.GetOptions{})
		return err
	})
	if volume.Spec.ClaimRef == nil || volume.Spec.ClaimRef.Name != "data" || volume.Spec.StorageClassName != "local" {
		t.Errorf("volume = %v", volume)
	}
	if _, err := os.Stat(volume.Spec.Local.Path); err != nil {
		t.Error(err)
	}
	wait(t, "an event that says why", func() error {
		events, err := client.CoreV1().Events("default").List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.InvolvedObject.Name == "shared" && e.Reason == "ProvisioningFailed" && strings.Contains(e.Message, "access mode ReadWriteMany: a volume is") {
				if strings.Contains(e.Message, "rpc error") {
					t.Errorf("event: %s", e.Message)
				}
				return nil
			}
		}
		return errors.New("none")
	})
	wait(t, "the scheduler to be asked again", func() error {
		c, err := client.CoreV1().PersistentVolumeClaims("default").Get(ctx, "lost", metav1.GetOptions{})
		if err == nil && c.Annotations["volume.kubernetes.io/selected-node"] != "" {
			err = errors.New("the claim still names a node")
		}
		return err
	})
	if all, err := volumes.List(ctx, metav1.ListOptions{}); err != nil || len(all.Items) != 1 {
		t.Errorf("volumes = %v, %v", all, err)
	}

	volume.Status.Phase = corev1.VolumeReleased
	if _, err := volumes.Update(ctx, volume, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	wait(t, "the volume's end", func() error {
		if _, err := volumes.Get(ctx, pv, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			return errors.Join(errors.New("it is there"), err)
		}
		return nil
	})
	if _, err := os.Stat(volume.Spec.Local.Path); !os.IsNotExist(err) {
		t.Errorf("the directory of the volume: %v", err)
	}
}

// wait calls f until it returns no error.
func wait(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waiting for %s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestArguments(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
		code int
	}{
		"help":          {[]string{"--help"}, "WaitForFirstConsumer", 0},
		"nothing":       {nil, "--kubeconfig is missing", 2},
		"relative root": {[]string{"--kubeconfig", "/x", "--root", "x"}, `--root "x"`, 2},
		"bad name":      {[]string{"--kubeconfig", "/x", "--root", "/x", "--name", "a b"}, `--name "a b"`, 2},
		"argument":      {[]string{"x"}, `"x"`, 2},
		"no kubeconfig": {[]string{"--kubeconfig", "/nonexistent/x", "--root", "/"}, "/nonexistent/x", 1},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			if code := Main(t.Context(), tc.args, &out, &errs); code != tc.code || !strings.Contains(errs.String(), tc.want) {
				t.Errorf("Main = %d, %s; want %d, %q", code, &errs, tc.code, tc.want)
			}
		})
	}
}
