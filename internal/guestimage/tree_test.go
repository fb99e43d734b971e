package guestimage

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

func TestTreeRead(t *testing.T) {
	tr := newTree()
	tr.nodes = map[string]node{
		"usr/lib/x/lib.so.1.2": {data: []byte("library")},
		"usr/lib/x/lib.so.1":   {link: "lib.so.1.2"},
		"lib":                  {link: "usr/lib"},
		"abs":                  {link: "/lib/x/lib.so.1"},
		"climb":                {link: "../../../usr/lib/x/lib.so.1.2"}, // ".." of the root is the root
		"loop":                 {link: "loop"},
		"a":                    {link: "b"},
		"b":                    {link: "a"},
		"dangling":             {link: "nowhere"},
	}
	for _, name := range []string{"usr/lib/x/lib.so.1.2", "lib/x/lib.so.1", "/lib/x/../x/lib.so.1", "abs", "climb"} {
		if data, err := tr.read(name); err != nil || string(data) != "library" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	for name, want := range map[string]string{
		"loop": "/loop: too many symbolic links", "a": "too many", "dangling": "no package holds /dangling", "none": "no package holds /none", "usr/lib": "no package",
	} {
		if _, err := tr.read(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzTree(f *testing.F) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []*tar.Header{
		{Name: "./usr/", Typeflag: tar.TypeDir}, {Name: "./usr/a", Size: 1, Typeflag: tar.TypeReg}, {Name: "./b", Linkname: "../usr/a", Typeflag: tar.TypeSymlink}, {Name: "./c", Linkname: "./b", Typeflag: tar.TypeLink},
	} {
		if err := w.WriteHeader(h); err != nil {
			f.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte("x")); err != nil {
				f.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		tr := newTree()
		_ = tr.add(bytes.NewReader(data), func(string) bool { return true })
		for name := range tr.nodes {
			_, _ = tr.read(name) // must return, whatever the links
		}
	})
}

func TestCompressedModules(t *testing.T) {
	plain := module("m", "a,b-c")
	compress := map[string]func() []byte{
		".ko": func() []byte { return []byte(plain) },
		".ko.gz": func() []byte {
			var buf bytes.Buffer
			w := gzip.NewWriter(&buf)
			_, _ = w.Write([]byte(plain))
			w.Close()
			return buf.Bytes()
		},
		".ko.xz": func() []byte {
			var buf bytes.Buffer
			w, err := xz.NewWriter(&buf)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = w.Write([]byte(plain))
			w.Close()
			return buf.Bytes()
		},
		".ko.zst": func() []byte {
			w, err := zstd.NewWriter(nil)
			if err != nil {
				t.Fatal(err)
			}
			return w.EncodeAll([]byte(plain), nil)
		},
	}
	for suffix, pack := range compress {
		t.Run(suffix, func(t *testing.T) {
			tr := newTree()
			tr.nodes["lib/modules/1/modules.builtin"] = node{data: []byte("kernel/a.ko\nkernel/b_c.ko\n")}
			tr.nodes["lib/modules/1/kernel/m"+suffix] = node{data: pack()}
			set, err := newModuleSet(tr, "1")
			if err != nil {
				t.Fatal(err)
			}
			modules, err := set.resolve([]wantedModule{{name: "m"}})
			if err != nil || len(modules) != 1 || string(modules[0].data) != plain {
				t.Errorf("%d modules, %v", len(modules), err)
			}
			tr.nodes["lib/modules/1/kernel/m"+suffix] = node{data: []byte("broken")}
			if _, err := set.resolve([]wantedModule{{name: "m"}}); err == nil {
				t.Error("took a broken module")
			}
		})
	}
}
