package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"runtime"

	"github.com/containerd/errdefs"
)

// Pause gives the files of an image whose one program does nothing until it gets SIGTERM or SIGINT, and the entrypoint that
// runs it: what holds the namespaces of a pod. As process 1 of a shared process namespace it also takes away processes whose
// parents have died.
//
// The program is for this program's own architecture, has some 300 bytes, and needs one page of memory.
func Pause() (tree Tree, entrypoint []string, err error) {
	program, err := pauseProgram(runtime.GOARCH)
	if err != nil {
		return nil, nil, err
	}
	return Tree{{Path: "pause", Mode: 0o755, Data: program}}, []string{"/pause"}, nil
}

// pauseProgram writes an ELF file with one segment, mapped at pauseBase:
//
//	0x00  file header
//	0x40  header of the segment, which is the whole file
//	0x78  struct sigaction {SIG_IGN}              (4 words: handler, flags, restorer, mask)
//	0x98  the set of SIGTERM and SIGINT           (1 word)
//	0xa0  code
func pauseProgram(arch string) ([]byte, error) {
	var machine elf.Machine
	var code []byte
	switch arch {
	case "amd64":
		machine, code = elf.EM_X86_64, pauseAMD64()
	case "arm64":
		machine, code = elf.EM_AARCH64, pauseARM64()
	default:
		return nil, errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("no pause program for the architecture %s", arch))
	}
	const (
		pauseBase   = 0x400000
		entry       = 0xa0
		sigIgnore   = 1
		termAndInt  = 1<<(15-1) | 1<<(2-1)
		largestPage = 0x10000 // arm64
	)
	size := uint64(entry + len(code))
	var b bytes.Buffer
	for _, part := range []any{
		elf.Header64{
			Ident:   [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type:    uint16(elf.ET_EXEC),
			Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Entry: pauseBase + entry,
			Phoff: 0x40, Ehsize: 0x40, Phentsize: 0x38, Phnum: 1,
		},
		elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: pauseBase, Paddr: pauseBase,
			Filesz: size, Memsz: size, Align: largestPage,
		},
		[4]uint64{sigIgnore},
		uint64(termAndInt),
		code,
	} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			return nil, fmt.Errorf("write the pause program: %w", err)
		}
	}
	return b.Bytes(), nil
}

// The code is the same on both architectures:
//
//	rt_sigaction(SIGCHLD, {SIG_IGN}, NULL, 8)      the kernel reaps children that nobody waits for
//	rt_sigprocmask(SIG_BLOCK, {TERM, INT}, NULL, 8) process 1 would never see them otherwise
//	do r = rt_sigtimedwait({TERM, INT}, NULL, NULL, 8) while r < 0
//	exit_group(0)
func pauseAMD64() []byte {
	return []byte{
		0xbf, 0x11, 0x00, 0x00, 0x00, // mov edi, 17
		0xbe, 0x78, 0x00, 0x40, 0x00, // mov esi, 0x400078
		0x31, 0xd2, // xor edx, edx
		0x41, 0xba, 0x08, 0x00, 0x00, 0x00, // mov r10d, 8
		0xb8, 0x0d, 0x00, 0x00, 0x00, // mov eax, 13
		0x0f, 0x05, // syscall
		0x31, 0xff, // xor edi, edi
		0xbe, 0x98, 0x00, 0x40, 0x00, // mov esi, 0x400098
		0xb8, 0x0e, 0x00, 0x00, 0x00, // mov eax, 14
		0x0f, 0x05, // syscall
		0xbf, 0x98, 0x00, 0x40, 0x00, // wait: mov edi, 0x400098
		0x31, 0xf6, // xor esi, esi
		0xb8, 0x80, 0x00, 0x00, 0x00, // mov eax, 128
		0x0f, 0x05, // syscall
		0x85, 0xc0, // test eax, eax
		0x78, 0xee, // js wait
		0x31, 0xff, // xor edi, edi
		0xb8, 0xe7, 0x00, 0x00, 0x00, // mov eax, 231
		0x0f, 0x05, // syscall
	}
}

func pauseARM64() []byte {
	var b []byte
	for _, instruction := range []uint32{
		0xd2800220, // mov x0, #17
		0xd2a00801, // movz x1, #0x40, lsl #16
		0xf2800f01, // movk x1, #0x78
		0xd2800002, // mov x2, #0
		0xd2800103, // mov x3, #8
		0xd28010c8, // mov x8, #134
		0xd4000001, // svc #0
		0xd2800000, // mov x0, #0
		0xd2a00801, // movz x1, #0x40, lsl #16
		0xf2801301, // movk x1, #0x98
		0xd28010e8, // mov x8, #135
		0xd4000001, // svc #0
		0xd2a00800, // wait: movz x0, #0x40, lsl #16
		0xf2801300, // movk x0, #0x98
		0xd2800001, // mov x1, #0
		0xd2801128, // mov x8, #137
		0xd4000001, // svc #0
		0xb7ffff60, // tbnz x0, #63, wait
		0xd2800000, // mov x0, #0
		0xd2800bc8, // mov x8, #94
		0xd4000001, // svc #0
	} {
		b = binary.LittleEndian.AppendUint32(b, instruction)
	}
	return b
}
