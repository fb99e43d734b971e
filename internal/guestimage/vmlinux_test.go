package guestimage

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// elfKernel is the least ELF file with one note.
func elfKernel(noteName string, noteType uint32) []byte {
	var note bytes.Buffer
	for _, v := range []uint32{uint32(len(noteName)), 8, noteType} {
		binary.Write(&note, binary.LittleEndian, v)
	}
	note.WriteString(noteName)
	note.Write(make([]byte, 8))
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01")
	b.Write(make([]byte, 9))
	binary.Write(&b, binary.LittleEndian, struct {
		Type, Machine              uint16
		Version                    uint32
		Entry, Phoff, Shoff        uint64
		Flags                      uint32
		Ehsize, Phentsize, Phnum   uint16
		Shentsize, Shnum, Shstrndx uint16
	}{2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 64, 0, 0})
	binary.Write(&b, binary.LittleEndian, struct {
		Type, Flags                             uint32
		Off, Vaddr, Paddr, Filesz, Memsz, Align uint64
	}{4, 4, 64 + 56, 0, 0, uint64(note.Len()), uint64(note.Len()), 4})
	b.Write(note.Bytes())
	return b.Bytes()
}

// bzImage wraps what pack makes of kernel.
func bzImage(t *testing.T, kernel []byte, pack func(io.Writer) io.WriteCloser, trailer bool) []byte {
	t.Helper()
	image := make([]byte, 2*512+16)
	image[0x1f1] = 1
	copy(image[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(image[0x206:], 0x20f)
	var payload bytes.Buffer
	w := pack(&payload)
	if _, err := w.Write(kernel); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if trailer {
		binary.Write(&payload, binary.LittleEndian, uint32(len(kernel)))
	}
	binary.LittleEndian.PutUint32(image[0x248:], 16)
	binary.LittleEndian.PutUint32(image[0x24c:], uint32(payload.Len()))
	return append(append(image, payload.Bytes()...), "what follows"...)
}

func packLZ4(w io.Writer) io.WriteCloser {
	z := lz4.NewWriter(w)
	if err := z.Apply(lz4.LegacyOption(true)); err != nil {
		panic(err)
	}
	return z
}

func packGzip(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }

func packZstd(w io.Writer) io.WriteCloser {
	z, err := zstd.NewWriter(w)
	if err != nil {
		panic(err)
	}
	return z
}

type stored struct{ io.Writer }

func (stored) Close() error { return nil }

func TestUnpackKernel(t *testing.T) {
	kernel := elfKernel("Xen\x00", 18)
	for name, image := range map[string][]byte{
		"lz4":  bzImage(t, kernel, packLZ4, true),
		"gzip": bzImage(t, kernel, packGzip, false),
		"zstd": bzImage(t, kernel, packZstd, true),
	} {
		got, err := unpackKernel(image)
		if err != nil || !bytes.Equal(got, kernel) {
			t.Errorf("%s: got %d bytes, %v; want the %d of the kernel", name, len(got), err, len(kernel))
		}
	}
	for name, image := range map[string][]byte{
		"no bzImage":         []byte("MZ something else"),
		"no PVH entry":       bzImage(t, elfKernel("Xen\x00", 17), packLZ4, true),
		"note of another":    bzImage(t, elfKernel("Xoo\x00", 18), packLZ4, true),
		"no ELF file":        bzImage(t, []byte("not a kernel at all"), packLZ4, true),
		"packed another way": bzImage(t, kernel, func(w io.Writer) io.WriteCloser { return stored{w} }, true),
	} {
		got, err := unpackKernel(image)
		if err != nil || !bytes.Equal(got, image) {
			t.Errorf("%s: got %d bytes, %v; want the image itself", name, len(got), err)
		}
	}
	broken := bzImage(t, kernel, packLZ4, true)
	binary.LittleEndian.PutUint32(broken[0x24c:], uint32(len(broken)))
	if _, err := unpackKernel(broken); err == nil {
		t.Error("a payload beyond the image is no error")
	}
	short := bzImage(t, kernel, packLZ4, true)
	length := binary.LittleEndian.Uint32(short[0x24c:])
	binary.LittleEndian.PutUint32(short[2*512+16+length-4:], uint32(len(kernel)+1))
	if _, err := unpackKernel(short); err == nil {
		t.Error("a payload with less than it promises is no error")
	}
}
