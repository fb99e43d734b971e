package vmmtest

import (
	"fmt"
	"io"
	"strings"
)

// cpioFile is a regular file (or, with Dir, a directory) of an initramfs.
type cpioFile struct {
	Name string // relative, parents first
	Dir  bool
	Data []byte
}

// writeCPIO writes an archive in the "newc" form that the kernel unpacks (Documentation/driver-api/early-userspace/
// buffer-format.rst): for each file a header of "070701" and 13 numbers of 8 hexadecimal digits, the name with a final NUL,
// and the data; both padded to 4 bytes from the start of the header. "TRAILER!!!" ends it. Equal files give equal bytes.
func writeCPIO(w io.Writer, files []cpioFile) error {
	for i, file := range append(files, cpioFile{Name: "TRAILER!!!"}) {
		mode := 0o100755
		if file.Dir {
			mode = 0o040755
		}
		header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			i+1, mode, 0, 0, 1, 0, len(file.Data), 0, 0, 0, 0, len(file.Name)+1, 0)
		name := pad4(header + file.Name + "\x00")
		if _, err := io.WriteString(w, name); err != nil {
			return err
		}
		if _, err := w.Write(file.Data); err != nil {
			return err
		}
		if _, err := io.WriteString(w, strings.Repeat("\x00", -len(file.Data)&3)); err != nil {
			return err
		}
	}
	return nil
}

func pad4(s string) string { return s + strings.Repeat("\x00", -len(s)&3) }
