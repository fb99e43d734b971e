// Package hostdir gives a program its own directories in the place of some of the host's, for programs that have paths in their
// code: the kubelet of each node uses /var/lib/kubelet/device-plugins and /var/log/containers, whatever it is configured to, and
// would share them with the other nodes on the host and with a kubelet of the host's own.
//
//	BULKHEAD_BINDS=/var/lib/kubelet=/srv/node/kubelet,/var/log/containers=/srv/node/logs
//
// [Enter] makes a mount namespace, mounts the directories in it, and executes the program again there: it keeps its process id
// and arguments. What the program mounts elsewhere still is to be seen by the host, if it is below a shared mount that covers
// none of the replaced directories.
package hostdir

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Variable is the environment variable that has the directories: TARGET=SOURCE, separated by commas. All must exist.
const Variable = "BULKHEAD_BINDS"

// bind is a directory that is mounted in the place of another one.
type bind struct{ target, source string }

// Enter returns at once if the variable isn't set. Else it returns only with an error.
func Enter() error {
	text, ok := os.LookupEnv(Variable)
	if !ok {
		return nil
	}
	binds, err := parse(text)
	if err != nil {
		return fmt.Errorf("read %s: %w", Variable, err)
	}
	line, err := os.ReadFile("/proc/self/cmdline")
	if err != nil {
		return fmt.Errorf("read the command line: %w", err)
	}
	// The namespace is this thread's alone until exec ends the others.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	for _, b := range binds {
		if err := b.mount(); err != nil {
			return fmt.Errorf("mount %s on %s: %w", b.source, b.target, err)
		}
	}
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, Variable+"=") })
	if err := unix.Exec("/proc/self/exe", arguments(line), env); err != nil {
		return fmt.Errorf("execute the program in its mount namespace: %w", err)
	}
	return nil
}

func parse(text string) ([]bind, error) {
	var binds []bind
	for pair := range strings.SplitSeq(text, ",") {
		target, source, ok := strings.Cut(pair, "=")
		if !ok || !filepath.IsAbs(target) || !filepath.IsAbs(source) {
			return nil, fmt.Errorf("%q is not TARGET=SOURCE with absolute paths", pair)
		}
		binds = append(binds, bind{target: filepath.Clean(target), source: filepath.Clean(source)})
	}
	return binds, nil
}

// arguments splits the content of a /proc/PID/cmdline.
func arguments(line []byte) []string {
	var args []string
	for arg := range bytes.SplitSeq(bytes.TrimSuffix(line, []byte{0}), []byte{0}) {
		args = append(args, string(arg))
	}
	return args
}

func (b bind) mount() error {
	target, err := filepath.EvalSymlinks(b.target) // as /var/run
	if err != nil {
		return err
	}
	table, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	over, err := covering(string(table), target)
	if err != nil {
		return err
	}
	// The host sees what is mounted on a shared mount. From here on, this namespace only hears from the host.
	if err := unix.Mount("", over, "", unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("take %s from the host's mounts: %w", over, err)
	}
	return unix.Mount(b.source, target, "", unix.MS_BIND, "")
}

// covering returns the mount point, out of a mountinfo(5), that a path is on.
func covering(mountinfo, path string) (string, error) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	found := ""
	for line := range strings.Lines(mountinfo) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := unescape.Replace(fields[4])
		inside := point == path || point == "/" || strings.HasPrefix(path, point+"/")
		if inside && len(point) >= len(found) { // the last of those on one point covers the others
			found = point
		}
	}
	if found == "" {
		return "", errors.New("it is on no mount")
	}
	return found, nil
}
