package qemu

import (
	"fmt"
	"strconv"
	"strings"

	"bulkhead.dev/bulkhead/internal/vmm"
)

// AgentPort is the name of the virtio-serial port that is the agent's channel.
const AgentPort = "bulkhead.agent"

const (
	scsiBus     = "scsi0.0"
	agentDevice = "agent0"
)

// descriptors are the numbers that the VMM's descriptors have in its process.
type descriptors struct {
	qmp, agent, console int
	taps                []int
}

// arguments returns QEMU's whole command line, without its name. It is the same for the same spec.
//
// Everything comes from here: -nodefaults and -no-user-config leave nothing to the host's configuration, and nothing in a
// Spec reaches an option's syntax unescaped.
func arguments(spec vmm.Spec, fds descriptors) []string {
	a := argumentList{emulated: spec.Acceleration == vmm.Emulated}
	a.add("-name", "guest="+spec.ID+",process=bulkhead-vm,debug-threads=on")
	a.add("-nodefaults")
	a.add("-no-user-config")
	// Not -nographic: it would make the firmware write to the console too.
	a.add("-display", "none")
	// With the kernel's panic=-1, the end of the guest is the end of the VMM.
	a.add("-no-reboot")
	a.add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	a.add("-machine", "q35,usb=off,vmport=off,smm=off,sata=off,smbus=off,i8042=off,hpet=off,dump-guest-core=off,mem-merge=off")
	a.processor(spec)
	a.add("-m", "size="+strconv.FormatInt(spec.MemoryBytes>>20, 10)+"M")
	a.add("-kernel", spec.Kernel)
	a.add("-initrd", spec.Initramfs)
	a.add("-append", strings.Join(append(kernelArguments(spec), spec.KernelArgs...), " "))

	a.add("-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", fds.qmp))
	a.add("-mon", "chardev=qmp,mode=control")
	a.add("-chardev", fmt.Sprintf("socket,id=console,fd=%d", fds.console))
	a.add("-device", "isa-serial,chardev=console")

	a.virtio("virtio-serial-pci", "id=serial0,max_ports=2")
	a.add("-chardev", fmt.Sprintf("socket,id=agent,fd=%d", fds.agent))
	a.add("-device", "virtserialport,id="+agentDevice+",bus=serial0.0,nr=1,chardev=agent,name="+AgentPort)
	a.virtio("virtio-scsi-pci", "id=scsi0,num_queues=1")
	for i, nic := range spec.NICs {
		a.add("-netdev", fmt.Sprintf("tap,id=net%d,fd=%d,vhost=off", i, fds.taps[i]))
		a.virtio("virtio-net-pci", fmt.Sprintf("netdev=net%d,mac=%s,host_mtu=%d,romfile=", i, nic.MAC, nic.MTU))
	}
	a.add("-object", "rng-builtin,id=rng0")
	a.virtio("virtio-rng-pci", "rng=rng0")
	// Memory that the guest has freed goes back to the host without anybody asking.
	a.add("-device", "virtio-balloon-pci,disable-legacy=on,free-page-reporting=on,deflate-on-oom=on")
	return a.list
}

type argumentList struct {
	list     []string
	emulated bool
}

func (a *argumentList) add(args ...string) { a.list = append(a.list, args...) }

// virtio adds a virtio device. Emulated guests get theirs without ioeventfd: the notification would be handled in another
// thread than the vCPU's, and some were lost for good (disks hung).
func (a *argumentList) virtio(device, properties string) {
	device += ",disable-legacy=on," + properties
	if a.emulated {
		device += ",ioeventfd=off"
	}
	a.add("-device", device)
}

func (a *argumentList) processor(spec vmm.Spec) {
	if !a.emulated {
		a.add("-accel", "kvm")
		a.add("-cpu", "host")
		a.add("-smp", strconv.Itoa(spec.VCPUs))
		return
	}
	a.add("-accel", fmt.Sprintf("tcg,tb-size=%d,thread=multi", translationBufferMiB(spec.MemoryBytes)))
	// Five levels of page tables only make every walk longer.
	a.add("-cpu", "max,la57=off")
	// For a machine that can only ever have one CPU, QEMU leaves out the memory barriers that its own I/O threads rely on.
	a.add("-smp", fmt.Sprintf("%d,maxcpus=%d", spec.VCPUs, max(2, spec.VCPUs)))
}

// translationBufferMiB is what emulation may use for translated code. All of it is used up while the guest boots and stays
// resident, so it is weighed against the memory of an idle pod: with 24 MiB a pod starts a tenth faster and no exec comes
// at a time when everything is translated again; more gains nothing. A guest with much memory is expected to run more code, within
// what the overhead of a pod's RuntimeClass covers.
func translationBufferMiB(memory int64) int64 { return min(max(memory>>24, 18), 32) }

// kernelArguments is the driver's part of the kernel's command line. Of what could make an emulated boot faster, only leaving
// out the crypto self-tests (0.25 s of 2.2 s) and the HPET (0.2 s, see arguments) could be told from noise, measured in
// processor time until the agent's channel opened; lpj, tsc_early_khz, nokaslr, noreplace-smp, numa=off, qboot and older
// CPU models could not.
func kernelArguments(spec vmm.Spec) []string {
	args := []string{
		"console=ttyS0",
		"quiet",
		// A guest that panics or reboots is over: at once, by a triple fault, which every VMM understands.
		"panic=-1",
		"reboot=t",
		// The host's processor has seeded it; a pod must not wait for entropy.
		"random.trust_cpu=on",
		"no_timer_check",
		"rcupdate.rcu_expedited=1",
		"cryptomgr.notests",
		"8250.nr_uarts=1",
		// No device of ours needs bounce buffers, and with 3 GiB or more the kernel would take 64 MiB for them.
		"swiotlb=noforce",
	}
	if spec.Acceleration == vmm.Emulated {
		args = append(args, "tsc=reliable", "mitigations=off")
	}
	return args
}
