package guestimage

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"slices"
)

// stubbedLibrary is a library that the guest gets a stand-in for. crun asks systemd for cgroups and logs to its journal when
// it is told to; in the guest there is no systemd, and it never is. The library and what it needs (libgcrypt, libgpg-error,
// liblzma, libzstd, liblz4) are two thirds of the runtime's files, and loading them is a tenth of the time that the runtime
// takes to start a process.
const stubbedLibrary = "libsystemd.so.0"

// makeStub makes a shared library with the functions that an ELF program wants of the library soname. Each returns
// -ENOSYS. The loader resolves every function when the program starts (Debian builds with BIND_NOW), so all must be
// there, under the versions that the program asks for. No file at all comes back when the program wants nothing.
//
//	segment 1, read and execute:  ELF header, program headers, hash, dynsym, dynstr, versions of symbols, versions, code
//	segment 2, read and write:    dynamic section (the loader relocates it in place)
func makeStub(program []byte, soname string) ([]byte, error) {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return nil, fmt.Errorf("read as an ELF file: %w", err)
	}
	imports, err := f.ImportedSymbols()
	if err != nil {
		return nil, fmt.Errorf("read imported symbols: %w", err)
	}
	imports = slices.DeleteFunc(imports, func(s elf.ImportedSymbol) bool { return s.Library != soname })
	if len(imports) == 0 {
		return nil, nil
	}
	slices.SortFunc(imports, func(a, b elf.ImportedSymbol) int { return cmp.Compare(a.Name, b.Name) })
	var code []byte
	switch f.Machine {
	case elf.EM_X86_64:
		code = []byte{0xb8, 0xda, 0xff, 0xff, 0xff, 0xc3} // mov $-38,%eax; ret
	case elf.EM_AARCH64:
		code = []byte{0xa0, 0x04, 0x80, 0x12, 0xc0, 0x03, 0x5f, 0xd6} // mov w0,#-38; ret
	default:
		return nil, fmt.Errorf("no stub for the machine %v", f.Machine)
	}
	s := stub{machine: f.Machine, soname: soname, imports: imports, code: code}
	return s.link()
}

// stub is a shared library that is being made.
type stub struct {
	machine elf.Machine
	soname  string
	imports []elf.ImportedSymbol
	code    []byte

	strings []byte
	// versions are the names of symbol versions, in the order of their indexes from 2; 1 is the library itself.
	versions []string
}

const (
	stubPage     = 0x10000 // arm64 kernels may have pages of 64 KiB
	stubPrograms = 4
	elfHeader    = 64
	elfProgram   = 56
)

// name adds a string and gives its offset.
func (s *stub) name(text string) uint32 {
	at := len(s.strings)
	s.strings = append(append(s.strings, text...), 0)
	return uint32(at)
}

// version gives the index of a symbol version.
func (s *stub) version(name string) uint16 {
	i := slices.Index(s.versions, name)
	if i < 0 {
		i = len(s.versions)
		s.versions = append(s.versions, name)
	}
	return uint16(i + 2)
}

func (s *stub) link() ([]byte, error) {
	s.strings = []byte{0}
	soname := s.name(s.soname)
	symbols := make([]elf.Sym64, 1, len(s.imports)+1)
	versym := []uint16{0}
	for _, symbol := range s.imports {
		// There are no section headers: any index but 0 says that the symbol is defined here.
		symbols = append(symbols, elf.Sym64{Name: s.name(symbol.Name), Info: elf.ST_INFO(elf.STB_GLOBAL, elf.STT_FUNC), Shndx: 1, Size: uint64(len(s.code))})
		index := uint16(1)
		if symbol.Version != "" {
			index = s.version(symbol.Version)
		}
		versym = append(versym, index)
	}
	verdef := s.verdef(soname)
	hash := s.hash()

	var text bytes.Buffer
	text.Write(make([]byte, elfHeader+stubPrograms*elfProgram))
	put := func(v any) uint64 {
		text.Write(make([]byte, -text.Len()&15))
		at := uint64(text.Len())
		_ = binary.Write(&text, binary.LittleEndian, v) // a buffer takes all
		return at
	}
	hashAt, stringsAt, versymAt, verdefAt, codeAt := put(hash), put(s.strings), put(versym), put(verdef), put(s.code)
	for i := range symbols[1:] {
		symbols[i+1].Value = codeAt
	}
	symbolsAt := put(symbols)
	textSize := uint64(text.Len())
	text.Write(make([]byte, -text.Len()&(stubPage-1)))
	dynamicAt := uint64(text.Len())
	dynamic := []elf.Dyn64{
		{Tag: int64(elf.DT_SONAME), Val: uint64(soname)}, {Tag: int64(elf.DT_HASH), Val: hashAt},
		{Tag: int64(elf.DT_STRTAB), Val: stringsAt}, {Tag: int64(elf.DT_STRSZ), Val: uint64(len(s.strings))},
		{Tag: int64(elf.DT_SYMTAB), Val: symbolsAt}, {Tag: int64(elf.DT_SYMENT), Val: elf.Sym64Size},
		{Tag: int64(elf.DT_VERSYM), Val: versymAt}, {Tag: int64(elf.DT_VERDEF), Val: verdefAt}, {Tag: int64(elf.DT_VERDEFNUM), Val: uint64(len(s.versions) + 1)},
		{Tag: int64(elf.DT_NULL)},
	}
	put(dynamic)
	dynamicSize := uint64(text.Len()) - dynamicAt

	header := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_DYN), Machine: uint16(s.machine), Version: uint32(elf.EV_CURRENT),
		Phoff: elfHeader, Ehsize: elfHeader, Phentsize: elfProgram, Phnum: stubPrograms, Shentsize: 64,
	}
	segment := func(kind elf.ProgType, flags elf.ProgFlag, at, size, align uint64) elf.Prog64 {
		return elf.Prog64{Type: uint32(kind), Flags: uint32(flags), Off: at, Vaddr: at, Paddr: at, Filesz: size, Memsz: size, Align: align}
	}
	var head bytes.Buffer
	err := binary.Write(&head, binary.LittleEndian, struct {
		Header   elf.Header64
		Programs [stubPrograms]elf.Prog64
	}{header, [stubPrograms]elf.Prog64{
		segment(elf.PT_LOAD, elf.PF_R|elf.PF_X, 0, textSize, stubPage),
		segment(elf.PT_LOAD, elf.PF_R|elf.PF_W, dynamicAt, dynamicSize, stubPage),
		segment(elf.PT_DYNAMIC, elf.PF_R|elf.PF_W, dynamicAt, dynamicSize, 8),
		segment(elf.PT_GNU_STACK, elf.PF_R|elf.PF_W, 0, 0, 16), // without it the loader would make the stack executable
	}})
	library := text.Bytes()
	copy(library, head.Bytes())
	return library, err
}

// verdef lists the versions that the library defines: itself first, then those of the symbols.
func (s *stub) verdef(soname uint32) []byte {
	var out []byte
	// struct Verdef (20 bytes) and Verdaux (8 bytes) of the System V ABI's GNU extensions.
	add := func(flags, index uint16, name string, at uint32, last bool) {
		next := uint32(28)
		if last {
			next = 0
		}
		for _, v := range []uint16{1, flags, index, 1} {
			out = binary.LittleEndian.AppendUint16(out, v)
		}
		for _, v := range []uint32{sysvHash(name), 20, next, at, 0} {
			out = binary.LittleEndian.AppendUint32(out, v)
		}
	}
	const isBase = 1
	add(isBase, 1, s.soname, soname, len(s.versions) == 0)
	for i, version := range s.versions {
		add(0, uint16(i+2), version, s.name(version), i == len(s.versions)-1)
	}
	return out
}

// stubBuckets is large for so few symbols, because the loader looks here for most symbols of the program, and mostly in vain.
const stubBuckets = 127

// hash is the table DT_HASH: number of buckets and of symbols, the first symbol of each bucket, the next symbol of each.
func (s *stub) hash() []uint32 {
	count := len(s.imports) + 1
	table := make([]uint32, 2+stubBuckets+count)
	table[0], table[1] = stubBuckets, uint32(count)
	buckets, chains := table[2:2+stubBuckets], table[2+stubBuckets:]
	for i, symbol := range s.imports {
		b := sysvHash(symbol.Name) % stubBuckets
		chains[i+1], buckets[b] = buckets[b], uint32(i+1)
	}
	return table
}

// sysvHash is the hash function of the System V ABI.
func sysvHash(name string) uint32 {
	var h uint32
	for i := range len(name) {
		h = h<<4 + uint32(name[i])
		g := h & 0xf0000000
		h ^= g >> 24
		h &^= g
	}
	return h
}
