// Package config reads the runtime's one configuration file.
//
// The file is TOML, versioned, and optional: every key has a default that works, so a host without the file is configured.
// What is in the file is read strictly: an unknown key, a value of the wrong type and a value outside its range are each
// an [Error] that says where it stands, which key it is, what was written and what may be written instead.
//
//	file ── positions (where each key stands)
//	     └─ decode (types) ── resolve (units, ranges, paths) ── Config
//
// The shim, the CLI and the tests read the same [Config]; nobody else parses the file. docs/reference/config.md describes
// every key, and a test of this package keeps that page, the example file and the code in step.
//
// Version history of the format:
//
//	1  first version
package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
)

const (
	// DefaultPath is where the file is looked for when nothing else is said.
	DefaultPath = "/etc/bulkhead/config.toml"
	// PathVariable names the environment variable that replaces DefaultPath.
	PathVariable = "BULKHEAD_CONFIG"
	// Version is the version of the format that this package reads.
	Version = 1
)

// Values of vmm.acceleration.
const (
	// AccelerationAuto uses hardware where it boots a guest, and else emulation with a warning.
	AccelerationAuto = "auto"
	// AccelerationHardware refuses to start a pod without hardware virtualization.
	AccelerationHardware = "hardware"
	// AccelerationEmulated always emulates. It is no security boundary.
	AccelerationEmulated = "emulated"
)

// Values of sandbox.profile.
const (
	// ProfileStandard sizes a VM by the sum of its containers' limits and what the guest needs.
	ProfileStandard = "standard"
	// ProfileAKS sizes a VM as 1 + x vCPUs and 2 GB + y, as AKS Pod Sandboxing does.
	ProfileAKS = "aks"
)

// maxFile bounds what is read: a configuration is a page of text.
const maxFile = 1 << 20

// Config is the configuration of the runtime, with every default filled in.
type Config struct {
	// StateDir holds what outlives a reboot: guest image, layer cache. Absolute.
	StateDir string
	// RunDir holds what doesn't: sockets, records of running sandboxes. Absolute.
	RunDir string
	// VMM says which virtual machine monitor runs, how, and as whom.
	VMM VMM
	// Guest says what boots in the VM.
	Guest Guest
	// Sandbox sizes a pod's VM.
	Sandbox Sandbox
	// Layers bounds what the cache of converted image layers keeps.
	Layers Layers
	// Log says what is logged.
	Log Log
}

// VMM is the table [vmm].
type VMM struct {
	// Binary is the path of the VMM's program; empty: it is searched for.
	Binary string
	// Acceleration is one of AccelerationAuto, AccelerationHardware, AccelerationEmulated.
	Acceleration string
	// UIDBase and UIDCount are the range of user ids given to VMM processes, one each.
	UIDBase, UIDCount uint32
}

// Guest is the table [guest].
type Guest struct {
	// Kernel and Initramfs are the absolute paths of what the VM boots.
	Kernel, Initramfs string
	// BootTimeout is how long the guest's agent may take to answer.
	BootTimeout time.Duration
	// KernelArgs are appended to the kernel's command line.
	KernelArgs []string
}

// Sandbox is the table [sandbox].
type Sandbox struct {
	// Profile is ProfileStandard or ProfileAKS.
	Profile string
	// DefaultMemory is what a pod without a memory limit may use, in bytes, a multiple of 1 MiB, under ProfileStandard. The
	// VM has more: the guest's own need comes on top, see package sizing.
	DefaultMemory int64
	// DefaultVCPUs is the number of processors of a VM whose pod has no CPU limit, under ProfileStandard.
	DefaultVCPUs int
	// ScratchSize is the size, in bytes, of the disk for what a container writes to its root; it is sparse.
	ScratchSize int64
}

// Layers is the table [layers]. It holds for images that no sandbox uses: one that is used is never removed. A zero value means
// no limit.
type Layers struct {
	// MaxSize is the disk space, in bytes, that the images may take together, those in use included.
	MaxSize int64
	// MaxAge is how long an image is kept after its last use.
	MaxAge time.Duration
}

// Log is the table [log].
type Log struct {
	// Level is the least level that is written.
	Level slog.Level
}

// GuestDir is the directory in which "bulkhead guest build" puts the guest image.
func (c Config) GuestDir() string {
	return filepath.Join(c.StateDir, "guest")
}

// LayersDir is the directory of the cache of converted image layers.
func (c Config) LayersDir() string {
	return filepath.Join(c.StateDir, "layers")
}

// Default is the configuration of a host without a file.
func Default() Config {
	c, err := defaults().resolve(nil)
	if err != nil {
		panic(fmt.Sprintf("config: the defaults are invalid: %v", err)) // a test resolves them
	}
	return c
}

// Path says which file Load(path) reads, and whether it must exist: an explicit path first, then the variable
// BULKHEAD_CONFIG, then DefaultPath, which alone may be missing.
func Path(path string) (file string, required bool) {
	if path != "" {
		return path, true
	}
	if env := os.Getenv(PathVariable); env != "" {
		return env, true
	}
	return DefaultPath, false
}

// Load reads the configuration. An empty path means the one that the environment or the default names. A missing default
// file gives the defaults; a missing file that was asked for is ErrNotFound; what is wrong inside a file is an *Error.
func Load(path string) (Config, error) {
	file, required := Path(path)
	data, err := read(file)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !required:
		return Default(), nil
	case errors.Is(err, fs.ErrNotExist):
		return Config{}, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("configuration file %s does not exist", file))
	case err != nil:
		return Config{}, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(file, data)
}

func read(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%s is larger than %s", file, FormatSize(maxFile)))
	}
	return data, nil
}
