package guestimage

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// readCPIO is the inverse of writeCPIO, written from the format's description and strict where the kernel is lax.
func readCPIO(data []byte) ([]entry, error) {
	var entries []entry
	take := func(n int) ([]byte, error) {
		if n < 0 || n > len(data) {
			return nil, fmt.Errorf("%d bytes wanted, %d left", n, len(data))
		}
		var part []byte
		part, data = data[:n], data[n:]
		return part, nil
	}
	for {
		header, err := take(cpioHeader)
		if err != nil {
			return nil, err
		}
		if string(header[:6]) != cpioMagic {
			return nil, fmt.Errorf("magic %q", header[:6])
		}
		var f [13]int
		for i := range f {
			n, err := strconv.ParseUint(string(header[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				return nil, err
			}
			f[i] = int(n)
		}
		padded := f[11] + (4-(cpioHeader+f[11])%4)%4
		name, err := take(padded)
		if err != nil {
			return nil, err
		}
		if f[11] == 0 || strings.Trim(string(name[f[11]-1:]), "\x00") != "" {
			return nil, errors.New("the name is not terminated")
		}
		content, err := take(f[6] + (4-f[6]%4)%4)
		if err != nil {
			return nil, err
		}
		e := entry{name: string(name[:f[11]-1]), mode: uint32(f[1]), data: content[:f[6]], major: uint32(f[9]), minor: uint32(f[10])}
		if e.name == cpioTrailer {
			if len(data) > 0 {
				return nil, fmt.Errorf("%d bytes after the trailer", len(data))
			}
			return entries, nil
		}
		entries = append(entries, e)
	}
}

// unpackInitramfs is the inverse of pack.
func unpackInitramfs(data []byte) ([]entry, error) {
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderMaxWindow(window))
	if err != nil {
		return nil, err
	}
	defer decoder.Close()
	plain, err := decoder.DecodeAll(data, nil)
	if err != nil {
		return nil, err
	}
	return readCPIO(plain)
}

var sameEntry = cmp.Comparer(func(a, b entry) bool {
	return a.name == b.name && a.mode == b.mode && bytes.Equal(a.data, b.data) && a.major == b.major && a.minor == b.minor
})

func TestCPIO(t *testing.T) {
	entries := []entry{
		{name: "dev", mode: unix.S_IFDIR | 0o755},
		{name: "dev/console", mode: unix.S_IFCHR | 0o600, major: 5, minor: 1},
		{name: "init", mode: unix.S_IFREG | 0o755, data: []byte("x")},
		{name: "empty", mode: unix.S_IFREG | 0o644},
		{name: "link", mode: unix.S_IFLNK | 0o777, data: []byte("init")},
	}
	var buf bytes.Buffer
	if err := writeCPIO(&buf, entries); err != nil {
		t.Fatal(err)
	}
	got, err := readCPIO(buf.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(entries, got, sameEntry); diff != "" {
		t.Error(diff)
	}
}

// TestCPIOBytes pins the format: the archive of one file, as GNU cpio would write it with the same numbers.
func TestCPIOBytes(t *testing.T) {
	var buf bytes.Buffer
	if err := writeCPIO(&buf, []entry{{name: "a", mode: unix.S_IFREG | 0o644, data: []byte("hello")}}); err != nil {
		t.Fatal(err)
	}
	want := "070701" + "00000001" + "000081A4" + "00000000" + "00000000" + "00000001" + "00000000" + "00000005" +
		"00000000" + "00000000" + "00000000" + "00000000" + "00000002" + "00000000" + "a\x00" + "hello\x00\x00\x00" +
		"070701" + "00000000" + "00000000" + "00000000" + "00000000" + "00000001" + "00000000" + "00000000" +
		"00000000" + "00000000" + "00000000" + "00000000" + "0000000B" + "00000000" + "TRAILER!!!\x00\x00\x00\x00"
	if diff := cmp.Diff(want, buf.String()); diff != "" {
		t.Error(diff)
	}
}

func TestCPIORefusesNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", "/init", "../x", "a/../b", "a//b", "a/", "a\x00b", cpioTrailer, strings.Repeat("a", 4096)} {
		if err := writeCPIO(&bytes.Buffer{}, []entry{{name: name, mode: unix.S_IFREG}}); err == nil {
			t.Errorf("accepted %.20q", name)
		}
	}
}

func FuzzCPIO(f *testing.F) {
	f.Add("init", uint32(unix.S_IFREG|0o755), []byte("content"), uint32(0), uint32(0))
	f.Add("dev/console", uint32(unix.S_IFCHR|0o600), []byte{}, uint32(5), uint32(1))
	f.Fuzz(func(t *testing.T, name string, mode uint32, data []byte, major, minor uint32) {
		in := []entry{{name: name, mode: mode, data: data, major: major, minor: minor}, {name: "z", mode: unix.S_IFREG}}
		var buf bytes.Buffer
		if err := writeCPIO(&buf, in); err != nil {
			return
		}
		out, err := readCPIO(buf.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(in, out, sameEntry); diff != "" {
			t.Error(diff)
		}
	})
}
