package supervise

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// DefaultStopTimeout is how long a process may take to end after SIGTERM, unless it says otherwise.
const DefaultStopTimeout = 10 * time.Second

// Spec is what a supervisor runs. It is kept in DIR/spec.json.
type Spec struct {
	// Name is for people who read logs.
	Name string `json:"name"`
	// NetNS is the path of the network namespace that the supervisor and its children run in; empty: the caller's.
	NetNS string `json:"netns,omitempty"`
	// Cgroup is the path, below the root of every hierarchy, of the cgroup of the supervisor and its children; empty: the
	// caller's. It is made if it isn't there. Whoever named it removes it.
	Cgroup string `json:"cgroup,omitempty"`
	// Env is the environment of all processes, as KEY=value. Of the caller's own environment they get PATH and HOME, unless
	// they are here.
	Env []string `json:"env,omitempty"`
	// Processes are kept running. Their names are unique.
	Processes []Process `json:"processes"`
	// Daily is the command line of a program that is run to its end once a day; empty: none. What it writes goes to the
	// supervisor's log. How it ends changes nothing.
	Daily []string `json:"daily,omitempty"`
}

// Process is one process that a supervisor keeps running.
type Process struct {
	Name string `json:"name"`
	// Args is the command line. Its first is the absolute path of the program. When another file is there than the one that was
	// run, as after an upgrade, a new spec starts the process anew, even if it is the same.
	Args []string `json:"args"`
	// Env is added to the Spec's.
	Env []string `json:"env,omitempty"`
	// Log is the absolute path of the file that its output is appended to. When it gets long, it is moved to Log.1.
	Log string `json:"log"`
	// Ready says how to find out whether it does its work; nil: it does when it runs.
	Ready *Probe `json:"ready,omitempty"`
	// After names the processes that must be ready before it is started for the first time, and that are stopped after it.
	After []string `json:"after,omitempty"`
	// StopTimeout is how long it may take to end after SIGTERM; 0: DefaultStopTimeout. It is kept in nanoseconds.
	StopTimeout time.Duration `json:"stopTimeout,omitempty"`
}

// Probe asks a process whether it is ready.
type Probe struct {
	// URL is https://…, http://… (ready if it answers with a status 200 to 299), tcp://address:port or unix:///path (ready if
	// it can be connected to).
	URL string `json:"url"`
	// CA is a PEM file with the certificates that an https server's is checked against; empty: the system's.
	CA string `json:"ca,omitempty"`
}

// stopTimeout is StopTimeout or its default.
func (p Process) stopTimeout() time.Duration {
	if p.StopTimeout > 0 {
		return p.StopTimeout
	}
	return DefaultStopTimeout
}

// validate says what is wrong with the spec, naming the process.
func (s Spec) validate() error {
	if err := validateEnv(s.Env); err != nil {
		return err
	}
	names := map[string]bool{}
	for i, p := range s.Processes {
		if p.Name == "" {
			return fmt.Errorf("process %d has no name: %w", i, errdefs.ErrInvalidArgument)
		}
		if names[p.Name] {
			return fmt.Errorf("two processes have the name %s: %w", p.Name, errdefs.ErrInvalidArgument)
		}
		names[p.Name] = true
	}
	for _, p := range s.Processes {
		if err := p.validate(names); err != nil {
			return fmt.Errorf("process %s: %w", p.Name, err)
		}
	}
	if len(s.Daily) > 0 && !filepath.IsAbs(s.Daily[0]) {
		return fmt.Errorf("the daily command %q doesn't begin with the absolute path of a program: %w", s.Daily, errdefs.ErrInvalidArgument)
	}
	_, err := levels(s.Processes)
	return err
}

func (p Process) validate(names map[string]bool) error {
	if len(p.Args) == 0 || !filepath.IsAbs(p.Args[0]) {
		return fmt.Errorf("its arguments %q don't begin with the absolute path of a program: %w", p.Args, errdefs.ErrInvalidArgument)
	}
	if !filepath.IsAbs(p.Log) {
		return fmt.Errorf("its log %q is not an absolute path: %w", p.Log, errdefs.ErrInvalidArgument)
	}
	if p.StopTimeout < 0 {
		return fmt.Errorf("its stop timeout %v is negative: %w", p.StopTimeout, errdefs.ErrInvalidArgument)
	}
	for _, other := range p.After {
		if !names[other] {
			return fmt.Errorf("it comes after %s, which isn't there: %w", other, errdefs.ErrInvalidArgument)
		}
	}
	if p.Ready != nil {
		if err := p.Ready.validate(); err != nil {
			return err
		}
	}
	return validateEnv(p.Env)
}

func validateEnv(env []string) error {
	for _, e := range env {
		key, _, ok := strings.Cut(e, "=")
		if !ok || key == "" || slices.Contains([]string{ownerMark, processMark, hashMark, supervisorMark}, key) {
			return fmt.Errorf("%q can't be in the environment: %w", e, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func (p Probe) validate() error {
	u, err := url.Parse(p.URL)
	if err != nil {
		return fmt.Errorf("probe: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	switch u.Scheme {
	case "http", "https", "tcp":
		if u.Host == "" {
			return fmt.Errorf("probe %s has no host: %w", p.URL, errdefs.ErrInvalidArgument)
		}
	case "unix":
		if u.Host != "" || !filepath.IsAbs(u.Path) {
			return fmt.Errorf("probe %s has no absolute path: %w", p.URL, errdefs.ErrInvalidArgument)
		}
	default:
		return fmt.Errorf("probe %s is not of https, http, tcp or unix: %w", p.URL, errdefs.ErrInvalidArgument)
	}
	return nil
}

// checkPrograms finds programs that can't be run before anything is started.
func (s Spec) checkPrograms() error {
	for _, p := range s.Processes {
		if _, err := exec.LookPath(p.Args[0]); err != nil {
			return fmt.Errorf("process %s can't be run: %w: %w; its log ends with:\n%s", p.Name, err, errdefs.ErrFailedPrecondition, tail(p.Log))
		}
	}
	return nil
}

// levels sorts the names of processes: those of each level come only after ones of lower levels.
func levels(processes []Process) ([][]string, error) {
	var sorted [][]string
	level := map[string]bool{}
	for left := processes; len(left) > 0; {
		var now []string
		var later []Process
		for _, p := range left {
			if slices.ContainsFunc(p.After, func(name string) bool { return !level[name] }) {
				later = append(later, p)
			} else {
				now = append(now, p.Name)
			}
		}
		if len(now) == 0 {
			return nil, fmt.Errorf("process %s comes after itself, directly or by others: %w", left[0].Name, errdefs.ErrInvalidArgument)
		}
		for _, name := range now {
			level[name] = true
		}
		sorted, left = append(sorted, now), later
	}
	return sorted, nil
}

// find returns the process of a name.
func (s Spec) find(name string) (Process, bool) {
	i := slices.IndexFunc(s.Processes, func(p Process) bool { return p.Name == name })
	if i < 0 {
		return Process{}, false
	}
	return s.Processes[i], true
}

// patience is how long a process may take to end.
func (s Spec) patience(h handle) time.Duration {
	p, _ := s.find(h.name)
	return p.stopTimeout()
}

// env is what the processes' environment has beside the marks. What is inherited doesn't make another process of it.
func (s Spec) env(p Process) []string { return slices.Concat(s.Env, p.Env) }

// hash is what BULKHEAD_PROCESS_HASH says of a process: what it has to be started anew for when it changes.
func (s Spec) hash(p Process) string {
	all := slices.Concat([]string{p.Log, s.NetNS, s.Cgroup, program(p.Args[0])}, p.Args, []string{""}, s.env(p))
	return hashOf(p.Args) + "-" + hashOf(all)
}

// program tells files apart that were at a path one after the other. A running process keeps its file's number from being
// used again. It is not asked what the process runs now: that may be what a script in Args has replaced itself by.
func program(path string) string {
	var s unix.Stat_t
	if err := unix.Stat(path, &s); err != nil {
		return ""
	}
	return fmt.Sprintf("%d:%d", s.Dev, s.Ino)
}

func hashOf(list []string) string {
	sum := sha256.Sum256([]byte(strings.Join(list, "\x00")))
	return hex.EncodeToString(sum[:8])
}

const specFile = "spec.json"

// stored is the content of spec.json.
type stored struct {
	Spec
	// Written makes each one another: who asks for the same again wants to know when that was looked at.
	Written time.Time `json:"written,omitzero"`
}

// readSpec returns the spec with the hash of its file.
func readSpec(dir string) (Spec, string, error) {
	data, err := os.ReadFile(filepath.Join(dir, specFile))
	if err != nil {
		return Spec{}, "", fmt.Errorf("read spec: %w", err)
	}
	sum := sha256.Sum256(data)
	hash := hex.EncodeToString(sum[:])
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	var s stored
	if err := decoder.Decode(&s); err != nil {
		return Spec{}, hash, fmt.Errorf("read spec: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Spec{}, hash, fmt.Errorf("read spec: there is something after it: %w", errdefs.ErrInvalidArgument)
	}
	return s.Spec, hash, s.validate()
}

// writeSpec returns the hash of the file it wrote.
func writeSpec(dir string, s Spec) (string, error) {
	data, err := json.MarshalIndent(stored{s, time.Now()}, "", "  ")
	if err != nil {
		return "", fmt.Errorf("write spec: %w", err)
	}
	if err := replace(filepath.Join(dir, specFile), data); err != nil {
		return "", fmt.Errorf("write spec: %w", err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), nil
}

// replace writes a file so that readers see it whole, old or new. Environments may hold secrets.
func replace(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
