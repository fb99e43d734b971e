package guestimage

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"time"
)

// manifestFormat is the version of manifest.json.
//
//	1  first version
const manifestFormat = 1

// Manifest is the content of manifest.json: what the image was made of. It holds no time and no path, so that it is the
// same for the same inputs.
type Manifest struct {
	Format int `json:"format"`
	// Arch is the processor architecture, as Go names it.
	Arch string `json:"arch"`
	// KernelVersion is what "uname -r" says in the guest.
	KernelVersion string `json:"kernelVersion"`
	Kernel        File   `json:"kernel"`
	Initramfs     File   `json:"initramfs"`
	// Agent is /init of the initramfs.
	Agent File `json:"agent"`
	// Runtime is the OCI runtime in the initramfs.
	Runtime File `json:"runtime"`
	// Libraries are the shared libraries of the runtime, by soname.
	Libraries []string `json:"libraries"`
	// Stubs are those libraries that are stand-ins: the runtime names them, and in a guest never uses them.
	Stubs []string `json:"stubs,omitempty"`
	// Modules are the kernel modules in the order in which they are loaded.
	Modules []string `json:"modules"`
	// Packages are the Debian packages that the kernel, the modules and the runtime were taken from, by name.
	Packages []Package `json:"packages"`
}

// File is a file's size and checksum.
type File struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Package is a Debian package.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	// SHA256 of the .deb file.
	SHA256 string `json:"sha256"`
}

func fileOf(data []byte) File {
	sum := sha256.Sum256(data)
	return File{Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}
}

// stamp is the modification time that Build gives the file. It is made from the checksum: a file that was written to, or
// that comes from another build, has another one, and no time of building gets into the manifest.
func (f File) stamp() time.Time {
	sum, err := hex.DecodeString(f.SHA256)
	if err != nil || len(sum) < 4 {
		return time.Time{}
	}
	const year2001, seventeenYears = 1_000_000_000, 1 << 29
	return time.Unix(year2001+int64(binary.BigEndian.Uint32(sum)%seventeenYears), 0)
}
