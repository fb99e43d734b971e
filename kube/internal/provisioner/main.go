// Package provisioner makes the volumes of the default StorageClass: each is a directory on the node that its first pod was placed on.
//
// All nodes of a cluster are on this machine, so one process serves them all. A claim becomes a volume in these steps:
//
//	claim ─► the scheduler picks a node for the first pod that uses it, and notes it on the claim
//	      ─► Provision makes ROOT/NODE/volumes/PV, of mode 0777, and a PersistentVolume of type local that belongs to NODE
//	      ─► the claim is bound, and the pod's kubelet mounts the directory; fsGroup is applied as for any local volume
//	claim deleted ─► Delete renames the directory to .deleting-PV, and removes it
//
// ROOT/NODE must be there: it is the node's own directory. volumes, which only root can enter, is made when it is missing: the mode of
// the volumes in it is for the users in pods, not for those of this machine.
//
// What can't be had is refused, and the claim's events say why: access from several nodes, block devices, selectors, contents
// from a snapshot or another volume, StorageClass parameters, and binding before there is a pod. The capacity that a claim asks for is
// noted in the volume and not enforced: a volume can fill the disk that it is on, as with every provisioner that hands out directories.
//
// There is one process for each cluster: it doesn't elect a leader. Its user needs (verbs on resources, all cluster-wide):
//
//	persistentvolumes           get list watch create patch delete
//	persistentvolumeclaims      get list watch update
//	storageclasses              get list watch
//	events                      create patch update
package provisioner

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

const usage = `Usage: bulkhead-kube provisioner --kubeconfig FILE --root DIR [--name NAME]

Makes and removes the volumes of StorageClasses with "provisioner: NAME": directories DIR/NODE/volumes/VOLUME.
The class must have "volumeBindingMode: WaitForFirstConsumer", and no parameters.

Flags:
`

// Main runs until ctx ends or SIGTERM or SIGINT comes. The result is an exit status: 0, 1 after an error, 2 for arguments that
// can't be used.
func Main(ctx context.Context, args []string, _, stderr io.Writer) int {
	flags := flag.NewFlagSet("provisioner", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	kubeconfig := flags.String("kubeconfig", "", "kubeconfig `FILE` of the API server")
	root := flags.String("root", "", "`DIR` with a directory for each node, of the node's name")
	name := flags.String("name", "bulkhead.dev/local", "`NAME` of the provisioner, as StorageClasses have it")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	if err := check(flags.Args(), *kubeconfig, *root, *name); err != nil {
		fmt.Fprintf(stderr, "provisioner: %v\n", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log := slog.New(slog.NewTextHandler(stderr, nil))
	if err := run(ctx, *kubeconfig, *root, *name, log); err != nil {
		log.Error("the provisioner ended", "err", err)
		return 1
	}
	return 0
}

// check says which flag is wrong, and how it should look.
func check(rest []string, kubeconfig, root, name string) error {
	switch {
	case len(rest) > 0:
		return fmt.Errorf("unexpected argument %q: see --help", rest[0])
	case kubeconfig == "":
		return errors.New("--kubeconfig is missing: give the kubeconfig file of the API server")
	case !filepath.IsAbs(root):
		return fmt.Errorf("--root %q: give the absolute path of the directory with the nodes' directories", root)
	}
	if problems := validation.IsQualifiedName(name); len(problems) > 0 {
		return fmt.Errorf("--name %q: %s", name, strings.Join(problems, "; "))
	}
	return nil
}

// run reads the kubeconfig and serves until ctx ends.
func run(ctx context.Context, kubeconfig, root, name string, log *slog.Logger) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return fmt.Errorf("read the kubeconfig %s: %w", kubeconfig, err)
	}
	config.UserAgent = "bulkhead-provisioner"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("use the kubeconfig %s: %w", kubeconfig, err)
	}
	if info, err := os.Stat(root); err != nil {
		return fmt.Errorf("use the directory of the nodes: %w", err)
	} else if !info.IsDir() {
		return fmt.Errorf("use the directory of the nodes: %s is not a directory", root)
	}
	log.Info("provisioning", "provisioner", name, "root", root, "server", config.Host)
	serve(ctx, client, name, &local{root: filepath.Clean(root)}, log)
	return nil
}

// serve lets the library watch claims and volumes, and call p, until ctx ends. A removal that goes on then is cut off with the
// process, and finished by the next one.
func serve(ctx context.Context, client kubernetes.Interface, name string, p controller.Provisioner, log *slog.Logger) {
	ctx = klog.NewContext(ctx, logr.FromSlogHandler(log.Handler()))
	controller.NewProvisionController(ctx, client, name, p,
		controller.LeaderElection(false),
		// A volume that is deleted before its claim keeps its object, and so its directory is still known, until both are gone.
		controller.AddFinalizer(true),
		// The library begins with 15 s, for disks in a cloud.
		controller.RateLimiter(workqueue.NewTypedItemExponentialFailureRateLimiter[string](time.Second, 2*time.Minute)),
	).Run(ctx)
}
