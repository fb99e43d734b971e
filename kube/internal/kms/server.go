package kms

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	kmsapi "k8s.io/kms/apis/v2"
)

// A ciphertext, as the API server stores it:
//
//	offset  0  1 byte    format: 1
//	        1  12 bytes  nonce, random
//	       13  n bytes   AES-256-GCM of the plaintext, as long as it
//	     13+n  16 bytes  the tag; the additional data is the key id
//
// Random nonces are good for 2^32 messages of a key (NIST SP 800-38D, 8.3); a key here sees one at each start of an API server.
const (
	ciphertextFormat = 1
	nonceSize        = 12
	tagSize          = 16
	overhead         = 1 + nonceSize + tagSize

	// The API server takes at most 1 KiB of ciphertext; its data keys and seeds have 32 bytes.
	maxPlaintext = 512
	// maxMessage is the size of a request: nothing that the API server sends comes near it.
	maxMessage = 16 << 10
	// maxID bounds what an error quotes.
	maxID = 100
)

// server answers the API server. Its errors are gRPC statuses: InvalidArgument for what no key could make sense of, NotFound
// for a key that isn't in the file.
type server struct {
	kmsapi.UnimplementedKeyManagementServiceServer

	path string
	log  *slog.Logger

	mu      sync.Mutex
	ring    *keyring // the last one that could be read; guarded by mu
	problem error    // why the file on disk isn't ring; guarded by mu
}

// newServer returns a server for a key file that must be there.
func newServer(path string, log *slog.Logger) (*server, error) {
	ring, err := load(path)
	if err != nil {
		return nil, err
	}
	return &server{path: path, log: log, ring: ring}, nil
}

// keys returns the current keys.
func (s *server) keys() *keyring {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ring
}

// reload takes the key file if it changed, or in any case if forced. If it can't be used, the keys stay that are there: they
// are the ones that objects need. The error goes into Status, since without the file the next start of the service would fail.
func (s *server) reload(force bool) (*keyring, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, err := stampOf(s.path)
	if err == nil && now == s.ring.stamp && !force && s.problem == nil {
		return s.ring, nil
	}
	ring, err := load(s.path)
	if err != nil {
		if s.problem == nil || s.problem.Error() != err.Error() {
			s.log.Error("keeping the keys in memory", "err", err)
		}
		s.problem = err
		return s.ring, err
	}
	if old, id := s.ring.newest().id, ring.newest().id; old != id {
		s.log.Info("encrypting with another key", "keyID", id, "before", old, "keys", len(ring.keys))
	}
	s.ring, s.problem = ring, nil
	return ring, nil
}

// Status tells the id of the key that encrypts. It is not healthy while the key file can't be read.
func (s *server) Status(context.Context, *kmsapi.StatusRequest) (*kmsapi.StatusResponse, error) {
	ring, err := s.reload(false)
	health := "ok"
	if err != nil {
		health = err.Error()
	}
	return &kmsapi.StatusResponse{Version: "v2", Healthz: health, KeyId: ring.newest().id}, nil
}

// Encrypt encrypts a data key with the newest key.
func (s *server) Encrypt(_ context.Context, req *kmsapi.EncryptRequest) (*kmsapi.EncryptResponse, error) {
	if n := len(req.GetPlaintext()); n > maxPlaintext {
		return nil, status.Errorf(codes.InvalidArgument, "the plaintext has %d bytes: this service encrypts data keys, of at most %d", n, maxPlaintext)
	}
	ring, err := s.reload(false)
	if err != nil {
		// What is encrypted now could perhaps not be decrypted after the next start.
		return nil, status.Errorf(codes.FailedPrecondition, "encrypt: %v", err)
	}
	k := ring.newest()
	return &kmsapi.EncryptResponse{Ciphertext: k.seal(req.GetPlaintext()), KeyId: k.id}, nil
}

// Decrypt decrypts what Encrypt made, with the key that the request names.
func (s *server) Decrypt(_ context.Context, req *kmsapi.DecryptRequest) (*kmsapi.DecryptResponse, error) {
	if n := len(req.GetCiphertext()); n < overhead || n > overhead+maxPlaintext {
		return nil, status.Errorf(codes.InvalidArgument, "the ciphertext has %d bytes: those of this service have %d to %d", n, overhead, overhead+maxPlaintext)
	}
	if format := req.GetCiphertext()[0]; format != ciphertextFormat {
		return nil, status.Errorf(codes.InvalidArgument, "the ciphertext has format %d: this service knows %d", format, ciphertextFormat)
	}
	if len(req.GetAnnotations()) > 0 {
		return nil, status.Error(codes.InvalidArgument, "the ciphertext has annotations: those of this service have none")
	}
	id := req.GetKeyId()
	k, ok := s.keys().find(id)
	if !ok {
		// Perhaps another process of this cluster has rotated already.
		ring, err := s.reload(false)
		if k, ok = ring.find(id); !ok {
			quoted := fmt.Sprintf("%.*q", maxID, id)
			if err != nil {
				return nil, status.Errorf(codes.NotFound, "no key %s in memory, and: %v", quoted, err)
			}
			return nil, status.Errorf(codes.NotFound, "no key %s in the key file %s: restore the file that had it", quoted, s.path)
		}
	}
	plaintext, err := k.open(req.GetCiphertext())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "the ciphertext was not made with key %s, or was changed", id)
	}
	return &kmsapi.DecryptResponse{Plaintext: plaintext}, nil
}

func (k key) seal(plaintext []byte) []byte {
	out := make([]byte, 1+nonceSize, overhead+len(plaintext))
	out[0] = ciphertextFormat
	rand.Read(out[1:]) // it ends the program rather than return an error
	return k.aead.Seal(out, out[1:], plaintext, []byte(k.id))
}

// open takes a ciphertext of at least overhead bytes.
func (k key) open(ciphertext []byte) ([]byte, error) {
	return k.aead.Open(nil, ciphertext[1:1+nonceSize], ciphertext[1+nonceSize:], []byte(k.id))
}

// serve answers on a socket until ctx ends, and closes the socket.
func serve(ctx context.Context, socket net.Listener, s *server) error {
	g := grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(64),
		grpc.ConnectionTimeout(10*time.Second),
	)
	kmsapi.RegisterKeyManagementServiceServer(g, s)
	// No call takes long: there is nothing to wait for, and a client that keeps its connection open must not hold the end up.
	stop := context.AfterFunc(ctx, g.Stop)
	defer stop()
	if err := g.Serve(socket); err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve on %s: %w", socket.Addr(), err)
	}
	return nil
}
