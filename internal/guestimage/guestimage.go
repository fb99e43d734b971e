// Package guestimage makes and opens what a pod's VM boots: a kernel and an initramfs.
//
// [Build] takes a distribution's kernel and OCI runtime out of their Debian packages, without installing them, adds the
// agent, and writes one directory:
//
//	packages ── tar ── tree ─┬─ vmlinuz ──────────────────────────────► kernel
//	(apt-get download)       ├─ modules: wanted + what they depend on ─┐
//	                         └─ crun + the libraries that it needs ────┼─► initramfs (newc, zstd)
//	bulkhead-guest ────────────────────────────────────────────────────┘
//	                                                                       manifest.json
//
// The same packages and the same agent give the same bytes, whoever builds them and when. The directory is replaced in one
// step: who opens it sees the old image or the new one.
//
// [Open] is for the start of every pod, so it is cheap: it compares sizes and time stamps with the manifest and computes
// checksums only when those differ. [Image.Verify] always computes them. Both say what is wrong, where, and which command
// repairs it.
//
// The initramfs, as the agent finds it:
//
//	/init                     the agent
//	/usr/bin/crun             the OCI runtime
//	/lib64/ld-linux-*.so.*    its loader, at the path the runtime names
//	/lib/<triplet>/*.so.*     its libraries
//	/lib/modules/*.ko         kernel modules, uncompressed
//	/etc/modules.list         their absolute paths, one a line, in the order to load them
//	/dev /proc /sys /run /tmp /etc /root …   empty
package guestimage

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"

	"bulkhead.dev/bulkhead/internal/config"
)

// Names of the files in an image's directory.
const (
	KernelFile    = "kernel"
	InitramfsFile = "initramfs"
	ManifestFile  = "manifest.json"
)

// Image is a guest image that was found whole.
type Image struct {
	// Dir is the image's directory; empty for a kernel and initramfs of the user's own.
	Dir string
	// Kernel and Initramfs are the absolute paths of the two files.
	Kernel, Initramfs string
	// Manifest says what is in them; empty for the user's own.
	Manifest Manifest
}

// Find opens the image that a configuration names: the built one, or the user's own kernel or initramfs. Of what is the
// user's own, it is only checked that it is there.
func Find(cfg config.Config) (Image, error) {
	dir := cfg.GuestDir()
	ownKernel := cfg.Guest.Kernel != filepath.Join(dir, KernelFile)
	ownInitramfs := cfg.Guest.Initramfs != filepath.Join(dir, InitramfsFile)
	if !ownKernel && !ownInitramfs {
		return Open(dir)
	}
	img := Image{Kernel: cfg.Guest.Kernel, Initramfs: cfg.Guest.Initramfs}
	if !ownKernel || !ownInitramfs {
		built, err := Open(dir)
		if err != nil {
			return Image{}, err
		}
		img.Manifest = built.Manifest
	}
	for _, own := range []struct{ key, path string }{{"guest.kernel", img.Kernel}, {"guest.initramfs", img.Initramfs}} {
		info, err := os.Stat(own.path)
		if err != nil {
			return Image{}, errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("%s of the configuration: %v", own.key, err))
		}
		if !info.Mode().IsRegular() || info.Size() == 0 {
			return Image{}, errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("%s of the configuration: %s is empty or no regular file", own.key, own.path))
		}
	}
	return img, nil
}

// Open opens the image in dir. Its errors are of the class ErrFailedPrecondition and name the file and the repair.
func Open(dir string) (Image, error) {
	return open(dir, false)
}

// Verify computes the checksums of the image's files, whatever their time stamps say.
func (img Image) Verify() error {
	if img.Dir == "" {
		return nil
	}
	_, err := open(img.Dir, true)
	return err
}

func open(dir string, full bool) (Image, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Image{}, err
	}
	manifest, err := readManifest(filepath.Join(dir, ManifestFile))
	if err != nil {
		return Image{}, broken(dir, err)
	}
	img := Image{Dir: dir, Kernel: filepath.Join(dir, KernelFile), Initramfs: filepath.Join(dir, InitramfsFile), Manifest: manifest}
	for _, f := range []struct {
		path string
		want File
	}{{img.Kernel, manifest.Kernel}, {img.Initramfs, manifest.Initramfs}} {
		if err := check(f.path, f.want, full); err != nil {
			return Image{}, broken(dir, err)
		}
	}
	return img, nil
}

// broken adds the repair to what is wrong with the image in dir.
func broken(dir string, err error) error {
	return errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf(`guest image: %v; make it with "bulkhead guest build --dir %s"`, err, dir))
}

func readManifest(path string) (Manifest, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Manifest{}, fmt.Errorf("there is none in %s", filepath.Dir(path))
	}
	if err != nil {
		return Manifest{}, err
	}
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return Manifest{}, fmt.Errorf("%s is corrupt: %w", path, err)
	}
	if m.Format != manifestFormat {
		return Manifest{}, fmt.Errorf("%s has format %d, and this program reads %d", path, m.Format, manifestFormat)
	}
	return m, nil
}

// check compares a file with what the manifest says. Without full, an expected size and time stamp are enough.
func check(path string, want File, full bool) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is missing", path)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file", path)
	}
	if info.Size() != want.Size {
		return fmt.Errorf("%s is corrupt: it has %d bytes instead of %d", path, info.Size(), want.Size)
	}
	if !full && info.ModTime().Equal(want.stamp()) {
		return nil
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want.SHA256 {
		return fmt.Errorf("%s is corrupt: its SHA-256 is %s instead of %s", path, got, want.SHA256)
	}
	return nil
}
