package guestimage

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// wantedModule is a kernel module that the guest needs.
type wantedModule struct {
	name string
	// optional ones are left out when the kernel has them neither built in nor as a file.
	optional bool
}

// wantedModules is what the guest needs, in the order in which it needs it; dependencies come by themselves. A module that a
// kernel has built in is skipped.
//
// Left out on purpose: packet filters (nf_tables, iptables), tunnels, bridges, FUSE-based file systems of the container's
// own. A container that would load them on an ordinary node can't here; they come with a feature that needs them.
func wantedModules() []wantedModule {
	must := func(names ...string) (list []wantedModule) {
		for _, n := range names {
			list = append(list, wantedModule{name: n})
		}
		return list
	}
	may := func(names ...string) (list []wantedModule) {
		for _, n := range names {
			list = append(list, wantedModule{name: n, optional: true})
		}
		return list
	}
	return slices.Concat(
		// The channel to the host: virtio-serial on PCI. First, so that a guest that fails later can say so.
		must("virtio", "virtio_ring"),
		may("virtio_pci_modern_dev", "virtio_pci_legacy_dev"), // part of virtio_pci in other kernels
		must("virtio_pci", "virtio_console"),
		// Disks: virtio-scsi, and the file systems on them. ext4 is for the scratch disk. erofs and ext4 want crc32c.
		must("scsi_common", "scsi_mod", "virtio_scsi", "sd_mod"),
		may("crc32c_intel", "crc32c_generic"), // the first is a fast one on x86
		must("libcrc32c", "erofs", "ext4", "overlay"),
		// Network: virtio-net, which links to its failover driver.
		must("failover", "net_failover", "virtio_net"),
		// Host directories that are served to the pod.
		must("fuse"),
		// Entropy, and memory that is given back to the host.
		must("rng_core", "virtio_rng", "virtio_balloon"),
	)
}

// kernelModule is a module that goes into the initramfs.
type kernelModule struct {
	name string
	data []byte
}

// moduleSet is the modules of an unpacked kernel package. Names have "_" for "-", as the kernel has it.
type moduleSet struct {
	tree    *tree
	files   map[string]string // name → path in tree
	builtin map[string]bool
}

// newModuleSet finds the modules of a kernel version.
func newModuleSet(t *tree, version string) (*moduleSet, error) {
	set := &moduleSet{tree: t, files: make(map[string]string), builtin: make(map[string]bool)}
	roots := []string{"lib/modules/" + version + "/", "usr/lib/modules/" + version + "/"}
	for file := range t.nodes {
		if !slices.ContainsFunc(roots, func(root string) bool { return strings.HasPrefix(file, root) }) {
			continue
		}
		if name, ok := moduleName(file); ok {
			set.files[name] = file
		}
	}
	for _, root := range roots {
		list, err := t.read(root + "modules.builtin")
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(list)) {
			if name, ok := moduleName(strings.TrimSpace(line)); ok {
				set.builtin[name] = true
			}
		}
		return set, nil
	}
	return nil, fmt.Errorf("kernel %s: the package has no modules.builtin", version)
}

// moduleName gives the name of the module in a file, and whether it is one.
func moduleName(file string) (string, bool) {
	base := path.Base(file)
	for _, suffix := range []string{".ko", ".ko.xz", ".ko.zst", ".ko.gz"} {
		if name, ok := strings.CutSuffix(base, suffix); ok && name != "" {
			return strings.ReplaceAll(name, "-", "_"), true
		}
	}
	return "", false
}

// resolve gives the wanted modules and what they depend on, each after its dependencies. depmod is not asked: a package
// carries no modules.dep, and each module says itself what it depends on.
func (s *moduleSet) resolve(wanted []wantedModule) ([]kernelModule, error) {
	var order []kernelModule
	state := make(map[string]int) // 1: on the way, 2: done
	var visit func(name string, chain []string) error
	visit = func(name string, chain []string) error {
		chain = append(slices.Clone(chain), name)
		switch {
		case s.builtin[name] || state[name] == 2:
			return nil
		case state[name] == 1:
			return fmt.Errorf("kernel modules depend on each other: %s", strings.Join(chain, " → "))
		case s.files[name] == "":
			return fmt.Errorf("kernel module %s is neither built in nor in the package", strings.Join(chain, " → "))
		}
		state[name] = 1
		data, err := s.read(name)
		if err != nil {
			return err
		}
		depends, err := moduleDepends(data)
		if err != nil {
			return fmt.Errorf("kernel module %s: %w", s.files[name], err)
		}
		for _, d := range depends {
			if err := visit(d, chain); err != nil {
				return err
			}
		}
		state[name] = 2
		order = append(order, kernelModule{name: name, data: data})
		return nil
	}
	for _, w := range wanted {
		if w.optional && s.files[w.name] == "" {
			continue
		}
		if err := visit(w.name, nil); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// read gives a module uncompressed: whether the kernel can load a compressed one depends on how it was built.
func (s *moduleSet) read(name string) ([]byte, error) {
	file := s.files[name]
	data, err := s.tree.read(file)
	if err != nil {
		return nil, err
	}
	var r io.Reader
	switch path.Ext(file) {
	case ".ko":
		return data, nil
	case ".xz":
		r, err = xz.NewReader(bytes.NewReader(data))
	case ".zst":
		r, err = zstd.NewReader(bytes.NewReader(data))
	case ".gz":
		r, err = gzip.NewReader(bytes.NewReader(data))
	}
	if err != nil {
		return nil, fmt.Errorf("decompress %s: %w", file, err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxPackageFile))
	if err != nil {
		return nil, fmt.Errorf("decompress %s: %w", file, err)
	}
	return plain, nil
}

// moduleDepends reads the names in "depends=a,b" of a module's section .modinfo, which is a list of NUL-terminated strings.
func moduleDepends(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, fmt.Errorf("read as an ELF file: %w", err)
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("it has no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, fmt.Errorf("read .modinfo: %w", err)
	}
	var names []string
	for field := range bytes.SplitSeq(info, []byte{0}) {
		list, ok := bytes.CutPrefix(field, []byte("depends="))
		if !ok || len(list) == 0 {
			continue
		}
		for name := range strings.SplitSeq(string(list), ",") {
			names = append(names, strings.ReplaceAll(name, "-", "_"))
		}
	}
	return names, nil
}
