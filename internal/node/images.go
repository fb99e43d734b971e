package node

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// Images returns the images that pods can use, by name, with their sizes in bytes, as exactly as ctr writes them.
func (n *Node) Images(ctx context.Context) (map[string]int64, error) {
	out, err := n.within(ctx, "--namespace", criNamespace, "images", "list")
	if err != nil {
		return nil, err
	}
	return parseImages(out)
}

// Export writes images to an archive, which Import reads.
func (n *Node) Export(ctx context.Context, archive string, images ...string) error {
	_, err := n.Ctr(ctx, append([]string{"--namespace", criNamespace, "images", "export", archive}, images...)...)
	return err
}

// parseImages reads ctr's table:
//
//	REF                        TYPE                                       DIGEST       SIZE    PLATFORMS   LABELS
//	bulkhead.dev/busybox:1     application/vnd.docker.distribution...     sha256:...   1.2 MiB linux/amd64 ...
//
// The same image is there by its digest too, which is no name that a person gave it.
func parseImages(table string) (map[string]int64, error) {
	images := map[string]int64{}
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] == "REF" || strings.HasPrefix(fields[0], "sha256:") || strings.Contains(fields[0], "@sha256:") {
			continue
		}
		if len(fields) < 5 {
			return nil, fmt.Errorf("ctr wrote a line that is none of its table of images: %q", line)
		}
		size, err := parseSize(fields[3], fields[4])
		if err != nil {
			return nil, fmt.Errorf("size of image %s: %w", fields[0], err)
		}
		images[fields[0]] = size
	}
	return images, nil
}

func parseSize(number, unit string) (int64, error) {
	f, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, err
	}
	for i, u := range []string{"B", "KiB", "MiB", "GiB", "TiB"} {
		if u == unit {
			return int64(f * float64(int64(1)<<(10*i))), nil
		}
	}
	return 0, fmt.Errorf("unit %q is unknown", unit)
}
