package kms

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"k8s.io/apiserver/pkg/storage/value"
	"k8s.io/apiserver/pkg/storage/value/encrypt/envelope/kmsv2"
	kmsapi "k8s.io/kms/apis/v2"
	kmsservice "k8s.io/kms/pkg/service"
)

// start runs Main until the test ends or stop is called, and waits until it answers.
func start(t *testing.T, keyFile string) (endpoint string, stop func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ctx, cancel := context.WithCancel(t.Context())
	var log bytes.Buffer
	done := make(chan int, 1)
	go func() {
		done <- Main(ctx, []string{"--listen", "unix://" + path, "--key-file", keyFile}, io.Discard, &log)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if code := <-done; code != 0 {
			t.Errorf("the service ended with %d:\n%s", code, &log)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
	t.Cleanup(stop)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			return "unix://" + path, stop
		}
		if time.Now().After(deadline) {
			t.Fatal("the service doesn't listen")
		}
	}
}

// dial returns a client of a service.
func dial(t *testing.T, endpoint string) kmsapi.KeyManagementServiceClient {
	t.Helper()
	conn, err := grpc.NewClient(endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return kmsapi.NewKeyManagementServiceClient(conn)
}

func statusID(t *testing.T, client kmsapi.KeyManagementServiceClient) string {
	t.Helper()
	st, err := client.Status(t.Context(), &kmsapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if st.Version != "v2" || st.Healthz != "ok" || st.KeyId == "" {
		t.Fatalf("Status = %v", st)
	}
	return st.KeyId
}

func rotate(t *testing.T, keyFile string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if code := Main(t.Context(), []string{"rotate", "--key-file", keyFile}, &out, &errs); code != 0 {
		t.Fatalf("rotate = %d: %s", code, &errs)
	}
	return strings.TrimSpace(out.String())
}

func TestService(t *testing.T) {
	keyFile := filepath.Join(t.TempDir(), "keys.json")
	endpoint, stop := start(t, keyFile)
	client := dial(t, endpoint)

	for path, want := range map[string]os.FileMode{keyFile: 0o600, strings.TrimPrefix(endpoint, "unix://"): 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("mode of %s = %04o, want %04o", path, got, want)
		}
	}

	first := statusID(t, client)
	plaintext := []byte("a data key of 32 bytes, in fact.")
	sealed, err := client.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: plaintext})
	if err != nil {
		t.Fatal(err)
	}
	if sealed.KeyId != first || bytes.Contains(sealed.Ciphertext, plaintext[:8]) {
		t.Fatalf("Encrypt = %q with key %s, Status says %s", sealed.Ciphertext, sealed.KeyId, first)
	}
	again, err := client.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: plaintext})
	if err != nil || bytes.Equal(again.Ciphertext, sealed.Ciphertext) {
		t.Fatalf("the same plaintext twice: %v, %q", err, again.GetCiphertext())
	}
	data, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	var file keyFileView
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(first, file.Keys[0].Secret) || !strings.HasPrefix(first, "v1:") {
		t.Errorf("key id %q", first)
	}

	second := rotate(t, keyFile)
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil { // it must not end the service
		t.Fatal(err)
	}
	if got := statusID(t, client); got != second || got == first {
		t.Fatalf("key id after the rotation = %s, rotate printed %s, before it was %s", got, second, first)
	}
	open := func(client kmsapi.KeyManagementServiceClient) {
		t.Helper()
		opened, err := client.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: sealed.Ciphertext, KeyId: sealed.KeyId})
		if err != nil || !bytes.Equal(opened.Plaintext, plaintext) {
			t.Fatalf("Decrypt = %q, %v", opened.GetPlaintext(), err)
		}
	}
	open(client)

	stop()
	endpoint, _ = start(t, keyFile)
	client = dial(t, endpoint)
	open(client)
	if got := statusID(t, client); got != second {
		t.Errorf("key id after a new start = %s, want %s", got, second)
	}
}

type keyFileView struct {
	Keys []struct {
		Secret string `json:"secret"`
	} `json:"keys"`
}

// TestEnvelope stores a value as the API server does, with its own code.
func TestEnvelope(t *testing.T) {
	keyFile := filepath.Join(t.TempDir(), "keys.json")
	endpoint, _ := start(t, keyFile)
	const name = "bulkhead-test"
	service, err := kmsv2.NewGRPCService(t.Context(), endpoint, name, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	secret := []byte("the password of the database")
	where := value.DefaultContext("/registry/secrets/default/db")

	transformer := func() value.Transformer { return envelope(t, service, name) }
	stored, err := transformer().TransformToStorage(t.Context(), secret, where)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(stored, secret[:8]) {
		t.Fatalf("the value is stored readably: %q", stored)
	}
	// A new transformer knows no data key: it must ask the service.
	read := func(wantStale bool) {
		t.Helper()
		got, stale, err := transformer().TransformFromStorage(t.Context(), stored, where)
		if err != nil || !bytes.Equal(got, secret) || stale != wantStale {
			t.Fatalf("read back %q, stale %v, %v", got, stale, err)
		}
	}
	read(false)
	rotate(t, keyFile)
	read(true) // so that the next write encrypts it anew
	if _, _, err := transformer().TransformFromStorage(t.Context(), stored, value.DefaultContext("/registry/secrets/default/other")); err == nil {
		t.Error("the value can be moved to another object")
	}

	lost := filepath.Join(t.TempDir(), "keys.json")
	if _, err := ensure(lost, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(lost, keyFile); err != nil {
		t.Fatal(err)
	}
	if _, _, err := transformer().TransformFromStorage(t.Context(), stored, where); status.Code(err) != codes.NotFound {
		t.Errorf("with another key file: %v, want NotFound", err)
	}
}

// envelope is a transformer with a new data key, as the API server has one after its start.
func envelope(t *testing.T, service kmsservice.Service, name string) value.Transformer {
	t.Helper()
	inner, object, cacheKey, err := kmsv2.GenerateTransformer(t.Context(), "uid", service, true)
	if err != nil {
		t.Fatal(err)
	}
	state := func() (kmsv2.State, error) {
		return kmsv2.State{
			Transformer:                           inner,
			EncryptedObjectKeyID:                  object.KeyID,
			EncryptedObjectEncryptedDEKSource:     object.EncryptedDEKSource,
			EncryptedObjectEncryptedDEKSourceType: object.EncryptedDEKSourceType,
			ExpirationTimestamp:                   time.Now().Add(time.Hour),
			CacheKey:                              cacheKey,
			KMSProviderName:                       name,
		}, nil
	}
	return kmsv2.NewEnvelopeTransformer(service, name, state, "test")
}

func TestHostileRequests(t *testing.T) {
	endpoint, _ := start(t, filepath.Join(t.TempDir(), "keys.json"))
	client := dial(t, endpoint)
	sealed, err := client.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte("key")})
	if err != nil {
		t.Fatal(err)
	}
	good, id := sealed.Ciphertext, sealed.KeyId
	flip := func(at int) []byte {
		b := bytes.Clone(good)
		b[at] ^= 1
		return b
	}
	for name, tc := range map[string]struct {
		ciphertext  []byte
		id          string
		annotations map[string][]byte
		want        codes.Code
	}{
		"empty":         {nil, id, nil, codes.InvalidArgument},
		"short":         {good[:overhead-1], id, nil, codes.InvalidArgument},
		"cut":           {good[:len(good)-1], id, nil, codes.InvalidArgument},
		"longer":        {append(bytes.Clone(good), 0), id, nil, codes.InvalidArgument},
		"too long":      {bytes.Repeat([]byte{1}, 2000), id, nil, codes.InvalidArgument},
		"huge":          {bytes.Repeat([]byte{1}, 1<<20), id, nil, codes.ResourceExhausted},
		"other format":  {flip(0), id, nil, codes.InvalidArgument},
		"changed nonce": {flip(1), id, nil, codes.InvalidArgument},
		"changed text":  {flip(1 + nonceSize), id, nil, codes.InvalidArgument},
		"changed tag":   {flip(len(good) - 1), id, nil, codes.InvalidArgument},
		"no key id":     {good, "", nil, codes.NotFound},
		"unknown key":   {good, strings.Repeat("x", 1000), nil, codes.NotFound},
		"annotations":   {good, id, map[string][]byte{"a.example": nil}, codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := client.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: tc.ciphertext, KeyId: tc.id, Annotations: tc.annotations})
			if status.Code(err) != tc.want || len(err.Error()) > 500 {
				t.Errorf("Decrypt: %v, want %v", err, tc.want)
			}
		})
	}
	for size, want := range map[int]codes.Code{0: codes.OK, maxPlaintext: codes.OK, maxPlaintext + 1: codes.InvalidArgument, 1 << 20: codes.ResourceExhausted} {
		sealed, err := client.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: make([]byte, size)})
		if status.Code(err) != want {
			t.Errorf("Encrypt of %d bytes: %v, want %v", size, err, want)
		}
		if err == nil {
			if _, err := client.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: sealed.Ciphertext, KeyId: sealed.KeyId}); err != nil {
				t.Errorf("Decrypt of %d bytes: %v", size, err)
			}
		}
	}
	if got := statusID(t, client); got != id {
		t.Errorf("key id = %s, want %s", got, id)
	}
}

// TestBadFile breaks the key file under a running service.
func TestBadFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	if _, err := ensure(path, time.Now()); err != nil {
		t.Fatal(err)
	}
	s, err := newServer(path, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := s.Encrypt(t.Context(), &kmsapi.EncryptRequest{Plaintext: []byte("key")})
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	st, err := s.Status(t.Context(), nil)
	if err != nil || !strings.Contains(st.Healthz, path) || st.KeyId != sealed.KeyId {
		t.Errorf("Status = %v, %v", st, err)
	}
	if _, err := s.Encrypt(t.Context(), &kmsapi.EncryptRequest{}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("Encrypt: %v, want FailedPrecondition", err)
	}
	if _, err := s.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: sealed.Ciphertext, KeyId: sealed.KeyId}); err != nil {
		t.Errorf("Decrypt: %v", err)
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if st, err := s.Status(t.Context(), nil); err != nil || st.Healthz != "ok" {
		t.Errorf("Status after the repair = %v, %v", st, err)
	}
}

func TestKeyFileErrors(t *testing.T) {
	const secret = "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U="
	one := `{"secret": "` + secret + `"}`
	for name, tc := range map[string]struct {
		content string
		mode    os.FileMode
		want    string
	}{
		"empty":         {"", 0o600, `isn't {"version"`},
		"no JSON":       {"keys", 0o600, "isn't JSON"},
		"no keys":       {`{"version": 1, "keys": []}`, 0o600, "has 0 keys"},
		"version":       {`{"version": 2, "keys": [` + one + `]}`, 0o600, "version is 2"},
		"unknown field": {`{"version": 1, "keys": [` + one + `], "other": 1}`, 0o600, `isn't {"version"`},
		"short key":     {`{"version": 1, "keys": [{"secret": "c2VjcmV0"}]}`, 0o600, "has 6 bytes"},
		"twice":         {`{"version": 1, "keys": [` + one + "," + one + `]}`, 0o600, "keys[1] is there twice"},
		"more":          {`{"version": 1, "keys": [` + one + `]} {}`, 0o600, "follows"},
		"large":         {strings.Repeat(" ", maxFileSize+1), 0o600, "larger"},
		"readable":      {`{"version": 1, "keys": [` + one + `]}`, 0o640, "chmod 0600"},
		"good":          {`{"version": 1, "keys": [` + one + `]}`, 0o600, ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "keys.json")
			if err := os.WriteFile(path, []byte(tc.content), tc.mode); err != nil {
				t.Fatal(err)
			}
			_, err := load(path)
			if tc.want == "" && err == nil {
				return
			}
			if err == nil || tc.want == "" || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("load: %v, want %q", err, tc.want)
			}
			if strings.Contains(err.Error(), secret[:8]) {
				t.Errorf("the error tells the key: %v", err)
			}
			if _, err := Rotate(path, time.Now()); err == nil && name != "twice" {
				t.Error("rotate took it")
			}
		})
	}
}

// TestRotateTogether loses no key when several processes rotate.
func TestRotateTogether(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.json")
	if _, err := ensure(path, time.Now()); err != nil {
		t.Fatal(err)
	}
	const n = 20
	ids := make([]string, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			id, err := Rotate(path, time.Now())
			if err != nil {
				t.Error(err)
			}
			ids[i] = id
		})
	}
	wg.Wait()
	ring, err := load(path)
	if err != nil || len(ring.keys) != n+1 {
		t.Fatalf("%d keys, %v", len(ring.keys), err)
	}
	for _, id := range ids {
		if _, ok := ring.find(id); !ok {
			t.Errorf("key %s is lost", id)
		}
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestSocket(t *testing.T) {
	t.Run("stale", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		old.SetUnlinkOnClose(false)
		old.Close()
		s, err := listenUnix(path)
		if err != nil {
			t.Fatal(err)
		}
		s.Close()
	})
	t.Run("in use by another program", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		other, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "another program") {
			t.Errorf("listen: %v", err)
		}
		if _, err := net.Dial("unix", path); err != nil {
			t.Errorf("the other's socket is gone: %v", err)
		}
	})
	t.Run("in use by a service", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		s, err := listenUnix(path)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "another service") {
			t.Errorf("listen: %v", err)
		}
	})
	t.Run("a file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := listenUnix(path); err == nil {
			t.Error("listens over a file")
		}
		if data, _ := os.ReadFile(path); string(data) != "precious" {
			t.Error("the file is gone")
		}
	})
}

func TestArguments(t *testing.T) {
	for name, tc := range map[string]struct {
		args []string
		want string
		code int
	}{
		"help":        {[]string{"--help"}, "unix:///PATH", 0},
		"rotate help": {[]string{"rotate", "--help"}, "rotate", 0},
		"nothing":     {nil, "--key-file", 2},
		"no socket":   {[]string{"--key-file", "/x"}, "--listen is missing", 2},
		"relative":    {[]string{"--key-file", "/x", "--listen", "unix://x"}, "must be unix:///PATH", 2},
		"tcp":         {[]string{"--key-file", "/x", "--listen", "tcp://127.0.0.1:1"}, "must be unix:///PATH", 2},
		"long path":   {[]string{"--key-file", "/x", "--listen", "unix:///" + strings.Repeat("x", 107)}, "at most 107", 2},
		"argument":    {[]string{"--key-file", "/x", "y"}, `"y"`, 2},
		"rotate none": {[]string{"rotate", "--key-file", "/nonexistent/x"}, "no such file", 1},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			if code := Main(t.Context(), tc.args, &out, &errs); code != tc.code || !strings.Contains(errs.String(), tc.want) {
				t.Errorf("Main = %d, %s; want %d, %q", code, &errs, tc.code, tc.want)
			}
		})
	}
}

func FuzzDecrypt(f *testing.F) {
	path := filepath.Join(f.TempDir(), "keys.json")
	if _, err := ensure(path, time.Now()); err != nil {
		f.Fatal(err)
	}
	s, err := newServer(path, slog.New(slog.DiscardHandler))
	if err != nil {
		f.Fatal(err)
	}
	sealed, err := s.Encrypt(f.Context(), &kmsapi.EncryptRequest{Plaintext: []byte("key")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed.Ciphertext, sealed.KeyId)
	f.Add([]byte{1}, sealed.KeyId)
	f.Add(make([]byte, overhead), "")
	f.Fuzz(func(t *testing.T, ciphertext []byte, id string) {
		got, err := s.Decrypt(t.Context(), &kmsapi.DecryptRequest{Ciphertext: ciphertext, KeyId: id})
		if same := bytes.Equal(ciphertext, sealed.Ciphertext) && id == sealed.KeyId; same != (err == nil) {
			t.Errorf("Decrypt(%q, %q) = %v, %v", ciphertext, id, got, err)
		}
		if code := status.Code(err); code != codes.OK && code != codes.InvalidArgument && code != codes.NotFound {
			t.Errorf("Decrypt: %v", err)
		}
	})
}

func FuzzKeyFile(f *testing.F) {
	f.Add([]byte(`{"version": 1, "keys": [{"created": "2026-01-31T12:00:00Z", "secret": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U="}]}`))
	f.Add([]byte(`{"version": 1, "keys": [{"secret": 1}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := parse(data)
		if err == nil && (len(file.Keys) == 0 || len(file.Keys[0].Secret) != keySize) {
			t.Errorf("parse took %q", data)
		}
	})
}
