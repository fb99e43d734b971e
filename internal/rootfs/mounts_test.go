package rootfs

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func dirs(paths ...string) []source {
	var s []source
	for _, p := range paths {
		s = append(s, source{path: p})
	}
	return s
}

func images(paths ...string) []source {
	var s []source
	for _, p := range paths {
		s = append(s, source{path: p, image: true})
	}
	return s
}

func erofsMount(path string, options ...string) Mount {
	return Mount{"erofs", path, append([]string{"ro", "loop"}, options...)}
}

func TestParse(t *testing.T) {
	ext4 := Mount{"mkfs/ext4", "/s/9/rwlayer.img", []string{"X-containerd.mkfs.fs=ext4", "X-containerd.mkfs.size=67108864", "rw", "loop"}}
	tests := []struct {
		name   string
		mounts []Mount
		want   stack
	}{
		{"overlay", []Mount{{"overlay", "overlay", []string{"workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/2/fs:/s/1/fs", "index=off"}}},
			stack{lower: dirs("/s/2/fs", "/s/1/fs"), upper: "/s/9/fs"}},
		{"view of several", []Mount{{"overlay", "overlay", []string{"lowerdir=/s/2/fs:/s/1/fs", "userxattr"}}},
			stack{lower: dirs("/s/2/fs", "/s/1/fs"), userXattr: true}},
		{"escapes", []Mount{{"overlay", "overlay", []string{`lowerdir=/a\:b/fs:/c\\d`}}},
			stack{lower: dirs("/a:b/fs", `/c\d`)}},
		{"view of one", []Mount{{"bind", "/s/1/fs", []string{"ro", "rbind"}}}, stack{lower: dirs("/s/1/fs")}},
		{"writable without layers", []Mount{{"bind", "/s/1/fs", []string{"rw", "rbind"}}}, stack{upper: "/s/1/fs"}},
		{"one image", []Mount{erofsMount("/s/1/layer.erofs")}, stack{lower: images("/s/1/layer.erofs")}},
		{"images, writable directory", []Mount{erofsMount("/s/2/layer.erofs"), erofsMount("/s/1/layer.erofs"),
			{"format/mkdir/overlay", "overlay", []string{"workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir={{ overlay 0 1 }}"}}},
			stack{lower: images("/s/2/layer.erofs", "/s/1/layer.erofs"), upper: "/s/9/fs"}},
		{"images, writable image", []Mount{ext4, erofsMount("/s/2/layer.erofs"), erofsMount("/s/1/layer.erofs"),
			{"format/mkdir/overlay", "overlay", []string{"X-containerd.mkdir.path={{ mount 0 }}/upper:0755",
				"workdir={{ mount 0 }}/work", "upperdir={{ mount 0 }}/upper", "lowerdir={{ overlay 1 2 }}"}}},
			stack{lower: images("/s/2/layer.erofs", "/s/1/layer.erofs")}},
		{"one image, writable image", []Mount{ext4, erofsMount("/s/1/layer.erofs"),
			{"format/mkdir/overlay", "overlay", []string{"upperdir={{ mount 0 }}/upper", "lowerdir={{ mount 1 }}"}}},
			stack{lower: images("/s/1/layer.erofs")}},
		{"merged index", []Mount{erofsMount("/s/3/layer.erofs"), erofsMount("/s/2/fsmeta.erofs", "device=/s/1/layer.erofs", "device=/s/2/layer.erofs"),
			{"format/mkdir/overlay", "overlay", []string{"lowerdir={{ overlay 0 1 }}"}}},
			stack{lower: images("/s/3/layer.erofs", "/s/2/layer.erofs", "/s/1/layer.erofs")}},
		{"view of a merged index", []Mount{erofsMount("/s/2/fsmeta.erofs", "device=/s/1/layer.erofs"),
			{"format/bind", "{{ mount 0 }}", []string{"ro", "rbind"}}}, stack{lower: images("/s/1/layer.erofs")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parse(tt.mounts)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(stack{}, source{})); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	overlay := func(options ...string) []Mount { return []Mount{{"overlay", "overlay", options}} }
	tests := []struct {
		name, says string
		mounts     []Mount
	}{
		{"nothing", "no mounts", nil},
		{"unknown type", "can't be used", []Mount{{"btrfs", "/dev/sda", nil}}},
		{"overlay first", "can't be used", append(overlay("lowerdir=/a"), Mount{"bind", "/b", nil})},
		{"no lowerdir", "without lowerdir", overlay("upperdir=/a")},
		{"relative", "not absolute", overlay("lowerdir=a:/b")},
		{"empty element", "not absolute", overlay("lowerdir=/a::/b")},
		{"unknown option", `"uidmap=0:1:2"`, overlay("lowerdir=/a", "uidmap=0:1:2")},
		{"metacopy", `"metacopy=on"`, overlay("lowerdir=/a", "metacopy=on")},
		{"template out of range", "names mount 7 of 2", []Mount{erofsMount("/a"), {"format/overlay", "overlay", []string{"lowerdir={{ overlay 0 7 }}"}}}},
		{"template of itself", `of type "format/overlay"`, []Mount{erofsMount("/a"), {"format/overlay", "overlay", []string{"lowerdir={{ mount 1 }}"}}}},
		{"other template", "is not supported", []Mount{erofsMount("/a"), {"format/overlay", "overlay", []string{"lowerdir={{ source 0 }}"}}}},
		{"verity", "X-containerd.dmverity", []Mount{erofsMount("/a", "X-containerd.dmverity=/b")}},
		{"too many layers", "501 layers", overlay("lowerdir=/a" + strings.Repeat(":/a", 500))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parse(tt.mounts)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(fmt.Sprint(err), tt.says) {
				t.Errorf("error is %v, should say %q", err, tt.says)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add("overlay", "overlay", "lowerdir=/a:/b,upperdir=/c,userxattr")
	f.Add("format/mkdir/overlay", "overlay", "lowerdir={{ overlay 0 1 }}")
	f.Add("bind", "{{ mount 0 }}", "ro")
	f.Add("erofs", "/a", "device=/b")
	f.Add("overlay", "", `lowerdir=/a\:b\`)
	f.Fuzz(func(t *testing.T, kind, path, options string) {
		for _, mounts := range [][]Mount{
			{{kind, path, strings.Split(options, ",")}},
			{erofsMount("/a"), erofsMount("/b"), {kind, path, strings.Split(options, ",")}},
		} {
			got, err := parse(mounts)
			if err != nil {
				continue
			}
			for _, s := range append(got.lower, source{path: got.upper}) {
				if s.path != "" && (s.path[0] != '/' || strings.Contains(s.path, "\x00") || strings.Contains(s.path, "/../")) {
					t.Errorf("path %q", s.path)
				}
			}
			if len(got.lower) == 0 && got.upper == "" && !strings.Contains(path+options, "{{") {
				t.Error("nothing came out")
			}
		}
	})
}
