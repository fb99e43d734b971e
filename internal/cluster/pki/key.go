package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// Types of PEM blocks.
const (
	certificateBlock = "CERTIFICATE"
	ecKeyBlock       = "EC PRIVATE KEY"
	pkcs8Block       = "PRIVATE KEY"
	publicBlock      = "PUBLIC KEY"
)

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: ecKeyBlock, Bytes: der}), nil
}

func parseKey(data []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("it has no PEM block")
	}
	switch block.Type {
	case ecKeyBlock:
		return x509.ParseECPrivateKey(block.Bytes)
	case pkcs8Block:
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		if ec, ok := key.(*ecdsa.PrivateKey); ok {
			return ec, nil
		}
		return nil, errors.New("it is no ECDSA key")
	}
	return nil, fmt.Errorf("it has a PEM block of the type %q", block.Type)
}

// parseCertificate reads a file of exactly one certificate.
func parseCertificate(data []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(data)
	switch {
	case block == nil:
		return nil, errors.New("it has no PEM block")
	case block.Type != certificateBlock:
		return nil, fmt.Errorf("it has a PEM block of the type %q", block.Type)
	}
	if more, _ := pem.Decode(rest); more != nil {
		return nil, errors.New("it has more than one PEM block")
	}
	return x509.ParseCertificate(block.Bytes)
}

// serviceAccount makes the key of service accounts' tokens. The public key follows from the private one.
func (e *ensurer) serviceAccount() error {
	private, public := ServiceAccount(e.dir)
	data, err := read(private)
	if err != nil {
		return err
	}
	var key *ecdsa.PrivateKey
	if data == nil {
		if key, data, err = newKey(); err != nil {
			return err
		}
		if err := e.keep(private, data, 0o600); err != nil {
			return err
		}
	} else if key, err = parseKey(data); err != nil {
		return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf(
			"%s is damaged: %v: restore it from a backup, or remove it to have a new one, with which tokens that pods hold become invalid until the pods are restarted",
			private, err))
	}
	if err := e.tighten(private); err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return fmt.Errorf("encode %s: %w", public, err)
	}
	return e.settle(public, pem.EncodeToMemory(&pem.Block{Type: publicBlock, Bytes: der}))
}
