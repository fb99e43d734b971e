package kit

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"bulkhead.dev/bulkhead/internal/node"
)

// BaseImage is the name of the image that [Node.ImportBase] loads: busybox with all its commands, the test program, a user
// "app" (1000:1000, also in group 2000) and a user "nobody".
const BaseImage = "bulkhead.test/base:1"

// Entry is a file of an image layer. Its zero values mean what is usual for its kind: root's, 0644, 0755 for directories.
type Entry struct {
	Name string
	// Body of a regular file.
	Body []byte
	// Kind is one of archive/tar's types; 0 is a regular file.
	Kind byte
	// Target of a hard or symbolic link.
	Target   string
	Mode     int64
	UID, GID int
	Xattrs   map[string]string
	// Zeros are appended to Body, so that a large file needs no large Body.
	Zeros int64
}

// Dir is a directory.
func Dir(name string) Entry { return Entry{Name: name, Kind: tar.TypeDir} }

// Symlink is a symbolic link.
func Symlink(name, target string) Entry {
	return Entry{Name: name, Kind: tar.TypeSymlink, Target: target}
}

// HardLink is a further name of an entry before it.
func HardLink(name, target string) Entry {
	return Entry{Name: name, Kind: tar.TypeLink, Target: target}
}

// Whiteout hides what layers below have at name.
func Whiteout(name string) Entry {
	return Entry{Name: path.Join(path.Dir(name), ".wh."+path.Base(name))}
}

// Opaque hides all that layers below have in directory.
func Opaque(directory string) Entry { return Entry{Name: path.Join(directory, ".wh..wh..opq")} }

// File is a file with mode 0644.
func File(name, body string) Entry { return Entry{Name: name, Body: []byte(body)} }

// Program is an executable file.
func Program(name string, b []byte) Entry { return Entry{Name: name, Body: b, Mode: 0o755} }

// Layer makes an image layer of entries, in order.
func Layer(entries ...Entry) (v1.Layer, error) {
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		reader, writer := io.Pipe()
		go func() { writer.CloseWithError(writeLayer(writer, entries)) }()
		return reader, nil
	})
}

func writeLayer(to io.Writer, entries []Entry) error {
	archive := tar.NewWriter(to)
	for _, e := range entries {
		header := &tar.Header{
			Name: strings.TrimPrefix(e.Name, "/"), Typeflag: e.Kind, Linkname: e.Target, Mode: e.Mode, Uid: e.UID, Gid: e.GID,
			Size: int64(len(e.Body)) + e.Zeros, ModTime: time.Unix(1_700_000_000, 0), Format: tar.FormatPAX,
			PAXRecords: map[string]string{},
		}
		if header.Typeflag == 0 {
			header.Typeflag = tar.TypeReg
		}
		if header.Mode == 0 {
			header.Mode = 0o644
			if header.Typeflag == tar.TypeDir {
				header.Mode = 0o755
			}
		}
		for key, value := range e.Xattrs {
			header.PAXRecords["SCHILY.xattr."+key] = value
		}
		if err := archive.WriteHeader(header); err != nil {
			return fmt.Errorf("write header of %s: %w", e.Name, err)
		}
		if _, err := archive.Write(e.Body); err != nil {
			return fmt.Errorf("write %s: %w", e.Name, err)
		}
		if _, err := io.CopyN(archive, zeros{}, e.Zeros); err != nil {
			return fmt.Errorf("write %s: %w", e.Name, err)
		}
	}
	return archive.Close()
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Archive writes an image made of the layers, lowest first, under the reference, as docker's archives are.
func Archive(to io.Writer, reference string, config v1.Config, layers ...v1.Layer) error {
	image, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return fmt.Errorf("stack the layers of %s: %w", reference, err)
	}
	file, err := image.ConfigFile()
	if err != nil {
		return err
	}
	file = file.DeepCopy()
	file.Architecture, file.OS, file.Config = "amd64", "linux", config
	if image, err = mutate.ConfigFile(image, file); err != nil {
		return fmt.Errorf("configure %s: %w", reference, err)
	}
	tag, err := name.NewTag(reference)
	if err != nil {
		return err
	}
	if err := tarball.Write(tag, image, to); err != nil {
		return fmt.Errorf("archive %s: %w", reference, err)
	}
	return nil
}

// Import loads an image made of the layers, lowest first, under the reference into the namespace of ctx, and unpacks it.
func (n *Node) Import(ctx context.Context, reference string, config v1.Config, layers ...v1.Layer) error {
	var archive bytes.Buffer
	if err := Archive(&archive, reference, config, layers...); err != nil {
		return err
	}
	images, err := n.Client.Import(ctx, &archive)
	if err != nil {
		return fmt.Errorf("import %s: %w", reference, err)
	}
	for _, i := range images {
		if err := client.NewImage(n.Client, i).Unpack(ctx, ""); err != nil {
			return fmt.Errorf("unpack %s: %w", reference, err)
		}
	}
	return nil
}

// BaseConfig is the configuration of the base image.
func BaseConfig() v1.Config {
	return v1.Config{
		Env: []string{"PATH=/bin:/usr/bin:/sbin:/usr/sbin"},
		Cmd: []string{"/bin/testprog", "pause"},
	}
}

// BaseLayer holds busybox of this machine and the test program.
func BaseLayer(testprog string) (v1.Layer, error) {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, errors.Join(err, errors.New("the base image needs a static busybox: install the package busybox-static"))
	}
	program, err := os.ReadFile(testprog)
	if err != nil {
		return nil, err
	}
	list, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list busybox's commands: %w", err)
	}
	entries := []Entry{
		Dir("bin"), Dir("etc"), Dir("proc"), Dir("sys"), Dir("dev"), Dir("root"), Dir("home"), Dir("run"), Dir("usr"), Dir("usr/bin"),
		{Name: "tmp", Kind: tar.TypeDir, Mode: 0o1777},
		{Name: "home/app", Kind: tar.TypeDir, UID: 1000, GID: 1000},
		File("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"),
		File("etc/group", "root:x:0:\napp:x:1000:\nextra:x:2000:app\nnobody:x:65534:\n"),
		Program("bin/busybox", busybox), Program("bin/testprog", program),
	}
	for _, command := range strings.Fields(string(list)) {
		if command != "busybox" {
			entries = append(entries, Symlink("bin/"+command, "busybox"))
		}
	}
	return Layer(entries...)
}

// ImportBase loads the base image, for containers and for CRI, where it is also the image of pause containers.
func (n *Node) ImportBase(ctx context.Context, testprog string) error {
	layer, err := BaseLayer(testprog)
	if err != nil {
		return err
	}
	for _, at := range []struct{ namespace, reference string }{
		{Namespace, BaseImage}, {CRINamespace, BaseImage}, {CRINamespace, node.PauseImage},
	} {
		if err := n.Import(InNamespace(ctx, at.namespace), at.reference, BaseConfig(), layer); err != nil {
			return err
		}
	}
	return nil
}

// BuildTestProgram compiles the test program, static, into the directory and returns its path.
func BuildTestProgram(ctx context.Context, directory string) (string, error) {
	target := path.Join(directory, "testprog")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", target, "bulkhead.dev/bulkhead/test/testprog")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the test program: %w: %s", err, output)
	}
	return target, nil
}
