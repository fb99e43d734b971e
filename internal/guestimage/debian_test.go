package guestimage

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseDepends(t *testing.T) {
	out := `crun
  Depends: libc6
  Depends: libcap2
 |Depends: default-logind
  Depends: <logind>
    libpam-elogind
  PreDepends: dpkg
  Depends: <virtual>
    provider
  Suggests: manpages
  Depends: libc6
`
	if diff := cmp.Diff([]string{"libc6", "libcap2", "default-logind", "dpkg"}, parseDepends([]byte(out))); diff != "" {
		t.Error(diff)
	}
}

func TestParseURI(t *testing.T) {
	sum := fileOf(nil).SHA256
	pkg, file, err := parseURI("libcap2", []byte("'http://mirror.example/pool/libc/libcap2/libcap2_2.66-4_amd64.deb' libcap2_1%3a2.66-4+deb12u3_amd64.deb 27708 SHA256:"+sum+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Package{Name: "libcap2", Version: "1:2.66-4+deb12u3", SHA256: sum}, pkg); diff != "" {
		t.Error(diff)
	}
	if file != "libcap2_1%3a2.66-4+deb12u3_amd64.deb" {
		t.Errorf("file %s", file)
	}
	for _, bad := range []string{"", "nonsense", "'u' other_1_amd64.deb 1 SHA256:" + sum, "'u' libcap2_1_amd64.deb 1 MD5Sum:00", "'u' ../libcap2_1_amd64.deb 1 SHA256:" + sum} {
		if _, _, err := parseURI("libcap2", []byte(bad)); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
}

func TestAptRefusesNames(t *testing.T) {
	a, err := newApt(t.TempDir(), testWriter{t})
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	for _, name := range []string{"", "-o", "--help", "A", "a b", "../x"} {
		if _, err := a.depends(t.Context(), name); err == nil {
			t.Errorf("depends accepted %q", name)
		}
		if _, err := a.fetch(t.Context(), name); err == nil {
			t.Errorf("fetch accepted %q", name)
		}
	}
}

type testWriter struct{ *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.Logf("%s", p)
	return len(p), nil
}
