package guestimage

import (
	"bytes"
	"cmp"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// Options say what goes into a guest image, and where it goes.
type Options struct {
	// Dir is the image's directory. It is replaced as a whole.
	Dir string
	// Agent is the path of bulkhead-guest, a static program.
	Agent string
	// KernelPackage is a Debian kernel package, or one that depends on the newest of them; empty: linux-image-cloud-<arch>.
	KernelPackage string
	// Cache is where fetched packages are kept; empty: "packages" beside Dir.
	Cache string
	// Progress gets a line for each step; nil: nobody.
	Progress io.Writer
}

// Build makes an image. On an error, what was in Dir before is still there, untouched.
func Build(ctx context.Context, o Options) error {
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	dir, err := filepath.Abs(o.Dir)
	if o.Dir == "" || err != nil {
		return errdefs.ErrInvalidArgument.WithMessage("the guest image needs a directory")
	}
	o.Dir = dir
	if o.Cache == "" {
		o.Cache = filepath.Join(filepath.Dir(dir), "packages")
	}
	if o.KernelPackage == "" {
		o.KernelPackage = "linux-image-cloud-" + runtime.GOARCH
	}
	if err := replaceable(dir); err != nil {
		return err
	}
	source, err := newApt(o.Cache, o.Progress)
	if err != nil {
		return err
	}
	defer source.close()
	content, err := assemble(ctx, o, source)
	if err != nil {
		return fmt.Errorf("build the guest image: %w", err)
	}
	if err := install(dir, content); err != nil {
		return fmt.Errorf("write the guest image: %w", err)
	}
	m := content.manifest
	fmt.Fprintf(o.Progress, "guest image: kernel %s, %d modules, initramfs %d KiB, in %s\n", m.KernelVersion, len(m.Modules), m.Initramfs.Size>>10, dir)
	return nil
}

// content is an image that is not written yet.
type content struct {
	kernel, initramfs []byte
	manifest          Manifest
}

// assemble makes an image in memory. It depends on its inputs only.
func assemble(ctx context.Context, o Options, source packages) (content, error) {
	agent, machine, err := readAgent(o.Agent)
	if err != nil {
		return content{}, err
	}
	fmt.Fprintf(o.Progress, "kernel from %s\n", o.KernelPackage)
	kernel, err := collectKernel(ctx, source, o.KernelPackage)
	if err != nil {
		return content{}, err
	}
	fmt.Fprintf(o.Progress, "runtime from %s\n", runtimePackage)
	files, pkgs, err := collectRuntime(ctx, source)
	if err != nil {
		return content{}, err
	}
	if r, err := readELF(runtimePath, files.binary); err != nil || r.machine != machine {
		return content{}, fmt.Errorf("the agent is for %v and the runtime for %v", machine, r.machine)
	}
	initramfs, err := pack(layout(agent, kernel.modules, files))
	if err != nil {
		return content{}, err
	}
	m := Manifest{
		Format: manifestFormat, Arch: goarch(machine), KernelVersion: kernel.version,
		Kernel: fileOf(kernel.kernel), Initramfs: fileOf(initramfs), Agent: fileOf(agent), Runtime: fileOf(files.binary),
		Libraries: []string{}, Stubs: files.stubs, Modules: []string{},
		Packages: append(pkgs, kernel.packages...),
	}
	for _, name := range slices.Sorted(maps.Keys(files.libraries)) {
		m.Libraries = append(m.Libraries, path.Base(name))
	}
	for _, mod := range kernel.modules {
		m.Modules = append(m.Modules, mod.name)
	}
	slices.SortFunc(m.Packages, func(a, b Package) int { return cmp.Compare(a.Name, b.Name) })
	return content{kernel: kernel.kernel, initramfs: initramfs, manifest: m}, nil
}

// window bounds the memory that the guest needs for unpacking.
const window = 1 << 20

// pack writes the archive and compresses it. The guest boots as fast from zstd as from no compression, also under
// emulation, where gzip and LZ4 are slower; and the packed archive stays in the VM's memory on the host, though the guest
// gives it up, so packing saves each pod its difference in size.
func pack(entries []entry) ([]byte, error) {
	var out bytes.Buffer
	encoder, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(window),
		zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false)) // one thread: the same bytes on every machine
	if err != nil {
		return nil, fmt.Errorf("compress the initramfs: %w", err)
	}
	if err := errors.Join(writeCPIO(encoder, entries), encoder.Close()); err != nil {
		return nil, fmt.Errorf("compress the initramfs: %w", err)
	}
	return out.Bytes(), nil
}

func goarch(m elf.Machine) string {
	if m == elf.EM_AARCH64 {
		return "arm64"
	}
	return "amd64"
}

// readAgent reads the agent and refuses one that needs a loader: in the guest it is the first program.
func readAgent(file string) ([]byte, elf.Machine, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, 0, errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("read the agent: %v", err))
	}
	info, err := readELF(file, data)
	if err != nil {
		return nil, 0, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("agent: %v", err))
	}
	if info.interpreter != "" {
		return nil, 0, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("agent: %s is not static: it needs %s; build it with CGO_ENABLED=0", file, info.interpreter))
	}
	return data, info.machine, nil
}

// kernelFiles is what is taken from a kernel package.
type kernelFiles struct {
	version  string
	kernel   []byte // as a VMM loads it
	modules  []kernelModule
	packages []Package
}

// collectKernel reads the package, or the one that a meta package depends on.
func collectKernel(ctx context.Context, source packages, name string) (kernelFiles, error) {
	depends, err := source.depends(ctx, name)
	if err != nil {
		return kernelFiles{}, err
	}
	for _, d := range depends {
		if strings.HasPrefix(d, "linux-image-") {
			name = d
			break
		}
	}
	files := newTree()
	keep := func(file string) bool {
		return strings.HasPrefix(file, "boot/vmlinuz-") || strings.Contains(file, "lib/modules/")
	}
	pkg, err := unpack(ctx, source, name, files, keep)
	if err != nil {
		return kernelFiles{}, err
	}
	var versions []string
	for file := range files.nodes {
		if version, ok := strings.CutPrefix(file, "boot/vmlinuz-"); ok {
			versions = append(versions, version)
		}
	}
	if len(versions) != 1 {
		return kernelFiles{}, fmt.Errorf("package %s has %d kernels in /boot, not one", name, len(versions))
	}
	k := kernelFiles{version: versions[0], packages: []Package{pkg}}
	packed, err := files.read("boot/vmlinuz-" + k.version)
	if err != nil {
		return kernelFiles{}, err
	}
	if k.kernel, err = unpackKernel(packed); err != nil {
		return kernelFiles{}, fmt.Errorf("package %s: %w", name, err)
	}
	set, err := newModuleSet(files, k.version)
	if err != nil {
		return kernelFiles{}, err
	}
	k.modules, err = set.resolve(wantedModules())
	return k, err
}

// layout lists the files of the initramfs.
func layout(agent []byte, modules []kernelModule, files runtimeFiles) []entry {
	const executable, readable = unix.S_IFREG | 0o755, unix.S_IFREG | 0o644
	var list strings.Builder
	entries := []entry{
		{name: "init", mode: executable, data: agent},
		{name: runtimePath, mode: executable, data: files.binary},
		// The kernel opens it for the first process before anything is mounted.
		{name: "dev/console", mode: unix.S_IFCHR | 0o600, major: 5, minor: 1},
	}
	if files.loaderPath != "" {
		entries = append(entries, entry{name: files.loaderPath, mode: executable, data: files.loader})
	}
	for name, data := range files.libraries {
		entries = append(entries, entry{name: name, mode: readable, data: data})
	}
	for _, m := range modules {
		name := "lib/modules/" + m.name + ".ko"
		entries = append(entries, entry{name: name, mode: readable, data: m.data})
		list.WriteString("/" + name + "\n")
	}
	entries = append(entries, entry{name: "etc/modules.list", mode: readable, data: []byte(list.String())})
	return withDirectories(entries, "dev", "proc", "sys", "run", "etc", "root", "var", "tmp")
}

// withDirectories adds the extra directories and those that the entries lie in, and sorts.
func withDirectories(entries []entry, extra ...string) []entry {
	dirs := map[string]bool{}
	for _, d := range extra {
		dirs[d] = true
	}
	for _, e := range entries {
		for dir := path.Dir(e.name); dir != "."; dir = path.Dir(dir) {
			dirs[dir] = true
		}
	}
	for dir := range dirs {
		mode := uint32(0o755)
		if dir == "tmp" {
			mode = 0o1777
		}
		entries = append(entries, entry{name: dir, mode: unix.S_IFDIR | mode})
	}
	// A directory's name is a prefix of the names in it, so it comes before them.
	slices.SortFunc(entries, func(a, b entry) int { return cmp.Compare(a.name, b.name) })
	return entries
}

func (m Manifest) encode() ([]byte, error) {
	data, err := json.MarshalIndent(m, "", "  ")
	return append(data, '\n'), err
}
