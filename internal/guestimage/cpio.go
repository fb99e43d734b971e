package guestimage

import (
	"fmt"
	"io"
	"math"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// entry is a file of an initramfs.
type entry struct {
	// name is a clean relative path.
	name string
	// mode is the file type (S_IFREG, S_IFDIR, S_IFLNK, S_IFCHR) and the permissions.
	mode uint32
	// data is the content of a regular file, or the target of a symbolic link.
	data []byte
	// major and minor number a device.
	major, minor uint32
}

// Layout of the "newc" format that the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
// Each entry is
//
//	"070701"  magic
//	13 × 8    hexadecimal digits: ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
//	name      namesize bytes with the NUL, padded so that header and name are a multiple of 4
//	data      filesize bytes, padded to a multiple of 4
//
// and the last entry is named "TRAILER!!!".
const (
	cpioMagic   = "070701"
	cpioTrailer = "TRAILER!!!"
	cpioHeader  = 110
)

// writeCPIO writes entries in the given order, which must have a directory before what is in it. Owner is root and the time
// is 0, so that equal entries give equal bytes.
func writeCPIO(w io.Writer, entries []entry) error {
	for i, e := range entries {
		if err := e.valid(); err != nil {
			return err
		}
		if err := writeEntry(w, uint32(i+1), e); err != nil {
			return fmt.Errorf("write %s: %w", e.name, err)
		}
	}
	return writeEntry(w, 0, entry{name: cpioTrailer})
}

func (e entry) valid() error {
	switch {
	case e.name == "" || e.name != path.Clean(e.name) || strings.HasPrefix(e.name, "/") || e.name == "." || strings.HasPrefix(e.name, ".."),
		strings.Contains(e.name, "\x00"), e.name == cpioTrailer:
		return fmt.Errorf("initramfs: %q is no name for a file", e.name)
	case len(e.name) >= unix.PathMax:
		return fmt.Errorf("initramfs: the name %.40q… is too long", e.name)
	case len(e.data) > math.MaxUint32:
		return fmt.Errorf("initramfs: %s is larger than 4 GiB", e.name)
	}
	return nil
}

func writeEntry(w io.Writer, ino uint32, e entry) error {
	nlink := 1
	if e.mode&unix.S_IFMT == unix.S_IFDIR {
		nlink = 2
	}
	name := e.name + "\x00"
	fields := []any{ino, e.mode, 0, 0, nlink, 0, len(e.data), 0, 0, e.major, e.minor, len(name), 0}
	header := cpioMagic + fmt.Sprintf(strings.Repeat("%08X", len(fields)), fields...)
	for _, part := range [][]byte{[]byte(header + name), padding(len(header) + len(name)), e.data, padding(len(e.data))} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

func padding(n int) []byte {
	return make([]byte, (4-n%4)%4)
}
