package node

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseImages(t *testing.T) {
	const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	got, err := parseImages("REF TYPE DIGEST SIZE PLATFORMS LABELS\n" +
		"bulkhead.dev/busybox:1 application/vnd.oci.image.manifest.v1+json " + digest + " 1.5 MiB linux/amd64 io.cri-containerd.image=managed\n" +
		digest + " application/vnd.oci.image.manifest.v1+json " + digest + " 1.5 MiB linux/amd64 -\n" +
		"bulkhead.dev/busybox@" + digest + " application/vnd.oci.image.manifest.v1+json " + digest + " 1.5 MiB linux/amd64 -\n" +
		"bulkhead.dev/pause:1 application/vnd.oci.image.manifest.v1+json " + digest + " 612.0 B linux/amd64 -\n")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]int64{"bulkhead.dev/busybox:1": 3 << 19, "bulkhead.dev/pause:1": 612}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, bad := range []string{"name type digest\n", "name type digest many MiB x\n", "name type digest 1 XB x\n"} {
		if got, err := parseImages(bad); err == nil {
			t.Errorf("%q gave %v", bad, got)
		}
	}
}
