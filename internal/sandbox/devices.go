package sandbox

import (
	"github.com/opencontainers/runtime-spec/specs-go"
)

// fuseDevice is the one node beyond the standard ones that every guest has and that harms nobody.
func fuseDevice() specs.LinuxDevice {
	return specs.LinuxDevice{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}
}

// standardDevices are the nodes that an OCI runtime makes in every container (runtime-spec, config-linux.md, "Default
// Devices"); console and tty are given too by some engines.
func standardDevices() map[string]bool {
	return map[string]bool{
		"/dev/null": true, "/dev/zero": true, "/dev/full": true, "/dev/random": true, "/dev/urandom": true,
		"/dev/tty": true, "/dev/console": true, "/dev/ptmx": true,
	}
}

// isPrivileged: the CRI has no word for it in the spec, but only a privileged container may use every device.
func isPrivileged(in *specs.Linux) bool {
	if in.Resources == nil {
		return false
	}
	for _, rule := range in.Resources.Devices {
		everyType := rule.Type == "" || rule.Type == "a"
		if rule.Allow && everyType && isAny(rule.Major) && isAny(rule.Minor) && rule.Access == "rwm" {
			return true
		}
	}
	return false
}

// isAny tells whether a device number is the wildcard, which is written as none or as -1.
func isAny(n *int64) bool { return n == nil || *n == -1 }

// translateDevices returns the nodes that the guest's runtime has to make beside the standard ones.
func translateDevices(in []specs.LinuxDevice, privileged bool) ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	standard, fuse := standardDevices(), fuseDevice()
	for _, d := range in {
		switch {
		case standard[d.Path]:
		case d.Path == fuse.Path && d.Type == fuse.Type && d.Major == fuse.Major && d.Minor == fuse.Minor:
			fuse.FileMode, fuse.UID, fuse.GID = d.FileMode, d.UID, d.GID
			out = append(out, fuse)
		case privileged:
			// One of the host's, of which a privileged container is given all. The guest has others.
		default:
			return nil, unsupported("device %s (%s %d:%d): it is the host's", d.Path, d.Type, d.Major, d.Minor)
		}
	}
	return out, nil
}

// deviceRules are the guest's own, whatever numbers the host's rules name: in the guest these would be other devices,
// the disks of the pod's other containers among them. They allow what runc allows by default and the devices given.
func deviceRules(devices []specs.LinuxDevice, privileged bool) []specs.LinuxDeviceCgroup {
	if privileged {
		return []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	}
	rules := []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "b", Access: "m"},
	}
	allow := func(major int64, minor *int64) {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: minor, Access: "rwm"})
	}
	// null, zero, full, random, urandom; tty, console, ptmx; the pseudo-terminals.
	for _, n := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 1}, {5, 2}} {
		allow(n[0], &n[1])
	}
	allow(136, nil)
	for _, d := range devices {
		allow(d.Major, &d.Minor)
	}
	return rules
}
