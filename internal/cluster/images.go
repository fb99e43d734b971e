package cluster

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"bulkhead.dev/bulkhead/internal/node"
)

// Image is an image that pods of the cluster can use without pulling it.
type Image struct {
	Name string `json:"name"`
	// Size is in bytes, compressed as it was loaded.
	Size int64 `json:"size"`
	// Nodes are those that have it.
	Nodes []string `json:"nodes"`
}

// eachNode does something with the containerd of each running node.
func (c *cluster) eachNode(do func(name string, n *node.Node) error) error {
	for _, name := range c.running() {
		n, err := c.containerd(name)
		if err != nil {
			return err
		}
		if err := do(name, n); err != nil {
			return err
		}
	}
	return nil
}

// LoadImages loads the images of archives (docker save, OCI layout) into all running nodes.
func (m *Manager) LoadImages(ctx context.Context, name string, files []string) error {
	for _, file := range files {
		if info, err := os.Stat(file); err != nil {
			return fmt.Errorf("read image archive: %w", err)
		} else if !info.Mode().IsRegular() {
			return fmt.Errorf("read image archive: %s is not a file", file)
		}
	}
	c, err := m.openRunning(name)
	if err != nil {
		return err
	}
	defer c.unlock()
	return c.eachNode(func(nodeName string, n *node.Node) error {
		for _, file := range files {
			abs, err := filepath.Abs(file)
			if err != nil {
				return err
			}
			m.o.Progress("node %s: loading %s", nodeName, file)
			if err := n.Import(ctx, abs); err != nil {
				return fmt.Errorf("load %s into node %s: %w", file, nodeName, err)
			}
		}
		return nil
	})
}

// Images lists the images of the running nodes, by name.
func (m *Manager) Images(ctx context.Context, name string) ([]Image, error) {
	c, err := m.openRunning(name)
	if err != nil {
		return nil, err
	}
	defer c.unlock()
	all := map[string]*Image{}
	err = c.eachNode(func(nodeName string, n *node.Node) error {
		images, err := n.Images(ctx)
		if err != nil {
			return fmt.Errorf("list the images of node %s: %w", nodeName, err)
		}
		for image, size := range images {
			if all[image] == nil {
				all[image] = &Image{Name: image, Size: size}
			}
			all[image].Nodes = append(all[image].Nodes, nodeName)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var list []Image
	for _, image := range slices.Sorted(maps.Keys(all)) {
		list = append(list, *all[image])
	}
	return list, nil
}

// copyImages gives a node the images of another one that it lacks: those that were loaded by hand can't be pulled, and a pod that
// runs on one node should run on any.
func (c *cluster) copyImages(ctx context.Context, name string) error {
	to, err := c.containerd(name)
	if err != nil {
		return err
	}
	has, err := to.Images(ctx)
	if err != nil {
		return fmt.Errorf("list its images: %w", err)
	}
	for _, other := range c.running() {
		if other == name {
			continue
		}
		from, err := c.containerd(other)
		if err != nil {
			return err
		}
		images, err := from.Images(ctx)
		if err != nil {
			continue // that node has troubles of its own; maybe another can help
		}
		maps.DeleteFunc(images, func(image string, _ int64) bool { _, ok := has[image]; return ok })
		if len(images) == 0 {
			continue
		}
		c.m.o.Progress("node %s: copying %d images of node %s", name, len(images), other)
		for _, image := range slices.Sorted(maps.Keys(images)) {
			err := copyImage(ctx, image, from, to)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				// An image of which containerd hasn't kept everything was pulled, and can be pulled again.
				c.m.o.Progress("node %s: image %s is not copied: %v", name, image, err)
			}
			has[image] = images[image]
		}
	}
	return ctx.Err()
}

func copyImage(ctx context.Context, image string, from, to *node.Node) error {
	dir, err := os.MkdirTemp(to.Dir(), "image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	archive := filepath.Join(dir, "image.tar")
	if err := from.Export(ctx, archive, image); err != nil {
		return err
	}
	return to.Import(ctx, archive)
}
