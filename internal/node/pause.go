package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"bulkhead.dev/bulkhead/internal/image"
)

// PauseImage is the image of the container that holds a pod's namespaces: one made on this machine, since a node pulls nothing
// for itself.
const PauseImage = "bulkhead.dev/pause:1"

// ImportPause makes the pause image and loads it. containerd must answer. It is in the way of the first pod only: images
// outlive a restart.
func (n *Node) ImportPause(ctx context.Context) error {
	files, entrypoint, err := image.Pause()
	if err != nil {
		return err
	}
	built, err := image.Build(image.Spec{Files: files, Entrypoint: entrypoint, User: "65535:65535"})
	if err != nil {
		return fmt.Errorf("make the pause image: %w", err)
	}
	archive, err := os.Create(filepath.Join(n.path("tmp"), "pause.tar"))
	if err != nil {
		return fmt.Errorf("write the pause image: %w", err)
	}
	defer os.Remove(archive.Name())
	defer archive.Close()
	if err := image.WriteArchive(archive, PauseImage, built); err != nil {
		return err
	}
	return n.Import(ctx, archive.Name())
}
