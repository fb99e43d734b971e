package pki

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// authority is a certificate authority that can sign.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// authority reads an authority, or makes it. The key is written first: what an interrupted call leaves is a key without a
// certificate, which the next one completes.
func (e *ensurer) authority(name, cluster string) (authority, error) {
	files := Pair(e.dir, name)
	keyData, err := read(files.Key)
	if err != nil {
		return authority{}, err
	}
	certData, err := read(files.Cert)
	if err != nil {
		return authority{}, err
	}
	var key *ecdsa.PrivateKey
	switch {
	case keyData != nil:
		if key, err = parseKey(keyData); err != nil {
			return authority{}, unusable(files, fmt.Sprintf("%s is damaged: %v", files.Key, err))
		}
		if err := e.tighten(files.Key); err != nil {
			return authority{}, err
		}
	case certData != nil:
		return authority{}, unusable(files, fmt.Sprintf("%s is missing, and nothing can be signed without it", files.Key))
	default:
		if key, keyData, err = newKey(); err != nil {
			return authority{}, err
		}
		if err := e.keep(files.Key, keyData, 0o600); err != nil {
			return authority{}, err
		}
	}
	if certData == nil {
		return e.newAuthority(files, "bulkhead-"+cluster+"-"+name, key)
	}
	cert, err := checkAuthority(certData, key, e.now)
	if err != nil {
		return authority{}, unusable(files, fmt.Sprintf("%s %v", files.Cert, err))
	}
	return authority{cert, key}, nil
}

func (e *ensurer) newAuthority(files Files, name string, key *ecdsa.PrivateKey) (authority, error) {
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: e.now.Add(-skew), NotAfter: e.now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return authority{}, fmt.Errorf("sign %s: %w", files.Cert, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return authority{}, fmt.Errorf("sign %s: %w", files.Cert, err)
	}
	return authority{cert, key}, e.keep(files.Cert, pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: der}), 0o644)
}

// checkAuthority's errors continue a sentence that begins with the file's name.
func checkAuthority(data []byte, key *ecdsa.PrivateKey, now time.Time) (*x509.Certificate, error) {
	cert, err := parseCertificate(data)
	switch {
	case err != nil:
		return nil, fmt.Errorf("is damaged: %w", err)
	case !cert.IsCA:
		return nil, errors.New("is no certificate authority")
	case !key.PublicKey.Equal(cert.PublicKey):
		return nil, errors.New("is of another key than the one beside it")
	case now.After(cert.NotAfter):
		return nil, fmt.Errorf("expired on %s", cert.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(cert.NotBefore):
		return nil, fmt.Errorf("is not valid before %s and the clock says %s: set the clock right if it is wrong",
			cert.NotBefore.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return nil, fmt.Errorf("is not signed by itself: %w", err)
	}
	return cert, nil
}

// unusable says how to get a new authority: it follows from Ensure that all certificates are made anew for it.
func unusable(files Files, why string) error {
	return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf(
		"%s: restore %s and %s from a backup, or remove both, stop and start the cluster and get its credentials again: a new authority and new certificates are made, and what is in the cluster stays",
		why, files.Cert, files.Key))
}
