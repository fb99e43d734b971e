package guestimage

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// packages is where Debian packages come from. Its implementations are apt and, in tests, one in memory.
type packages interface {
	// depends lists the packages that the named one depends on, directly, in the order of its control file. Of
	// alternatives it lists the first.
	depends(ctx context.Context, name string) ([]string, error)
	// fetch makes the newest version of a package available.
	fetch(ctx context.Context, name string) (Package, error)
	// open gives the tar stream of a fetched package's files.
	open(ctx context.Context, pkg Package) (io.ReadCloser, error)
}

// apt takes packages from the repositories that this host is configured for. They are verified by apt, kept in a
// directory, and never installed.
type apt struct {
	cache    string
	progress io.Writer
	files    map[string]string // by SHA-256
	// work is a directory in cache for what apt itself writes, so that what is in cache is always whole.
	work string
}

func newApt(cache string, progress io.Writer) (*apt, error) {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, fmt.Errorf("make the package cache: %w", err)
	}
	work, err := os.MkdirTemp(cache, "apt-*")
	if err != nil {
		return nil, fmt.Errorf("make room in the package cache: %w", err)
	}
	return &apt{cache: cache, progress: progress, files: make(map[string]string), work: work}, nil
}

// close removes what apt wrote besides packages.
func (a *apt) close() { os.RemoveAll(a.work) }

// run runs one of apt's programs in its work directory. On hosts that keep no index of the packages (containers, mostly) apt
// would make it anew for each call, in a second or more, so the index is kept while this image is made.
func (a *apt) run(ctx context.Context, program string, args ...string) ([]byte, error) {
	options := []string{
		"-o", "Dir::Cache::pkgcache=" + filepath.Join(a.work, "pkgcache.bin"),
		"-o", "Dir::Cache::srcpkgcache=" + filepath.Join(a.work, "srcpkgcache.bin"),
		"-o", "APT::Sandbox::User=root", // as root, apt would drop to a user who can't write here
	}
	return run(ctx, a.work, program, append(options, args...)...)
}

// packageName is Debian's rule for names (policy 5.6.7), which keeps options off apt's command line.
var packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)

func (a *apt) depends(ctx context.Context, name string) ([]string, error) {
	if !packageName.MatchString(name) {
		return nil, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%q is no name of a Debian package", name))
	}
	out, err := a.run(ctx, "apt-cache", "depends", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks",
		"--no-replaces", "--no-enhances", "--", name)
	if err != nil {
		return nil, fmt.Errorf("look up what %s depends on: %w", name, err)
	}
	return parseDepends(out), nil
}

// parseDepends reads the output of "apt-cache depends": lines "  Depends: libc6", with a "|" before the word on all but the
// last of alternatives, and deeper lines naming providers. Virtual packages are in angle brackets; nothing can be fetched
// by such a name.
func parseDepends(out []byte) []string {
	var names []string
	alternative := false
	for line := range strings.Lines(string(out)) {
		line = strings.TrimRight(line, "\n")
		word, name, ok := strings.Cut(strings.TrimSpace(line), ": ")
		first := !alternative
		if !ok {
			continue
		}
		alternative = strings.HasPrefix(word, "|")
		if kind := strings.TrimPrefix(word, "|"); kind != "Depends" && kind != "PreDepends" {
			continue
		}
		if first && packageName.MatchString(name) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

func (a *apt) fetch(ctx context.Context, name string) (Package, error) {
	if !packageName.MatchString(name) {
		return Package{}, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("%q is no name of a Debian package", name))
	}
	out, err := a.run(ctx, "apt-get", "download", "--print-uris", "--", name)
	if err != nil {
		return Package{}, fmt.Errorf(`look up the package %s (is the list of packages there? "apt-get update" fetches it): %w`, name, err)
	}
	pkg, file, err := parseURI(name, out)
	if err != nil {
		return Package{}, err
	}
	target := filepath.Join(a.cache, file)
	a.files[pkg.SHA256] = target
	if sum, err := sumFile(target); err == nil && sum == pkg.SHA256 {
		return pkg, nil
	}
	fmt.Fprintf(a.progress, "fetch %s %s\n", pkg.Name, pkg.Version)
	if _, err := a.run(ctx, "apt-get", "download", "-qq", "--", name); err != nil {
		return Package{}, fmt.Errorf("download the package %s: %w", name, err)
	}
	sum, err := sumFile(filepath.Join(a.work, file))
	if err != nil {
		return Package{}, fmt.Errorf("download the package %s: %w", name, err)
	}
	if sum != pkg.SHA256 {
		return Package{}, fmt.Errorf("download the package %s: its SHA-256 is %s instead of %s", name, sum, pkg.SHA256)
	}
	return pkg, os.Rename(filepath.Join(a.work, file), target)
}

// uriLine is a line of "apt-get download --print-uris": 'URI' file size SHA256:sum.
var uriLine = regexp.MustCompile(`(?m)^'[^']+' ([^ /]+)_([^ /_]+)_([^ /_]+\.deb) \d+ SHA256:([0-9a-f]{64})$`)

func parseURI(name string, out []byte) (pkg Package, file string, err error) {
	m := uriLine.FindStringSubmatch(strings.TrimSpace(string(out)))
	if m == nil || m[1] != name {
		return Package{}, "", fmt.Errorf("look up the package %s: apt-get answered %q", name, bytes.TrimSpace(out))
	}
	version, err := url.PathUnescape(m[2]) // a colon is written as %3a
	if err != nil {
		return Package{}, "", fmt.Errorf("look up the package %s: version %q: %w", name, m[2], err)
	}
	return Package{Name: name, Version: version, SHA256: m[4]}, m[1] + "_" + m[2] + "_" + m[3], nil
}

func (a *apt) open(ctx context.Context, pkg Package) (io.ReadCloser, error) {
	file, ok := a.files[pkg.SHA256]
	if !ok {
		return nil, fmt.Errorf("package %s was not fetched", pkg.Name)
	}
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", file)
	stderr := &bytes.Buffer{}
	cmd.Stderr = stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("unpack %s: %w", file, err)
	}
	return &unpacking{ReadCloser: stdout, cmd: cmd, stderr: stderr, file: file}, nil
}

// unpacking is the output of a running dpkg-deb.
type unpacking struct {
	io.ReadCloser
	cmd    *exec.Cmd
	stderr *bytes.Buffer
	file   string
}

// Close waits for dpkg-deb, whose failure would otherwise look like a short archive.
func (u *unpacking) Close() error {
	_, readErr := io.Copy(io.Discard, u.ReadCloser) // an archive may be padded; without a reader dpkg-deb would die of SIGPIPE
	if err := errors.Join(readErr, u.cmd.Wait()); err != nil {
		return fmt.Errorf("unpack %s: %w: %s", u.file, err, bytes.TrimSpace(u.stderr.Bytes()))
	}
	return nil
}

// run runs a program for its output. Its error holds the last line that the program wrote to stderr.
func run(ctx context.Context, dir, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	if errors.Is(err, exec.ErrNotFound) {
		return nil, errdefs.ErrFailedPrecondition.WithMessage(fmt.Sprintf("%s is not on the PATH: a guest image is made on Debian or a distribution derived from it", program))
	}
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	return nil, fmt.Errorf("%s: %w: %s", program, err, lines[len(lines)-1])
}

func sumFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
