package guest

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

const maxID = 128

// validID tells whether a container's or exec's id can be a file name, an argument and a cgroup's name.
func validID(id string) bool {
	if len(id) == 0 || len(id) > maxID || id[0] == '.' || id[0] == '-' {
		return false
	}
	return strings.IndexFunc(id, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-' || r == '+')
	}) < 0
}

func checkID(what, id string) error {
	if !validID(id) {
		return fmt.Errorf("%s id %q: %w", what, id, errdefs.ErrInvalidArgument)
	}
	return nil
}

// validMountName is the rule of guest.proto: [a-z0-9-]{1,128}.
func validMountName(name string) bool {
	return len(name) > 0 && len(name) <= 128 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// validVolumeName: one component of a path.
func validVolumeName(name string) bool {
	return len(name) > 0 && len(name) <= 255 && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00")
}

// sysctlPath turns a sysctl's name into a path below /proc/sys. As sysctl(8) has it, the first separator in the name, "."
// or "/", is the one that divides it, and the other stands for the first inside its parts.
func sysctlPath(name string) (string, error) {
	path := name
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		path = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, name)
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsRune(part, 0) {
			return "", fmt.Errorf("sysctl %q: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	if len(name) > 255 || !strings.Contains(path, "/") {
		return "", fmt.Errorf("sysctl %q: %w", name, errdefs.ErrInvalidArgument)
	}
	return path, nil
}
