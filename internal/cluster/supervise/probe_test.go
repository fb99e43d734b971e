package supervise

import (
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestProbe(t *testing.T) {
	answer := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
			w.WriteHeader(http.StatusNoContent)
		case "/moved":
			http.Redirect(w, r, "/ok", http.StatusFound)
		default:
			http.Error(w, "the bread is not ready", http.StatusServiceUnavailable)
		}
	})
	plain, secure := httptest.NewServer(answer), httptest.NewTLSServer(answer)
	t.Cleanup(plain.Close)
	t.Cleanup(secure.Close)
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // it complains of a client that we want to complain
	dir := t.TempDir()
	ca, garbage := filepath.Join(dir, "ca"), filepath.Join(dir, "garbage")
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw})
	for path, data := range map[string][]byte{ca: certificate, garbage: []byte("x")} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	address, err := url.Parse(plain.URL)
	if err != nil {
		t.Fatal(err)
	}

	cases := []struct {
		name  string
		probe *Probe
		fails string // part of the error; empty: it is ready
	}{
		{name: "none"},
		{name: "http", probe: &Probe{URL: plain.URL + "/ok"}},
		{name: "http, not ready", probe: &Probe{URL: plain.URL + "/no"}, fails: "503 Service Unavailable: the bread is not ready"},
		{name: "http, elsewhere", probe: &Probe{URL: plain.URL + "/moved"}, fails: "302"},
		{name: "https", probe: &Probe{URL: secure.URL + "/ok", CA: ca}},
		{name: "https of an unknown CA", probe: &Probe{URL: secure.URL + "/ok"}, fails: "certificate"},
		{name: "https without the CA's file", probe: &Probe{URL: secure.URL + "/ok", CA: filepath.Join(dir, "none")}, fails: "read CA"},
		{name: "https with a bad CA file", probe: &Probe{URL: secure.URL + "/ok", CA: garbage}, fails: "no certificate"},
		{name: "tcp", probe: &Probe{URL: "tcp://" + address.Host}},
		{name: "tcp, nobody there", probe: &Probe{URL: "tcp://127.0.0.1:1"}, fails: "refused"},
		{name: "unix", probe: &Probe{URL: "unix://" + socket}},
		{name: "unix, nobody there", probe: &Probe{URL: "unix://" + socket + "x"}, fails: "no such file"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.probe != nil {
				if err := c.probe.validate(); err != nil {
					t.Fatal(err)
				}
			}
			err := c.probe.check(t.Context())
			switch {
			case c.fails == "" && err != nil:
				t.Error(err)
			case c.fails != "" && (err == nil || !strings.Contains(err.Error(), c.fails)):
				t.Errorf("got %v, want an error with %q", err, c.fails)
			}
		})
	}
}

func TestProbesGetRarer(t *testing.T) {
	last := time.Duration(0)
	for tries := range 1000 {
		now := pause(tries, false)
		if now < last || now > time.Second {
			t.Fatalf("pause %v after %v, at try %d", now, last, tries)
		}
		last = now
	}
	if first := pause(0, false); first > 50*time.Millisecond || last <= first || pause(0, true) <= last {
		t.Errorf("pauses %v, later %v, when ready %v", first, last, pause(0, true))
	}
}
