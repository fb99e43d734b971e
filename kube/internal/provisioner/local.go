package provisioner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

const (
	// volumes is the directory of a node's volumes, beneath the node's own.
	volumes = "volumes"
	// deleting begins the name of a volume's directory from the moment that it is given up. No volume is called so: the name of
	// an object doesn't begin with a dot.
	deleting = ".deleting-"
	// maxName leaves room for deleting: a file's name has at most 255 bytes.
	maxName = 255 - len(deleting)
)

// local makes volumes that are directories ROOT/NODE/volumes/PV. It is the library's controller.Provisioner.
type local struct {
	root string // absolute and clean
}

// refusal is why a claim can't have a volume: its text goes into the claim's events. The status tells the library that
// trying again soon is of no use, since neither a claim nor a class can be changed in that respect.
type refusal string

func (r refusal) Error() string { return string(r) }

// GRPCStatus makes the library take the refusal for a final one.
func (r refusal) GRPCStatus() *status.Status { return status.New(codes.InvalidArgument, string(r)) }

func refuse(format string, args ...any) error { return refusal(fmt.Sprintf(format, args...)) }

// Provision makes the directory of a volume and returns its object. It may be called again for the same volume.
func (l *local) Provision(_ context.Context, o controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	if err := checkClass(o.StorageClass); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	if err := checkClaim(o.PVC); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	node := o.SelectedNodeName
	if node == "" {
		return nil, controller.ProvisioningFinished, refuse("StorageClass %s binds claims at once, but a volume lies on the node of its pod: "+
			"use a class with volumeBindingMode: WaitForFirstConsumer", o.StorageClass.Name)
	}
	if err := l.mkdir(node, o.PVName); err != nil {
		state := controller.ProvisioningFinished
		if errors.Is(err, errNoNode) {
			state = controller.ProvisioningReschedule // another node may do
		}
		return nil, state, fmt.Errorf("make volume %s on node %s: %w", o.PVName, node, err)
	}
	policy := corev1.PersistentVolumeReclaimDelete
	if o.StorageClass.ReclaimPolicy != nil {
		policy = *o.StorageClass.ReclaimPolicy
	}
	filesystem := corev1.PersistentVolumeFilesystem
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: o.PVName},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: o.PVC.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes:                   o.PVC.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: policy,
			MountOptions:                  o.StorageClass.MountOptions,
			VolumeMode:                    &filesystem,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: l.path(node, o.PVName)}},
			NodeAffinity:                  affinity(node),
		},
	}, controller.ProvisioningFinished, nil
}

// checkClass refuses what a class asks for and a directory can't give.
func checkClass(class *storagev1.StorageClass) error {
	if len(class.Parameters) > 0 {
		return refuse("StorageClass %s has parameters that this provisioner doesn't know: %s", class.Name,
			strings.Join(slices.Sorted(maps.Keys(class.Parameters)), ", "))
	}
	return nil
}

// checkClaim refuses what a claim asks for and a directory can't give.
func checkClaim(claim *corev1.PersistentVolumeClaim) error {
	for _, mode := range claim.Spec.AccessModes {
		if mode != corev1.ReadWriteOnce && mode != corev1.ReadWriteOncePod {
			return refuse("access mode %s: a volume is a directory on one node, which pods on other nodes can't reach: "+
				"use ReadWriteOnce or ReadWriteOncePod", mode)
		}
	}
	if mode := claim.Spec.VolumeMode; mode != nil && *mode != corev1.PersistentVolumeFilesystem {
		return refuse("volumeMode %s: a volume is a directory: use volumeMode Filesystem", *mode)
	}
	if claim.Spec.Selector != nil {
		return refuse("selector: a new volume has no labels that could match: leave the selector out, or name a volume that is there with volumeName")
	}
	if source := claim.Spec.DataSourceRef; source != nil {
		return refuse("dataSourceRef %s/%s: a volume begins empty: copy into it from a pod", source.Kind, source.Name)
	}
	if source := claim.Spec.DataSource; source != nil {
		return refuse("dataSource %s/%s: a volume begins empty: copy into it from a pod", source.Kind, source.Name)
	}
	if name := claim.Spec.VolumeAttributesClassName; name != nil && *name != "" {
		return refuse("volumeAttributesClassName %s: a volume has no attributes", *name)
	}
	return nil
}

// Delete removes the directory of a volume. One that is gone, or whose node is gone, is not an error.
func (l *local) Delete(_ context.Context, pv *corev1.PersistentVolume) error {
	node, err := nodeOf(pv)
	if err != nil {
		return fmt.Errorf("remove volume %s: %w", pv.Name, err)
	}
	// Only what this program may have made is removed, whatever the object says.
	if want := l.path(node, pv.Name); pv.Spec.Local == nil || pv.Spec.Local.Path != want {
		return fmt.Errorf("remove volume %s: it isn't of type local with path %s: remove what it holds, and the volume, by hand", pv.Name, want)
	}
	if err := l.remove(node, pv.Name); err != nil {
		return fmt.Errorf("remove volume %s on node %s: %w", pv.Name, node, err)
	}
	return nil
}

// affinity says that a volume is on a node. Nodes of a cluster have their name as label kubernetes.io/hostname.
func affinity(node string) *corev1.VolumeNodeAffinity {
	return &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{
			Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{node},
		}},
	}}}}
}

// nodeOf reads what affinity wrote.
func nodeOf(pv *corev1.PersistentVolume) (string, error) {
	if a := pv.Spec.NodeAffinity; a != nil && a.Required != nil && len(a.Required.NodeSelectorTerms) == 1 {
		if term := a.Required.NodeSelectorTerms[0]; len(term.MatchExpressions) == 1 && len(term.MatchFields) == 0 {
			e := term.MatchExpressions[0]
			if e.Key == corev1.LabelHostname && e.Operator == corev1.NodeSelectorOpIn && len(e.Values) == 1 {
				return e.Values[0], nil
			}
		}
	}
	return "", fmt.Errorf("its nodeAffinity isn't %s In [NODE], with which this provisioner made it", corev1.LabelHostname)
}

// path returns the directory of a volume.
func (l *local) path(node, name string) string { return filepath.Join(l.root, node, volumes, name) }

// errNoNode says that a node has no directory here.
var errNoNode = errors.New("it has no directory on this machine")

// open opens the directory of a node's volumes, and makes it if it isn't there. No part of the path beneath the root may be a
// symbolic link: it would lead to another node's volumes, at best.
func (l *local) open(node, name string) (*os.Root, error) {
	if problems := validation.IsDNS1123Subdomain(node); len(problems) > 0 {
		return nil, fmt.Errorf("node name %q: %s", node, strings.Join(problems, "; "))
	}
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return nil, fmt.Errorf("volume name %q: %s", name, strings.Join(problems, "; "))
	}
	if len(name) > maxName {
		return nil, fmt.Errorf("volume name %q: it is longer than %d bytes", name, maxName)
	}
	root, err := os.OpenRoot(l.root)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if err := isDirectory(root, node); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", errNoNode, filepath.Join(l.root, node))
	} else if err != nil {
		return nil, err
	}
	below := filepath.Join(node, volumes)
	if err := root.Mkdir(below, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := isDirectory(root, below); err != nil {
		return nil, err
	}
	return root.OpenRoot(below)
}

// isDirectory returns an error if name isn't a directory, or is a symbolic link to one.
func isDirectory(root *os.Root, name string) error {
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", filepath.Join(root.Name(), name))
	}
	return nil
}

// mkdir makes the directory of a volume. One that is there was made for the same claim, before its object could be stored: a
// volume's name has the claim's UID in it.
func (l *local) mkdir(node, name string) error {
	dir, err := l.open(node, name)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := isDirectory(dir, name); err != nil {
		return err
	}
	return dir.Chmod(name, 0o777) // whatever the umask
}

// remove removes the directory of a volume. It first gets a name of which everybody sees that it is given up: what a crash
// leaves behind is removed at the next call.
func (l *local) remove(node, name string) error {
	dir, err := l.open(node, name)
	if errors.Is(err, errNoNode) {
		return nil // the node's volumes went with it
	}
	if err != nil {
		return err
	}
	defer dir.Close()
	doomed := deleting + name
	if err := l.removeAll(dir, node, doomed); err != nil {
		return err
	}
	if err := l.unmounted(node, name); err != nil {
		return err
	}
	if err := dir.Rename(name, doomed); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return l.removeAll(dir, node, doomed)
}

// removeAll removes a directory and everything beneath it. It follows no symbolic link.
func (l *local) removeAll(dir *os.Root, node, name string) error {
	if err := l.unmounted(node, name); err != nil {
		return err
	}
	return dir.RemoveAll(name)
}

// unmounted returns an error if something is mounted at a volume's directory or beneath it, as a privileged pod can do: the
// removal must not go on into it. The library tries again later.
func (l *local) unmounted(node, name string) error {
	root, err := filepath.EvalSymlinks(l.root)
	if err != nil {
		return err
	}
	path := filepath.Join(root, node, volumes, name)
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(path))
	if err != nil {
		return fmt.Errorf("read the mounts: %w", err)
	}
	if len(mounts) > 0 {
		return fmt.Errorf("something is mounted at %s: it must be unmounted first", mounts[0].Mountpoint)
	}
	return nil
}
