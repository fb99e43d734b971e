package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// output is what a program writes, for reading at the same time.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// start runs Main until the test ends or stop is called, and returns its address once it serves.
func start(t *testing.T, root string, more ...string) (address string, log *output, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	log = new(output)
	done := make(chan int, 1)
	args := append([]string{"--listen", "127.0.0.1:0", "--root", root}, more...)
	go func() { done <- Main(ctx, args, io.Discard, log) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if code := <-done; code != 0 {
			t.Errorf("the registry ended with %d:\n%s", code, log)
		}
	})
	t.Cleanup(stop)
	serving := regexp.MustCompile(`msg=serving listen=(\S+)`)
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if found := serving.FindStringSubmatch(log.String()); found != nil {
			return found[1], log, stop
		}
	}
	t.Fatalf("the registry doesn't serve:\n%s", log)
	return "", nil, nil
}

// resolver is containerd's, with the hosts files that the package comment shows.
func resolver(t *testing.T, address string) remotes.Resolver {
	t.Helper()
	dir := t.TempDir()
	override := func(host string) string {
		return "[host.\"http://" + address + "/v2/" + host + "\"]\ncapabilities = [\"pull\", \"resolve\"]\noverride_path = true\n"
	}
	for name, content := range map[string]string{
		"_default": "[host.\"http://" + address + "\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
		strings.Replace(address, ":", "_", 1) + "_": "server = \"http://" + address + "\"\n",
		"quay.io":            override("quay.io"),
		"quay.example_5000_": override("quay.example:5000"),
	} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "hosts.toml"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return docker.NewResolver(docker.ResolverOptions{
		Hosts: config.ConfigureHosts(t.Context(), config.HostOptions{HostDir: config.HostDirFromRoot(dir)}),
	})
}

// image is a small one: its blobs, and last its manifest.
func image(t *testing.T, text string) (blobs map[digest.Digest][]byte, descriptors []ocispec.Descriptor) {
	t.Helper()
	blobs = make(map[digest.Digest][]byte)
	add := func(mediaType string, content []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(content), Size: int64(len(content))}
		blobs[d.Digest] = content
		descriptors = append(descriptors, d)
		return d
	}
	layer := add(ocispec.MediaTypeImageLayer, []byte(text))
	conf := add(ocispec.MediaTypeImageConfig, []byte(`{"architecture": "amd64", "os": "linux"}`))
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: conf, Layers: []ocispec.Descriptor{layer},
	})
	if err != nil {
		t.Fatal(err)
	}
	add(ocispec.MediaTypeImageManifest, manifest)
	return blobs, descriptors
}

// push pushes an image with containerd's client, and returns the manifest's digest.
func push(t *testing.T, address, repository, text string) digest.Digest {
	t.Helper()
	blobs, descriptors := image(t, text)
	pusher, err := resolver(t, address).Pusher(t.Context(), address+"/"+repository+":1")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range descriptors {
		w, err := pusher.Push(t.Context(), d)
		if err != nil {
			t.Fatalf("push %s: %v", repository, err)
		}
		if _, err := w.Write(blobs[d.Digest]); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(t.Context(), d.Size, d.Digest); err != nil {
			t.Fatalf("push %s: %v", repository, err)
		}
	}
	return descriptors[len(descriptors)-1].Digest
}

// pull pulls an image with containerd's client, and returns its layer.
func pull(t *testing.T, address, ref string, want digest.Digest) string {
	t.Helper()
	r := resolver(t, address)
	name, d, err := r.Resolve(t.Context(), ref)
	if err != nil {
		t.Fatalf("resolve %s: %v", ref, err)
	}
	if d.Digest != want {
		t.Fatalf("resolve %s = %s, want %s", ref, d.Digest, want)
	}
	fetcher, err := r.Fetcher(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	fetch := func(d ocispec.Descriptor) []byte {
		t.Helper()
		body, err := fetcher.Fetch(t.Context(), d)
		if err != nil {
			t.Fatalf("fetch %s of %s: %v", d.Digest, ref, err)
		}
		defer body.Close()
		data, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(fetch(d), &manifest); err != nil {
		t.Fatal(err)
	}
	return string(fetch(manifest.Layers[0]))
}

// request sends a request as it is written, and returns the status and the body.
func request(t *testing.T, method, url string, body io.Reader, contentType string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", ocispec.MediaTypeImageManifest)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

func TestPushAndPull(t *testing.T) {
	root := filepath.Join(t.TempDir(), "images")
	address, log, stop := start(t, root)
	images := map[string]string{ // by the name that a pod has for it
		"docker.io/library/busybox:1":     "docker.io/library/busybox",
		"registry.example/team/app:1":     "registry.example/team/app",
		"registry.example:5000/app:1":     "registry.example_5000/app",
		"localhost:5001/app:1":            "localhost_5001/app",
		"quay.io/team/app:1":              "quay.io/team/app",
		"quay.example:5000/team/app:1":    "quay.example_5000/team/app",
		"LOCAL/app:1":                     "LOCAL/app", // replaced by the registry's address
		"docker.io/registry.example/x:1":  "docker.io/registry.example/x",
		"mirror.gcr.io/docker.io/hello:1": "mirror.gcr.io/docker.io/hello",
	}
	digests := make(map[string]digest.Digest)
	for ref, repository := range images {
		digests[ref] = push(t, address, strings.TrimPrefix(repository, "LOCAL/"), "layer of "+ref)
	}
	read := func() {
		t.Helper()
		for ref, want := range digests {
			if got := pull(t, address, strings.Replace(ref, "LOCAL", address, 1), want); got != "layer of "+ref {
				t.Errorf("pull %s = %q", ref, got)
			}
		}
	}
	read()
	// The mirror of one host has nothing of another's.
	if _, _, err := resolver(t, address).Resolve(t.Context(), "127.0.0.1:1/library/busybox:1"); err == nil {
		t.Error("an image of another host was found")
	}
	if text := log.String(); strings.Contains(text, "level=ERROR") {
		t.Errorf("log:\n%s", text)
	}

	stop()
	address, _, _ = start(t, root)
	read()
}

func TestDelete(t *testing.T) {
	address, _, _ := start(t, t.TempDir())
	manifest := push(t, address, "app", "layer")
	url := "http://" + address + "/v2/app/manifests/"
	if status, body := request(t, http.MethodDelete, url+manifest.String(), nil, ""); status != http.StatusAccepted {
		t.Fatalf("delete = %d %s", status, body)
	}
	for _, ref := range []string{"1", manifest.String()} {
		if status, _ := request(t, http.MethodGet, url+ref, nil, ""); status != http.StatusNotFound {
			t.Errorf("GET %s after the deletion = %d", ref, status)
		}
	}
}

// TestIndex pushes an index without the images that it names.
func TestIndex(t *testing.T) {
	address, _, _ := start(t, t.TempDir())
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("elsewhere"), Size: 9}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if status, body := request(t, http.MethodPut, "http://"+address+"/v2/app/manifests/1", bytes.NewReader(index), ocispec.MediaTypeImageIndex); status != http.StatusCreated {
		t.Errorf("PUT = %d %s", status, body)
	}
}

func TestRefusedRequests(t *testing.T) {
	root := filepath.Join(t.TempDir(), "images")
	secret := filepath.Join(filepath.Dir(root), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	address, log, _ := start(t, root)
	push(t, address, "docker.io/library/busybox", "layer")
	uploads := "/blobs/uploads/"
	for _, tc := range []struct {
		method, path string
		status       int
		contains     string
	}{
		{"GET", "/v2/", 200, "{}"},
		{"GET", "/v2/?ns=docker.io", 200, "{}"},
		{"GET", "/v2/_catalog?ns=docker.io", 200, "docker.io/library/busybox"},
		{"GET", "/v2/library/busybox/manifests/1?ns=docker.io", 200, ""},
		{"GET", "/v2/docker.io/library/busybox/manifests/1?ns=docker.io", 200, ""},
		{"GET", "/v2/library/busybox/tags/list?ns=docker.io", 200, `"1"`},
		{"GET", "/v2/library/busybox/manifests/1", 404, ""},
		{"GET", "/v2/library/busybox/manifests/1?ns=quay.io", 404, ""},
		{"GET", "/v2/library/busybox/manifests/1?ns=", 404, "ns="},
		{"GET", "/v2/library/busybox/manifests/1?ns=..", 404, "ns="},
		{"GET", "/v2/busybox/manifests/1?ns=docker.io/library", 404, "ns="},
		{"GET", "/v2/library/busybox/manifests/1?ns=../docker.io", 404, "ns="},
		{"GET", "/v2/library/busybox/manifests/1?ns=[::1]:5000", 404, "ns="},
		{"GET", "/v2/library/busybox/manifests/1?ns=" + strings.Repeat("a", 5000), 404, "ns="},
		{"POST", "/v2/library/busybox" + uploads + "?ns=docker.io", 405, "UNSUPPORTED"},
		{"PUT", "/v2/library/busybox/manifests/2?ns=docker.io", 405, "UNSUPPORTED"},
		{"GET", "/v2/%2e%2e/%2e%2e/secret/manifests/1", 404, ""},
		{"GET", "/v2/..%2f..%2fsecret/manifests/1", 404, ""},
		{"GET", "/v2/app/manifests/..%2f..%2f..%2fsecret", 404, ""},
		{"GET", "/v2/app/blobs/sha256:..%2f..%2fsecret", 404, ""},
		{"POST", "/v2/..%2f..%2fout" + uploads, 404, ""},
		{"POST", "/v2/.hidden" + uploads, 404, ""},
		{"POST", "/v2/UPPER" + uploads, 404, ""},
		{"POST", "/v2/host:5000/app" + uploads, 400, "colon"},
		{"GET", "/v2/" + strings.Repeat("a", 300) + ".example/app/manifests/1", 400, "longer"},
		{"GET", "/v2/app/manifests/" + strings.Repeat("a", 300), 400, "longer"},
		{"GET", "/debug/vars", 404, ""},
		{"GET", "/metrics", 404, ""},
	} {
		t.Run(fmt.Sprintf("%s %.60s", tc.method, tc.path), func(t *testing.T) {
			status, body := request(t, tc.method, "http://"+address+tc.path, nil, "")
			// The router answers a path that it can shorten with the shorter one.
			if status == http.StatusMovedPermanently && tc.status == http.StatusNotFound {
				status = http.StatusNotFound
			}
			if status != tc.status || !strings.Contains(body, tc.contains) || strings.Contains(body, "secret") {
				t.Errorf("%d %s, want %d", status, body, tc.status)
			}
		})
	}
	large := io.LimitReader(zeros{}, 8<<20)
	if status, _ := request(t, "PUT", "http://"+address+"/v2/app/manifests/1", large, ocispec.MediaTypeImageManifest); status < 400 || status > 499 {
		t.Errorf("a manifest of 8 MiB: %d", status)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(root), "*")); len(left) != 2 {
		t.Errorf("beside the root: %v", left)
	}
	if strings.Contains(log.String(), "response completed with error") {
		t.Errorf("log:\n%.2000s", log)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestPushFrom lets nobody push but the addresses that may.
func TestPushFrom(t *testing.T) {
	root := t.TempDir()
	address, _, stop := start(t, root)
	want := push(t, address, "docker.io/library/busybox", "layer")
	stop()

	address, _, _ = start(t, root, "--push-from", "10.88.0.1/32,fd88::1/128")
	pull(t, address, "docker.io/library/busybox:1", want)
	manifest := "http://" + address + "/v2/docker.io/library/busybox/manifests/" + want.String()
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE", "BREW"} {
		if status, body := request(t, method, manifest, nil, ""); status != http.StatusForbidden || !strings.Contains(body, "DENIED") {
			t.Errorf("%s = %d %s", method, status, body)
		}
	}
	pull(t, address, "docker.io/library/busybox:1", want)

	f := front{http.NotFoundHandler(), []netip.Prefix{netip.MustParsePrefix("10.88.0.1/32"), netip.MustParsePrefix("fd88::1/128")}}
	for client, want := range map[string]int{
		"10.88.0.1:1": 404, "[::ffff:10.88.0.1]:1": 404, "[fd88::1]:1": 404, "[fd88::1%eth0]:1": 404,
		"10.88.0.10:1": 403, "10.244.0.5:1": 403, "[fd88::10]:1": 403, "127.0.0.1:1": 403, "@": 403, "": 403,
	} {
		r := httptest.NewRequest(http.MethodPost, "/v2/app/blobs/uploads/", nil)
		r.RemoteAddr = client
		r.Header.Set("X-Forwarded-For", "10.88.0.1")
		w := httptest.NewRecorder()
		f.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("push from %q = %d, want %d", client, w.Code, want)
		}
	}
}

// TestErrorsAreLogged takes the storage away.
func TestErrorsAreLogged(t *testing.T) {
	root := filepath.Join(t.TempDir(), "images")
	address, log, _ := start(t, root)
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if status, body := request(t, "POST", "http://"+address+"/v2/app/blobs/uploads/", nil, ""); status < 500 {
		t.Errorf("an upload without storage = %d %s", status, body)
	}
	if text := log.String(); !strings.Contains(text, "level=ERROR") || !strings.Contains(text, "not a directory") {
		t.Errorf("log:\n%s", text)
	}
}

func TestArguments(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
		code int
	}{
		"help":            {[]string{"--help"}, "--push-from", 0},
		"nothing":         {nil, `--listen ""`, 2},
		"no port":         {[]string{"--listen", "10.88.0.2"}, "ADDRESS:PORT", 2},
		"relative root":   {[]string{"--listen", "127.0.0.1:0", "--root", "x"}, `--root "x"`, 2},
		"bad prefix":      {[]string{"--listen", "127.0.0.1:0", "--root", "/x", "--push-from", "10.0.0.1"}, `--push-from "10.0.0.1"`, 2},
		"argument":        {[]string{"x"}, `"x"`, 2},
		"root a file":     {[]string{"--listen", "127.0.0.1:0", "--root", "/dev/null"}, "/dev/null", 1},
		"not our address": {[]string{"--listen", "192.0.2.1:5000", "--root", t.TempDir()}, "192.0.2.1", 1},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			if code := Main(t.Context(), tc.args, &out, &errs); code != tc.code || !strings.Contains(errs.String(), tc.want) {
				t.Errorf("Main = %d, %s; want %d, %q", code, &errs, tc.code, tc.want)
			}
		})
	}
}

//testtier:slow 4
func FuzzMirror(f *testing.F) {
	for _, seed := range []string{"docker.io", "localhost:5000", "../x", "[::1]:5000", "a..b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, host string) {
		directory, err := mirrorOf(host)
		if err == nil && (!regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*$`).MatchString(directory) || strings.Contains(directory, "..")) {
			t.Errorf("mirrorOf(%q) = %q", host, directory)
		}
	})
}
