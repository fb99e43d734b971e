// Package image makes OCI images out of files, without a container engine, and writes them as archives.
//
// An image of this package has one layer, made of a [Tree]: the files of a directory ([ReadDir]), one static program
// ([Program]), or BusyBox with its applets ([BusyBox]). [Build] turns a [Spec] into an image; [WriteArchive] writes images
// as a docker archive, which "ctr image import", "docker load" and "skopeo" read.
//
//	directory, program, BusyBox ── Tree ── Build ── v1.Image ── WriteArchive ── tar
//
// Equal files give equal bytes: owners are root, times are 0, names are sorted. So the digest of an image that was made
// here says what is in it.
package image

import (
	"archive/tar"
	"fmt"
	"io"
	"maps"
	"runtime"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Spec says what an image is made of.
type Spec struct {
	// Files is the content of the root directory.
	Files Tree
	// Entrypoint and Cmd are what a container runs: the one, followed by the other.
	Entrypoint, Cmd []string
	// Env is a list of "NAME=value".
	Env []string
	// WorkingDir is an absolute path; empty: the root.
	WorkingDir string
	// User is "uid", "uid:gid", or names from the image's /etc/passwd; empty: root.
	User string
	// Labels of the image.
	Labels map[string]string
	// Arch is the architecture, as Go names it; empty: this program's own.
	Arch string
}

// Build makes an image of a Spec. Files that the Spec names by path are read when the image is written, and must not change
// until then.
func Build(spec Spec) (v1.Image, error) {
	if err := spec.Files.valid(); err != nil {
		return nil, err
	}
	for _, e := range spec.Env {
		if !envPattern.MatchString(e) {
			return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("environment %q: write NAME=value", e))
		}
	}
	files := spec.Files.sorted()
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		r, w := io.Pipe()
		go func() { w.CloseWithError(writeTar(w, files)) }()
		return r, nil
	})
	if err != nil {
		return nil, fmt.Errorf("make the image's layer: %w", err)
	}
	img, err := mutate.Append(empty.Image, mutate.Addendum{
		Layer: layer, History: v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "bulkhead image build"},
	})
	if err != nil {
		return nil, fmt.Errorf("make the image: %w", err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("make the image: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Created = "linux", spec.Arch, v1.Time{Time: epoch}
	if file.Architecture == "" {
		file.Architecture = runtime.GOARCH
	}
	file.Config = v1.Config{
		Entrypoint: spec.Entrypoint, Cmd: spec.Cmd, Env: withPath(spec.Env), WorkingDir: spec.WorkingDir, User: spec.User,
		Labels: maps.Clone(spec.Labels),
	}
	img, err = mutate.ConfigFile(img, file)
	if err != nil {
		return nil, fmt.Errorf("make the image: %w", err)
	}
	return img, nil
}

var epoch = time.Unix(0, 0).UTC()

// withPath adds the usual search path: without one, a runtime finds no program by its name.
func withPath(env []string) []string {
	if slices.ContainsFunc(env, func(e string) bool { return len(e) > 5 && e[:5] == "PATH=" }) {
		return env
	}
	return append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, env...)
}

// WriteArchive writes an image as a docker archive under a name such as "example.org/tool:1.0" or "tool". A name without a
// registry is one of docker.io, as everywhere.
func WriteArchive(w io.Writer, reference string, img v1.Image) error {
	tag, err := ParseName(reference)
	if err != nil {
		return err
	}
	if err := tarball.Write(tag, img, w); err != nil {
		return fmt.Errorf("write the archive of %s: %w", reference, err)
	}
	return nil
}

// ParseName reads the name of an image.
func ParseName(reference string) (name.Tag, error) {
	tag, err := name.NewTag(reference)
	if err != nil {
		return name.Tag{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%q is no name for an image: %v", reference, err))
	}
	return tag, nil
}

func writeTar(w io.Writer, files []File) error {
	archive := tar.NewWriter(w)
	for _, f := range files {
		if err := f.write(archive); err != nil {
			return fmt.Errorf("image file /%s: %w", f.Path, err)
		}
	}
	return archive.Close()
}
