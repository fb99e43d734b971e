package guestimage

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
)

// elfSpec is a tiny ELF file with just what this package reads.
type elfSpec struct {
	machine     elf.Machine
	interpreter string
	needed      []string
	modinfo     string
}

// elfBytes writes header, program header (PT_INTERP), sections .dynstr, .dynamic, .modinfo, .shstrtab.
func elfBytes(s elfSpec) []byte {
	if s.machine == 0 {
		s.machine = elf.EM_X86_64
	}
	const headerSize, progSize = 64, 56
	dynstr, dynamic := []byte{0}, []byte{}
	for _, n := range s.needed {
		dynamic = binary.LittleEndian.AppendUint64(dynamic, uint64(elf.DT_NEEDED))
		dynamic = binary.LittleEndian.AppendUint64(dynamic, uint64(len(dynstr)))
		dynstr = append(dynstr, n+"\x00"...)
	}
	dynamic = append(dynamic, make([]byte, 16)...) // DT_NULL
	names := "\x00.dynstr\x00.dynamic\x00.modinfo\x00.shstrtab\x00"
	offset := func(name string) uint32 { return uint32(strings.Index(names, "\x00"+name+"\x00") + 1) }
	type section struct {
		name string
		kind elf.SectionType
		link uint32
		data []byte
	}
	sections := []section{
		{".dynstr", elf.SHT_STRTAB, 0, dynstr}, {".dynamic", elf.SHT_DYNAMIC, 1, dynamic},
		{".modinfo", elf.SHT_PROGBITS, 0, []byte(s.modinfo)}, {".shstrtab", elf.SHT_STRTAB, 0, []byte(names)},
	}
	var body bytes.Buffer
	at := uint64(headerSize + progSize)
	interpreterAt := at
	body.WriteString(s.interpreter)
	headers := []elf.Section64{{}}
	for _, sec := range sections {
		headers = append(headers, elf.Section64{
			Name: offset(sec.name), Type: uint32(sec.kind), Link: sec.link, Off: at + uint64(body.Len()), Size: uint64(len(sec.data)), Addralign: 1,
		})
		body.Write(sec.data)
	}
	header := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_DYN), Machine: uint16(s.machine), Version: 1, Phoff: headerSize, Shoff: at + uint64(body.Len()),
		Ehsize: headerSize, Phentsize: progSize, Shentsize: 64, Shnum: uint16(len(headers)), Shstrndx: uint16(len(headers) - 1),
	}
	prog := elf.Prog64{Type: uint32(elf.PT_INTERP), Off: interpreterAt, Filesz: uint64(len(s.interpreter))}
	if s.interpreter != "" {
		header.Phnum = 1
	}
	var out bytes.Buffer
	for _, part := range []any{header, prog, body.Bytes(), headers} {
		if err := binary.Write(&out, binary.LittleEndian, part); err != nil {
			panic(err)
		}
	}
	return out.Bytes()
}

// module is a kernel module.
func module(name, depends string) string {
	return string(elfBytes(elfSpec{modinfo: "license=GPL\x00depends=" + depends + "\x00name=" + name + "\x00"}))
}

// fakePackage is a Debian package. A content that starts with "-> " is a symbolic link.
type fakePackage struct {
	depends []string
	files   map[string]string
}

// fakePackages is a Debian repository in memory.
type fakePackages map[string]fakePackage

func (f fakePackages) depends(_ context.Context, name string) ([]string, error) {
	p, ok := f[name]
	if !ok {
		return nil, fmt.Errorf("no package %s", name)
	}
	return p.depends, nil
}

func (f fakePackages) fetch(_ context.Context, name string) (Package, error) {
	if _, ok := f[name]; !ok {
		return Package{}, fmt.Errorf("no package %s", name)
	}
	return Package{Name: name, Version: "1", SHA256: fileOf([]byte(name)).SHA256}, nil
}

func (f fakePackages) open(_ context.Context, pkg Package) (io.ReadCloser, error) {
	var buf bytes.Buffer
	archive := tar.NewWriter(&buf)
	files := f[pkg.Name].files
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := &tar.Header{Name: "./" + name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[name]))}
		if target, ok := strings.CutPrefix(files[name], "-> "); ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, target, 0
		}
		if err := archive.WriteHeader(h); err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(archive, files[name]); err != nil {
				return nil, err
			}
		}
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	return io.NopCloser(&buf), nil
}

const (
	testRelease = "6.9-test"
	testLoader  = "/lib64/ld-linux-x86-64.so.2"
)

// wholeRepository has all that an image needs, with the oddities of the real ones: a meta package, a loader behind two
// links, a library in a package that is only a dependency of a dependency, files that nobody wants.
func wholeRepository(t *testing.T) fakePackages {
	t.Helper()
	kernel := map[string]string{
		"boot/vmlinuz-" + testRelease:                     "the kernel",
		"boot/config-" + testRelease:                      "CONFIG=y",
		"lib/modules/" + testRelease + "/modules.builtin": "kernel/fs/ext4/ext4.ko\nkernel/drivers/char/hw_random/rng-core.ko\n",
	}
	for _, w := range wantedModules() {
		if w.name == "ext4" || w.name == "rng_core" || w.optional {
			continue
		}
		kernel["lib/modules/"+testRelease+"/kernel/"+w.name+".ko"] = module(w.name, "")
	}
	dir := "lib/modules/" + testRelease + "/kernel/"
	delete(kernel, dir+"virtio_rng.ko")
	kernel[dir+"virtio-rng.ko"] = module("virtio_rng", "rng-core") // a dash in the file's name, a dependency that is built in
	kernel[dir+"virtio.ko"] = module("virtio", "virtio_ring")
	kernel[dir+"erofs.ko"] = module("erofs", "libcrc32c,extra-dep")
	kernel[dir+"extra_dep.ko"] = module("extra_dep", "")
	kernel[dir+"unwanted.ko"] = module("unwanted", "")
	lib := func(needed ...string) string { return string(elfBytes(elfSpec{needed: needed})) }
	return fakePackages{
		"linux-image-cloud-amd64":    {depends: []string{"linux-image-" + testRelease}},
		"linux-image-" + testRelease: {depends: []string{"kmod"}, files: kernel},
		"crun": {depends: []string{"libc6", "libdirect"}, files: map[string]string{
			"usr/bin/crun":            string(elfBytes(elfSpec{interpreter: testLoader, needed: []string{"libdirect.so.1", "libc.so.6"}})),
			"usr/share/doc/crun/copy": "nothing to see",
		}},
		"libc6": {files: map[string]string{
			"lib/x86_64-linux-gnu/libc.so.6":            lib("ld-linux-x86-64.so.2"),
			"lib/x86_64-linux-gnu/libm.so.6":            lib("libc.so.6"),
			"lib/x86_64-linux-gnu/ld-linux-x86-64.so.2": lib(),
			"lib64": "-> usr/lib64", "usr/lib64/ld-linux-x86-64.so.2": "-> /lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
		}},
		"libdirect": {depends: []string{"libindirect"}, files: map[string]string{
			"usr/lib/x86_64-linux-gnu/libdirect.so.1": "-> libdirect.so.1.2", "usr/lib/x86_64-linux-gnu/libdirect.so.1.2": lib("libindirect.so.3", "libc.so.6"),
		}},
		"libindirect": {depends: []string{"libc6"}, files: map[string]string{"usr/lib/x86_64-linux-gnu/libindirect.so.3": lib("libc.so.6")}},
	}
}
