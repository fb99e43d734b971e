package kms

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The key file. Its mode is 0600: who reads it can read every Secret of the cluster.
//
//	{
//	  "version": 1,
//	  "keys": [                                     newest first: the first one encrypts, all decrypt
//	    {
//	      "created": "2026-01-31T12:00:00Z",
//	      "secret": "c2VjcmV0IG9mIDMyIGJ5dGVzICAgICAgICAgICAgICA="     32 random bytes, in base64
//	    }
//	  ]
//	}
//
// Unknown fields are refused, so that an older program doesn't drop what a newer one wrote. Beside the file lies FILE.lock, empty:
// who changes the file holds a lock on it.
//
// Version history: 1, first version.
type keyFile struct {
	Version int       `json:"version"`
	Keys    []fileKey `json:"keys"`
}

type fileKey struct {
	Created time.Time `json:"created"`
	Secret  []byte    `json:"secret"`
}

const (
	keyFileVersion = 1
	keySize        = 32      // bytes: AES-256
	maxKeys        = 1000    // of a file
	maxFileSize    = 1 << 20 // bytes: more than maxKeys need
)

// key is one key, ready to use.
type key struct {
	id   string // see keyID
	aead cipher.AEAD
}

// keyring is the content of a key file. It doesn't change.
type keyring struct {
	keys  []key
	stamp stamp // of the file that it was read from
}

// newest returns the key that encrypts.
func (r *keyring) newest() key { return r.keys[0] }

// find returns the key with an id.
func (r *keyring) find(id string) (key, bool) {
	for _, k := range r.keys {
		if k.id == id {
			return k, true
		}
	}
	return key{}, false
}

// stamp tells two versions of a file apart. A file that is replaced has another inode, one that is edited another time or size.
type stamp struct {
	inode, size, seconds, nanos int64
}

// stampOf returns the stamp of a file.
func stampOf(path string) (stamp, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return stamp{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return stamp{int64(st.Ino), st.Size, st.Ctim.Sec, st.Ctim.Nsec}, nil
}

// keyID names a key without telling anything about it: the secrets are random, so a hash can't be guessed back.
func keyID(secret []byte) string {
	sum := sha256.Sum256(append([]byte("bulkhead kms key id\x00"), secret...))
	return "v1:" + hex.EncodeToString(sum[:16])
}

// load reads a key file.
func load(path string) (*keyring, error) {
	// The stamp is taken before the content: a change in between is seen at the next look.
	stamp, err := stampOf(path)
	if err != nil {
		return nil, fmt.Errorf("read the key file: %w", err)
	}
	file, err := read(path)
	if err != nil {
		return nil, err
	}
	ring := &keyring{stamp: stamp}
	for i, k := range file.Keys {
		id := keyID(k.Secret)
		if _, double := ring.find(id); double {
			return nil, fmt.Errorf("read the key file %s: keys[%d] is there twice", path, i)
		}
		block, err := aes.NewCipher(k.Secret)
		if err != nil {
			return nil, fmt.Errorf("read the key file %s: keys[%d]: %w", path, i, err)
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			return nil, fmt.Errorf("read the key file %s: keys[%d]: %w", path, i, err)
		}
		ring.keys = append(ring.keys, key{id, aead})
	}
	return ring, nil
}

// read reads a key file and checks it.
func read(path string) (keyFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return keyFile{}, fmt.Errorf("read the key file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return keyFile{}, fmt.Errorf("read the key file: %w", err)
	}
	if !info.Mode().IsRegular() {
		return keyFile{}, fmt.Errorf("read the key file %s: it is not a regular file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return keyFile{}, fmt.Errorf("read the key file %s: others can read or change it (mode %04o): run chmod 0600 %s", path, mode, path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return keyFile{}, fmt.Errorf("read the key file %s: %w", path, err)
	}
	file, err := parse(data)
	if err != nil {
		return keyFile{}, fmt.Errorf("read the key file %s: %w", path, err)
	}
	return file, nil
}

// parse reads the content of a key file. No error tells anything of a key.
func parse(data []byte) (keyFile, error) {
	if len(data) > maxFileSize {
		return keyFile{}, fmt.Errorf("it is larger than %d bytes", maxFileSize)
	}
	var file keyFile
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&file); err != nil {
		// What json says of a value that it can't use may quote the value.
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			return keyFile{}, fmt.Errorf("it isn't JSON from byte %d on", syntax.Offset)
		}
		return keyFile{}, errors.New(`it isn't {"version": 1, "keys": [{"created": TIME, "secret": BASE64}, ...]}`)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return keyFile{}, errors.New("something follows its JSON object")
	}
	if file.Version != keyFileVersion {
		return keyFile{}, fmt.Errorf("its version is %d, this program knows %d", file.Version, keyFileVersion)
	}
	if len(file.Keys) == 0 || len(file.Keys) > maxKeys {
		return keyFile{}, fmt.Errorf("it has %d keys, it must have 1 to %d", len(file.Keys), maxKeys)
	}
	for i, k := range file.Keys {
		if len(k.Secret) != keySize {
			return keyFile{}, fmt.Errorf("keys[%d].secret has %d bytes, it must have %d", i, len(k.Secret), keySize)
		}
	}
	return file, nil
}

// ensure makes a key file with one key if there is none, and tells whether it did.
func ensure(path string, now time.Time) (made bool, err error) {
	err = locked(path, func() error {
		if _, err := os.Lstat(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		made = true
		return write(path, keyFile{Version: keyFileVersion, Keys: []fileKey{newKey(now)}})
	})
	return made, err
}

// Rotate puts a new key in front of those of a key file and returns its id. A running service takes it by itself. The keys
// before it stay: objects in etcd may still need them.
func Rotate(path string, now time.Time) (id string, err error) {
	err = locked(path, func() error {
		file, err := read(path)
		if err != nil {
			return err
		}
		if len(file.Keys) >= maxKeys {
			return fmt.Errorf("rotate the key file %s: it has %d keys already: write all Secrets anew and remove the oldest keys first", path, maxKeys)
		}
		k := newKey(now)
		id = keyID(k.Secret)
		file.Keys = append([]fileKey{k}, file.Keys...)
		return write(path, file)
	})
	return id, err
}

func newKey(now time.Time) fileKey {
	secret := make([]byte, keySize)
	rand.Read(secret) // it ends the program rather than return an error
	return fileKey{Created: now.UTC().Truncate(time.Second), Secret: secret}
}

// locked calls f while no other process changes the key file: a key that was in use and got lost in a race would take
// everything with it that it encrypted.
func locked(path string, f func() error) error {
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("lock the key file: %w", err)
	}
	defer lock.Close()
	for {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("lock the key file: flock %s: %w", lock.Name(), err)
		}
		return f()
	}
}

// write replaces a key file: after a crash there is the old file or the new one, whole.
func write(path string, file keyFile) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write the key file %s: %w", path, err)
		}
	}()
	data, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // its mode is 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(data, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
