package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"bulkhead.dev/bulkhead/internal/image"
)

// imageTarget is where an image that was made goes: into a file, or to the nodes of a cluster.
type imageTarget struct {
	member
	file string
}

func (t *imageTarget) flags(cmd *cobra.Command) {
	t.member.flags(cmd)
	cmd.Flags().Lookup("cluster-name").Usage = "load the image into the cluster of this `name`"
	cmd.Flags().StringVarP(&t.file, "output", "o", "", "write the image into this archive `file`")
}

// check refuses a command line that says nothing of where to, or that names the image wrongly.
func (t *imageTarget) check(name string) error {
	if t.file == "" && t.cluster == "" {
		return usageError{fmt.Errorf("--output or --cluster-name is required")}
	}
	if _, err := image.ParseName(name); err != nil {
		return usageError{err}
	}
	return nil
}

// put makes an image and writes it where it is to go.
func (t *imageTarget) put(cmd *cobra.Command, name string, spec image.Spec) error {
	img, err := image.Build(spec)
	if err != nil {
		return err
	}
	if t.file != "" {
		if err := writeArchive(t.file, name, img); err != nil {
			return err
		}
	}
	if t.cluster != "" {
		if err := t.load(cmd, name, img); err != nil {
			return err
		}
	}
	digest, err := img.Digest()
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s@%s\n", name, digest)
	return nil
}

// load loads an image into the cluster, by way of an archive of its own.
func (t *imageTarget) load(cmd *cobra.Command, name string, img v1.Image) error {
	dir, err := os.MkdirTemp("", "bulkhead-image-")
	if err != nil {
		return fmt.Errorf("make a directory for the image's archive: %w", err)
	}
	defer os.RemoveAll(dir)
	archive := filepath.Join(dir, "image.tar")
	if err := writeArchive(archive, name, img); err != nil {
		return err
	}
	return t.change(cmd, func(ctx context.Context, all manager) error { return all.LoadImages(ctx, t.cluster, []string{archive}) })
}

// writeArchive writes an image's archive: whole, or not at all.
func writeArchive(file, name string, img v1.Image) error {
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-*")
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		err = path.Err // the name is one that nobody gave
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	defer os.Remove(f.Name()) // gone already when all went well
	err = image.WriteArchive(f, name, img)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return os.Rename(f.Name(), file)
}
