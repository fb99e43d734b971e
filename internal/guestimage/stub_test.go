package guestimage

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// loaded is a library as the loader sees it: by its program headers.
type loaded struct {
	image   []byte
	dynamic map[elf.DynTag]uint64
}

func load(t *testing.T, library []byte) loaded {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(library))
	if err != nil {
		t.Fatal(err)
	}
	l := loaded{image: library, dynamic: map[elf.DynTag]uint64{}}
	stack := false
	for _, p := range f.Progs {
		if p.Off != p.Vaddr || p.Off+p.Filesz > uint64(len(library)) {
			t.Fatalf("segment %+v of %d bytes", p.ProgHeader, len(library))
		}
		if p.Type == elf.PT_LOAD && (p.Flags&elf.PF_W != 0 && p.Flags&elf.PF_X != 0 || p.Vaddr%p.Align != 0) {
			t.Errorf("segment %+v", p.ProgHeader)
		}
		stack = stack || p.Type == elf.PT_GNU_STACK && p.Flags&elf.PF_X == 0
		if p.Type != elf.PT_DYNAMIC {
			continue
		}
		for at := p.Off; at < p.Off+p.Filesz; at += 16 {
			l.dynamic[elf.DynTag(binary.LittleEndian.Uint64(library[at:]))] = binary.LittleEndian.Uint64(library[at+8:])
		}
	}
	if !stack {
		t.Error("the stack would be executable")
	}
	return l
}

func (l loaded) text(at uint64) string {
	text, _, _ := strings.Cut(string(l.image[l.dynamic[elf.DT_STRTAB]+at:]), "\x00")
	return text
}

// lookup finds a symbol by the hash table and gives its version and code.
func (l loaded) lookup(name string) (version string, code []byte) {
	u32 := func(at uint64) uint64 { return uint64(binary.LittleEndian.Uint32(l.image[at:])) }
	u16 := func(at uint64) uint64 { return uint64(binary.LittleEndian.Uint16(l.image[at:])) }
	hash := l.dynamic[elf.DT_HASH]
	buckets := u32(hash)
	for i := u32(hash + 8 + 4*(uint64(sysvHash(name))%buckets)); i != 0; i = u32(hash + 8 + 4*(buckets+i)) {
		symbol := l.dynamic[elf.DT_SYMTAB] + i*elf.Sym64Size
		if l.text(u32(symbol)) != name {
			continue
		}
		value, size := binary.LittleEndian.Uint64(l.image[symbol+8:]), binary.LittleEndian.Uint64(l.image[symbol+16:])
		index := u16(l.dynamic[elf.DT_VERSYM] + 2*i)
		for at := l.dynamic[elf.DT_VERDEF]; ; at += u32(at + 16) {
			if u16(at+4) == index {
				version = l.text(u32(at + u32(at+12)))
				if u32(at+8) != uint64(sysvHash(version)) {
					version += " (wrong hash)"
				}
			}
			if u32(at+16) == 0 {
				break
			}
		}
		return version, l.image[value : value+size]
	}
	return "", nil
}

func TestStub(t *testing.T) {
	code := []byte{1, 2, 3, 4}
	s := stub{machine: elf.EM_X86_64, soname: "libx.so.0", code: code}
	for name, version := range map[string]string{"x_open": "X_1", "x_close": "X_1", "x_wait": "X_2", "plain": ""} {
		s.imports = append(s.imports, elf.ImportedSymbol{Name: name, Version: version, Library: "libx.so.0"})
	}
	library, err := s.link()
	if err != nil {
		t.Fatal(err)
	}
	l := load(t, library)
	if got := l.text(l.dynamic[elf.DT_SONAME]); got != "libx.so.0" {
		t.Errorf("soname %q", got)
	}
	for name, want := range map[string]string{"x_open": "X_1", "x_close": "X_1", "x_wait": "X_2", "plain": "libx.so.0"} {
		version, got := l.lookup(name)
		if version != want || !bytes.Equal(got, code) {
			t.Errorf("%s: version %q, code %v", name, version, got)
		}
	}
	if _, code := l.lookup("x_missing"); code != nil {
		t.Error("found what isn't there")
	}
	if l.dynamic[elf.DT_VERDEFNUM] != 3 {
		t.Errorf("%d versions", l.dynamic[elf.DT_VERDEFNUM])
	}
}

func TestStubOfNothing(t *testing.T) {
	if library, err := makeStub([]byte("text"), "libx.so.0"); err == nil {
		t.Errorf("a stub for no program: %v", library)
	}
}

func TestSysVHash(t *testing.T) {
	// Values as in the version tables of the C library.
	got := []uint32{sysvHash(""), sysvHash("GLIBC_2.2.5"), sysvHash("GLIBC_2.34")}
	if diff := cmp.Diff([]uint32{0, 0x09691a75, 0x069691b4}, got); diff != "" {
		t.Error(diff)
	}
}
