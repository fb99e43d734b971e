package hostdir

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	got, err := parse("/var/lib/kubelet=/srv/a,/var/log/x/=/srv/b")
	if err != nil {
		t.Fatal(err)
	}
	want := []bind{{"/var/lib/kubelet", "/srv/a"}, {"/var/log/x", "/srv/b"}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(bind{})); diff != "" {
		t.Error(diff)
	}
	for _, text := range []string{"", "/a", "a=/b", "/a=b", "/a=/b,"} {
		if _, err := parse(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestArguments(t *testing.T) {
	if diff := cmp.Diff([]string{"/bin/p", "", "a b"}, arguments([]byte("/bin/p\x00\x00a b\x00"))); diff != "" {
		t.Error(diff)
	}
}

func TestCovering(t *testing.T) {
	const table = `22 1 8:1 / / rw shared:1 - ext4 /dev/vda rw
30 22 0:5 / /var rw shared:2 - ext4 /dev/vdb rw
31 30 0:6 / /var/lib\040x rw - tmpfs tmpfs rw
32 22 0:7 / /va rw - tmpfs tmpfs rw
broken
`
	for path, want := range map[string]string{
		"/var/lib/kubelet": "/var", "/var": "/var", "/var/lib x/y": "/var/lib x", "/vault": "/", "/va/x": "/va",
	} {
		if got, err := covering(table, path); err != nil || got != want {
			t.Errorf("covering(%s) = %s, %v; want %s", path, got, err, want)
		}
	}
	if _, err := covering("", "/x"); err == nil {
		t.Error("no mount is enough")
	}
}
