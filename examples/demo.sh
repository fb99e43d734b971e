#!/bin/bash
# The main job, told by the commands that do it: an embedded cluster, two pods that differ in one line, two kernels.
# Each command is printed before it is run. BULKHEAD_STATE_DIR says where the cluster is kept; bulkhead and kubectl are on the PATH.
set -euo pipefail
cd "$(dirname "$0")"
: "${BULKHEAD_STATE_DIR:?say where the cluster is to be kept}"
export BULKHEAD_STATE_DIR KUBECONFIG=$BULKHEAD_STATE_DIR/kubeconfig

run() {
	printf '\n$ %s\n' "$*"
	"$@"
}

if bulkhead cluster show demo >/dev/null 2>&1 && run bulkhead cluster start demo; then :; else
	# Only hosts without a working KVM need it; there, it is the consent to VMs that are no wall.
	run bulkhead feature register EmulatedVMIsolation
	run bulkhead cluster create demo --workload-runtime vm-isolation
fi
run bulkhead cluster get-credentials demo --file "$KUBECONFIG"

# No registry is needed: the pods' image is made here, of this machine's BusyBox.
archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
run bulkhead image busybox --name bulkhead.dev/busybox:1 --output "$archive"
run bulkhead image load --cluster-name demo "$archive"

run kubectl apply -f trusted-app.yaml -f untrusted-app.yaml
run kubectl wait --for=condition=Ready --timeout=300s pod/trusted-app pod/untrusted-app
run kubectl get pods --output custom-columns=NAME:.metadata.name,RUNTIMECLASS:.spec.runtimeClassName,STATUS:.status.phase,NODE:.spec.nodeName
run kubectl exec trusted-app -- uname -r
run kubectl exec untrusted-app -- uname -r

trusted=$(kubectl exec trusted-app -- uname -r)
untrusted=$(kubectl exec untrusted-app -- uname -r)
if [ "$trusted" = "$untrusted" ]; then
	echo "both pods saw kernel $trusted: the sandbox is none" >&2
	exit 1
fi
cat <<END

  trusted-app     $trusted    the host's kernel
  untrusted-app   $untrusted    its own kernel, in a VM

$(kubectl get nodes --no-headers --output custom-columns=ISOLATION:.metadata.labels.bulkhead\\.dev/isolation | grep -q emulated && cat <<WARNING
  *************************************************************************
  *  EMULATION IS NOT ISOLATION. This VM was emulated in software, for    *
  *  lack of a working KVM. That is for development and CI; it is no wall *
  *  against hostile code.                                                *
  *************************************************************************

WARNING
)
Go on with the same cluster:

  export PATH=$(dirname "$(command -v bulkhead)"):\$PATH
  export BULKHEAD_STATE_DIR=$BULKHEAD_STATE_DIR KUBECONFIG=$KUBECONFIG
  kubectl get pods --all-namespaces
  bulkhead cluster show demo

To end and remove everything: make down
END
