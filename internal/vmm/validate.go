package vmm

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/containerd/errdefs"
)

var idPattern = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,64}$`)

// Validate finds what no driver can start: every driver's Start begins with it, and the suite of vmmtest checks that. What
// only one driver can't do, it finds itself. The error is an ErrInvalidArgument.
func (s Spec) Validate() error {
	var problem string
	switch {
	case !idPattern.MatchString(s.ID):
		problem = fmt.Sprintf("id %q is not 1 to 64 characters of [a-zA-Z0-9_.-]", s.ID)
	case s.VCPUs < 1:
		problem = fmt.Sprintf("%d vCPUs, not at least 1", s.VCPUs)
	case s.MemoryBytes <= 0 || s.MemoryBytes%(1<<20) != 0:
		problem = fmt.Sprintf("memory of %d bytes is not a positive multiple of 1 MiB", s.MemoryBytes)
	case s.Kernel == "" || s.Initramfs == "":
		problem = "kernel and initramfs must be named"
	case strings.Contains(s.Kernel+s.Initramfs, "\x00"):
		problem = "the path of kernel or initramfs has a NUL"
	case s.Acceleration != Hardware && s.Acceleration != Emulated:
		problem = fmt.Sprintf("acceleration %q is neither %s nor %s", s.Acceleration, Hardware, Emulated)
	case strings.ContainsFunc(strings.Join(s.KernelArgs, " "), func(r rune) bool { return r < ' ' || r == 0x7f }):
		problem = "a kernel argument has a control character"
	}
	for i, nic := range s.NICs {
		if problem != "" {
			break
		}
		switch {
		case nic.Tap == nil:
			problem = fmt.Sprintf("NIC %d has no tap", i)
		case len(nic.MAC) != 6 || nic.MAC[0]&1 != 0:
			problem = fmt.Sprintf("NIC %d has MAC %q, not an Ethernet address of one device", i, nic.MAC)
		case nic.MTU < 68 || nic.MTU > 65535:
			problem = fmt.Sprintf("NIC %d has MTU %d, not 68 to 65535", i, nic.MTU)
		}
	}
	if problem != "" {
		return fmt.Errorf("%s: %w", problem, errdefs.ErrInvalidArgument)
	}
	return nil
}
