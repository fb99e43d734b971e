package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// contents lists the files of an archive that WriteArchive wrote, one line each.
func contents(t *testing.T, archive []byte) (lines []string, config *v1.ConfigFile) {
	t.Helper()
	img, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(archive)), nil }, nil)
	if err != nil {
		t.Fatal(err)
	}
	if config, err = img.ConfigFile(); err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for files := tar.NewReader(r); ; {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			return lines, config
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || !h.ModTime.Equal(epoch) {
			t.Errorf("%s: owner %d:%d, time %v", h.Name, h.Uid, h.Gid, h.ModTime)
		}
		line := h.FileInfo().Mode().String() + " " + h.Name
		if h.Linkname != "" {
			line += " " + string(h.Typeflag) + " " + h.Linkname
		}
		if len(data) > 0 {
			line += " = " + string(data)
		}
		lines = append(lines, line)
	}
}

func archiveOf(t *testing.T, name string, spec Spec) []byte {
	t.Helper()
	img, err := Build(spec)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := WriteArchive(&buf, name, img); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func sampleDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	do := func(errs ...error) {
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	do(os.MkdirAll(filepath.Join(dir, "bin"), 0o755), os.Mkdir(filepath.Join(dir, "tmp"), 0o777),
		os.Chmod(filepath.Join(dir, "tmp"), fs.ModeSticky|0o777),
		os.WriteFile(filepath.Join(dir, "bin/su"), []byte("su"), 0o755), os.Chmod(filepath.Join(dir, "bin/su"), fs.ModeSetuid|0o755),
		os.Link(filepath.Join(dir, "bin/su"), filepath.Join(dir, "bin/zz")), os.Symlink("/nowhere/at all", filepath.Join(dir, "dangling")),
		os.WriteFile(filepath.Join(dir, "note"), []byte("hi"), 0o600))
	return dir
}

func TestBuildFromDirectory(t *testing.T) {
	tree, err := ReadDir(sampleDir(t))
	if err != nil {
		t.Fatal(err)
	}
	archive := archiveOf(t, "example.org/x:1", Spec{
		Files: tree, Entrypoint: []string{"/bin/su"}, Cmd: []string{"-"}, Env: []string{"A=b"}, Labels: map[string]string{"k": "v"}, User: "1", WorkingDir: "/tmp",
	})
	got, config := contents(t, archive)
	want := []string{
		"drwxr-xr-x bin/",
		"urwxr-xr-x bin/su = su",
		"Lrwxrwxrwx dangling 2 /nowhere/at all",
		"-rw------- note = hi",
		"dtrwxrwxrwx tmp/",
		"urwxr-xr-x bin/zz 1 bin/su",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	wantConfig := v1.Config{
		Entrypoint: []string{"/bin/su"}, Cmd: []string{"-"}, User: "1", WorkingDir: "/tmp", Labels: map[string]string{"k": "v"},
		Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "A=b"},
	}
	if diff := cmp.Diff(wantConfig, config.Config); diff != "" {
		t.Error(diff)
	}
	if config.OS != "linux" || config.Architecture == "" {
		t.Errorf("platform %s/%s", config.OS, config.Architecture)
	}
}

func TestBuildIsDeterministic(t *testing.T) {
	var archives [2][]byte
	for i := range archives {
		tree, err := ReadDir(sampleDir(t))
		if err != nil {
			t.Fatal(err)
		}
		if i == 1 { // the order of the files given doesn't matter
			for a, b := 0, len(tree)-1; a < b; a, b = a+1, b-1 {
				tree[a], tree[b] = tree[b], tree[a]
			}
		}
		archives[i] = archiveOf(t, "x", Spec{Files: tree, Labels: map[string]string{"a": "1", "b": "2", "c": "3"}})
	}
	if !bytes.Equal(archives[0], archives[1]) {
		t.Error("two archives of equal files differ")
	}
}

func TestBuildErrors(t *testing.T) {
	file := func(name string) File { return File{Path: name, Mode: 0o644} }
	tests := []struct {
		name, want string
		spec       Spec
	}{
		{"path that climbs", `"../x" is no path`, Spec{Files: Tree{file("../x")}}},
		{"absolute path", `"/x" is no path`, Spec{Files: Tree{file("/x")}}},
		{"twice", "two files /x", Spec{Files: Tree{file("x"), file("x")}}},
		{"hard link to nothing", "/x is a link to /y", Spec{Files: Tree{{Path: "x", HardLink: "y"}}}},
		{"hard link to a directory", "/x is a link to /d", Spec{Files: Tree{{Path: "d", Mode: fs.ModeDir}, {Path: "x", HardLink: "d"}}}},
		{"environment", `environment "A": write NAME=value`, Spec{Env: []string{"A"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := Build(tt.spec); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestReadDirErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadDir(filepath.Join(dir, "missing")); !errdefs.IsNotFound(err) {
		t.Errorf("missing directory: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadDir(file); !errdefs.IsInvalidArgument(err) {
		t.Errorf("file: %v", err)
	}
}

func TestWriteArchiveNames(t *testing.T) {
	for reference, want := range map[string]string{
		"busybox": "index.docker.io/library/busybox:latest", "example.org/a/b:2": "example.org/a/b:2", "localhost:5000/x": "localhost:5000/x:latest",
	} {
		tag, err := ParseName(reference)
		if err != nil || tag.Name() != want {
			t.Errorf("%s: got %s, %v", reference, tag.Name(), err)
		}
	}
	for _, reference := range []string{"", "A B", "x:", "UPPER/case", "x@sha256:abc"} {
		if _, err := ParseName(reference); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", reference, err)
		}
	}
}

func TestProgram(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Program(script); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "is no program") {
		t.Errorf("script: %v", err)
	}
	if _, _, err := Program(script + "x"); !errdefs.IsNotFound(err) {
		t.Errorf("missing: %v", err)
	}
}

func TestBusyBox(t *testing.T) {
	const binary = "/bin/busybox"
	if static(binary) != nil {
		t.Skip("needs a static BusyBox: install the package busybox-static")
	}
	tree, err := BusyBox(t.Context(), binary)
	if err != nil {
		t.Fatal(err)
	}
	lines, _ := contents(t, archiveOf(t, "busybox", Spec{Files: tree, Cmd: []string{"sh"}}))
	all := strings.Join(lines, "\n") + "\n"
	for _, want := range []string{
		"-rwxr-xr-x bin/sh 1 bin/busybox\n", "-rwxr-xr-x bin/uname 1 bin/busybox\n", "dtrwxrwxrwx tmp/\n", "drwx------ root/\n",
		"Lrwxrwxrwx usr/bin 2 ../bin\n", "-rw-r--r-- etc/passwd = root:x:0:0:",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q", want)
		}
	}
}
