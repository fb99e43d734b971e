// Package feature keeps which preview features are registered on this host.
//
// A preview feature is something that works but that nobody should get unasked. Whoever wants it registers it once per state
// directory; what depends on it asks [Store.Get].
//
//	                 Register                 check succeeds
//	NotRegistered ────────────► Registering ────────────────► Registered
//	      ▲                        │   ▲ │                         │
//	      │  check fails, or ends  │   └─┘ Register again, after   │ Unregister
//	      └────────────────────────┴─────  an interrupted one  ────┘
//
// The stored form is STATEDIR/features.json, with its version history:
//
//	{
//	  "version": 1,
//	  "features": {"EmulatedVMIsolation": {"state": "Registered", "since": "2026-01-31T12:00:00Z"}}
//	}
//
//	1  first version
//
// A feature that isn't in it is NotRegistered. Changes are made under an exclusive flock of STATEDIR/features.lock; a check runs
// without it, so that one that hangs blocks nobody. Reading needs no lock: the file is replaced as a whole.
package feature

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"bulkhead.dev/bulkhead/internal/cluster/spec/durable"
)

// State is how far the registration of a feature is.
type State string

const (
	// NotRegistered is the state of a feature that nobody asked for.
	NotRegistered State = "NotRegistered"
	// Registering: a Register is checking whether the feature can work here, or one was killed while it did.
	Registering State = "Registering"
	// Registered: the feature may be used.
	Registered State = "Registered"
)

// EmulatedVMIsolation lets vm-isolation pools be made on hosts without working hardware virtualization.
const EmulatedVMIsolation = "EmulatedVMIsolation"

// Feature is a preview feature that this program knows.
type Feature struct {
	// Name is its name in its own spelling.
	Name string `json:"name"`
	// About says what it does, in a line.
	About string `json:"about"`
	// State is how far its registration is.
	State State `json:"state"`
}

// known returns all features, NotRegistered, by name.
func known() []Feature {
	return []Feature{{
		Name: EmulatedVMIsolation, State: NotRegistered,
		About: "vm-isolation pools on hosts without hardware virtualization, by emulation: slow, and no security boundary",
	}}
}

const (
	version = 1
	// maxFile bounds what is read.
	maxFile = 1 << 20
)

// stored is the form of features.json.
type stored struct {
	Version  int               `json:"version"`
	Features map[string]record `json:"features"`
}

type record struct {
	State State     `json:"state"`
	Since time.Time `json:"since"`
}

// Store is the features of a state directory. It may be used by several goroutines and processes.
type Store struct {
	dir string
}

// Open returns the features of a state directory, which need not exist before the first Register.
func Open(stateDir string) *Store { return &Store{dir: stateDir} }

// List returns every feature that this program knows, by name.
func (s *Store) List() ([]Feature, error) {
	file, err := s.read()
	if err != nil {
		return nil, err
	}
	features := known()
	for i := range features {
		if r, ok := file.Features[features[i].Name]; ok {
			features[i].State = r.State
		}
	}
	return features, nil
}

// Get returns a feature by its name, in any case. An unknown name is ErrNotFound, with the known ones in the text.
func (s *Store) Get(name string) (Feature, error) {
	features, err := s.List()
	if err != nil {
		return Feature{}, err
	}
	for _, f := range features {
		if strings.EqualFold(f.Name, name) {
			return f, nil
		}
	}
	return Feature{}, unknown(name)
}

// Register makes a feature Registering, calls check, which says whether the feature can work on this host, and makes it
// Registered. When check fails or ctx ends, the feature is NotRegistered again and the error says why. One that is Registered
// stays so without a check. A feature that was unregistered during the check stays NotRegistered, and the error is ErrAborted.
func (s *Store) Register(ctx context.Context, name string, check func(context.Context) error) error {
	f, err := s.Get(name)
	if err != nil {
		return err
	}
	if f.State == Registered {
		return nil
	}
	if err := s.move(ctx, f.Name, Registering, nil); err != nil {
		return fmt.Errorf("register feature %s: %w", f.Name, err)
	}
	err = check(ctx)
	if err == nil {
		err = ctx.Err()
	}
	// What follows must happen even when ctx has ended.
	ctx = context.WithoutCancel(ctx)
	still := func(now State) error {
		if now == NotRegistered {
			return errdefs.ErrAborted.WithMessage("it was unregistered meanwhile")
		}
		return nil
	}
	if err != nil {
		onlyOwn := func(now State) error {
			if now != Registering {
				return errSkip // another Register has succeeded, or somebody has unregistered it
			}
			return nil
		}
		return fmt.Errorf("register feature %s: %w", f.Name, errors.Join(err, s.move(ctx, f.Name, NotRegistered, onlyOwn)))
	}
	if err := s.move(ctx, f.Name, Registered, still); err != nil {
		return fmt.Errorf("register feature %s: %w", f.Name, err)
	}
	return nil
}

// Unregister makes a feature NotRegistered; what was made with it stays.
func (s *Store) Unregister(name string) error {
	f, err := s.Get(name)
	if err != nil {
		return err
	}
	if f.State == NotRegistered {
		return nil
	}
	if err := s.move(context.Background(), f.Name, NotRegistered, nil); err != nil {
		return fmt.Errorf("unregister feature %s: %w", f.Name, err)
	}
	return nil
}

// errSkip makes move change nothing and succeed.
var errSkip = errors.New("skip")

// move changes a feature's state, under the lock, unless guard, given the present state, returns an error.
func (s *Store) move(ctx context.Context, name string, to State, guard func(now State) error) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	file, err := s.read()
	if err != nil {
		return err
	}
	now := NotRegistered
	if r, ok := file.Features[name]; ok {
		now = r.State
	}
	if guard != nil {
		if err := guard(now); errors.Is(err, errSkip) {
			return nil
		} else if err != nil {
			return err
		}
	}
	// Another process may have finished a registration since the caller looked.
	if now == to || now == Registered && to == Registering {
		return nil
	}
	if to == NotRegistered {
		delete(file.Features, name)
	} else {
		file.Features[name] = record{State: to, Since: time.Now().UTC().Truncate(time.Second)}
	}
	data, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return fmt.Errorf("encode features: %w", err)
	}
	return durable.Write(s.path(), append(data, '\n'), 0o644)
}

func (s *Store) path() string { return filepath.Join(s.dir, "features.json") }

// lockPause is between two attempts at the lock, which is held for the time of a write: a wait in flock can't be cancelled.
const lockPause = 20 * time.Millisecond

func (s *Store) lock(ctx context.Context) (unlock func(), err error) {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "features.lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of features: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for %s: %w", f.Name(), ctx.Err())
		case <-time.After(lockPause):
		}
	}
}

func (s *Store) read() (stored, error) {
	f, err := os.Open(s.path())
	if errors.Is(err, fs.ErrNotExist) {
		return stored{Version: version, Features: map[string]record{}}, nil
	}
	if err != nil {
		return stored{}, fmt.Errorf("read features: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return stored{}, fmt.Errorf("read features: %w", err)
	}
	return parse(s.path(), data)
}

func parse(path string, data []byte) (stored, error) {
	damaged := func(why string) (stored, error) {
		return stored{}, errdefs.ErrDataLoss.WithMessage(fmt.Sprintf("read features: %s is damaged: %s: remove it, and register again what you need", path, why))
	}
	if len(data) > maxFile {
		return damaged(fmt.Sprintf("it has more than %d bytes", maxFile))
	}
	var file stored
	if err := json.Unmarshal(data, &file); err != nil {
		return damaged(err.Error())
	}
	if file.Version > version {
		return stored{}, errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf(
			"read features: %s has version %d and this program reads version %d: use the newer bulkhead that wrote it", path, file.Version, version))
	}
	if file.Version < 1 {
		return damaged(fmt.Sprintf("its version is %d", file.Version))
	}
	for name, r := range file.Features {
		if r.State != NotRegistered && r.State != Registering && r.State != Registered {
			return damaged(fmt.Sprintf("feature %q is in the unknown state %q", name, r.State))
		}
	}
	if file.Features == nil {
		file.Features = map[string]record{}
	}
	return file, nil
}

// unknown says which features there are, and which one may have been meant.
func unknown(name string) error {
	var names []string
	meant := ""
	for _, f := range known() {
		names = append(names, f.Name)
		if similar(strings.ToLower(name), strings.ToLower(f.Name)) {
			meant = fmt.Sprintf(": did you mean %s?", f.Name)
		}
	}
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("there is no feature %q%s; the features are %s", name, meant, strings.Join(names, ", ")))
}

// similar says whether one is a part of the other that names it, or a misspelling of it.
func similar(written, name string) bool {
	if len(written) >= 4 && strings.Contains(name, written) {
		return true
	}
	return len(written) < 2*len(name) && distance(written, name) <= len(name)/4
}

// distance is Levenshtein's: how many bytes are inserted, deleted or replaced to get from a to b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
