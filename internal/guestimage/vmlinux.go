package guestimage

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

// maxKernel bounds an unpacked kernel; those of distributions have about 50 MB.
const maxKernel = 256 << 20

// unpackKernel returns the kernel in the form that costs a VM least. A packaged x86 kernel (bzImage) unpacks itself: it
// needs the memory for both forms, and the host keeps those pages. The kernel within is an ELF file, which a VMM loads
// directly when it has a PVH entry point (Xen's public/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY). Any other kernel comes back as it is.
//
// Layout of a bzImage (Linux, Documentation/arch/x86/boot.rst):
//
//	0x1f1  u8   setup_sects: real-mode code ends at (setup_sects+1)*512
//	0x202  "HdrS"
//	0x206  u16  version of this protocol; the next two since 2.08
//	0x248  u32  payload_offset, from the end of the real-mode code
//	0x24c  u32  payload_length: packed kernel, then its unpacked size as u32
func unpackKernel(image []byte) ([]byte, error) {
	if len(image) < 0x250 || string(image[0x202:0x206]) != "HdrS" || binary.LittleEndian.Uint16(image[0x206:]) < 0x208 {
		return image, nil
	}
	sectors := int64(image[0x1f1])
	if sectors == 0 {
		sectors = 4
	}
	begin := (sectors+1)*512 + int64(binary.LittleEndian.Uint32(image[0x248:]))
	end := begin + int64(binary.LittleEndian.Uint32(image[0x24c:]))
	if end > int64(len(image)) || end-begin < 8 {
		return nil, fmt.Errorf("kernel's payload lies at %d to %d of %d bytes", begin, end, len(image))
	}
	kernel, err := unpackPayload(image[begin:end])
	if err != nil {
		return nil, fmt.Errorf("unpack the kernel: %w", err)
	}
	if kernel == nil || !hasPVHEntry(kernel) {
		return image, nil
	}
	return kernel, nil
}

// unpackPayload returns nil for a form of packing that it doesn't know.
func unpackPayload(payload []byte) ([]byte, error) {
	size := int64(binary.LittleEndian.Uint32(payload[len(payload)-4:]))
	packed := bytes.NewReader(payload[:len(payload)-4])
	var r io.Reader
	var err error
	switch {
	case bytes.HasPrefix(payload, []byte{0x02, 0x21, 0x4c, 0x18}): // lz4's legacy format
		r = lz4.NewReader(packed)
	case bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		var d *zstd.Decoder
		if d, err = zstd.NewReader(packed, zstd.WithDecoderMaxWindow(maxKernel)); err == nil {
			defer d.Close()
			r = d
		}
	case bytes.HasPrefix(payload, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		r, err = xz.NewReader(packed)
	case bytes.HasPrefix(payload, []byte{0x1f, 0x8b}):
		r, err = gzip.NewReader(bytes.NewReader(payload)) // its own last field is the size
	default:
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if size > maxKernel {
		return nil, fmt.Errorf("it has %d bytes unpacked, more than %d", size, int64(maxKernel))
	}
	kernel := make([]byte, size)
	if _, err := io.ReadFull(r, kernel); err != nil {
		return nil, err
	}
	return kernel, nil
}

func hasPVHEntry(kernel []byte) bool {
	const physEntry = 18
	f, err := elf.NewFile(bytes.NewReader(kernel))
	if err != nil {
		return false
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > 1<<20 {
			continue
		}
		notes := make([]byte, p.Filesz)
		if _, err := p.ReadAt(notes, 0); err != nil {
			return false
		}
		for len(notes) >= 12 {
			name := int64(f.ByteOrder.Uint32(notes))
			desc := int64(f.ByteOrder.Uint32(notes[4:]))
			kind := f.ByteOrder.Uint32(notes[8:])
			next := 12 + (name+3)&^3 + (desc+3)&^3
			if next > int64(len(notes)) {
				return false
			}
			if kind == physEntry && string(notes[12:12+name]) == "Xen\x00" {
				return true
			}
			notes = notes[next:]
		}
	}
	return false
}
