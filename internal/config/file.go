package config

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// file is the format as it is written. A key is a field here, a row of docs/reference/config.md, and a line of the example.
type file struct {
	Version  int64       `toml:"version"`
	StateDir string      `toml:"state_dir"`
	RunDir   string      `toml:"run_dir"`
	VMM      fileVMM     `toml:"vmm"`
	Guest    fileGuest   `toml:"guest"`
	Sandbox  fileSandbox `toml:"sandbox"`
	Layers   fileLayers  `toml:"layers"`
	Log      fileLog     `toml:"log"`
}

type fileVMM struct {
	Binary       string `toml:"binary"`
	Acceleration string `toml:"acceleration"`
	UIDBase      int64  `toml:"uid_base"`
	UIDCount     int64  `toml:"uid_count"`
}

type fileGuest struct {
	Kernel      string   `toml:"kernel"`
	Initramfs   string   `toml:"initramfs"`
	BootTimeout string   `toml:"boot_timeout"`
	KernelArgs  []string `toml:"kernel_args"`
}

type fileSandbox struct {
	Profile       string `toml:"profile"`
	DefaultMemory string `toml:"default_memory"`
	DefaultVCPUs  int64  `toml:"default_vcpus"`
	ScratchSize   string `toml:"scratch_size"`
}

type fileLayers struct {
	MaxSize string `toml:"max_size"`
	MaxAge  string `toml:"max_age"`
}

type fileLog struct {
	Level string `toml:"level"`
}

// defaults is what a file's keys are decoded over. Empty paths of the guest are filled in by resolve, from state_dir.
func defaults() file {
	return file{
		Version:  Version,
		StateDir: "/var/lib/bulkhead",
		RunDir:   "/run/bulkhead",
		VMM:      fileVMM{Acceleration: AccelerationAuto, UIDBase: 2000000, UIDCount: 65536},
		Guest:    fileGuest{BootTimeout: "60s", KernelArgs: []string{}},
		Sandbox:  fileSandbox{Profile: ProfileStandard, DefaultMemory: "192Mi", DefaultVCPUs: 1, ScratchSize: "10Gi"},
		Layers:   fileLayers{MaxSize: "20Gi", MaxAge: "720h"},
		Log:      fileLog{Level: "info"},
	}
}

// position is where a key stands in a file, counted from 1.
type position struct{ line, column int }

// Parse reads a configuration; name is used in errors only. A file must say its version, so that a later format can be told
// from a typing error.
func Parse(name string, data []byte) (Config, error) {
	raw := defaults()
	raw.Version = 0
	decoder := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := decoder.Decode(&raw); err != nil {
		return Config{}, decodeError(name, err)
	}
	where := positions(data)
	c, err := raw.resolve(where)
	if bad := (*Error)(nil); errors.As(err, &bad) {
		at := where[bad.Key]
		bad.File, bad.Line, bad.Column = name, at.line, at.column
	}
	return c, err
}

func decodeError(name string, err error) error {
	var missing *toml.StrictMissingError
	if errors.As(err, &missing) && len(missing.Errors) > 0 {
		// One error is reported: the first is the one to look at, and the next run shows the next.
		e := &missing.Errors[0]
		line, column := e.Position()
		key := strings.Join(e.Key(), ".")
		return &Error{File: name, Line: line, Column: column, Key: key, Message: unknownKey(key)}
	}
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		line, column := decode.Position()
		key := strings.Join(decode.Key(), ".")
		return &Error{File: name, Line: line, Column: column, Key: key, Message: strings.TrimPrefix(decode.Error(), "toml: ")}
	}
	return &Error{File: name, Message: err.Error()}
}

const tables = "the tables are vmm, guest, sandbox, layers, log"

// unknownKey names the known keys beside the unknown one: most unknown keys are a known one in the wrong table, or misspelt.
func unknownKey(key string) string {
	table := ""
	if i := strings.LastIndexByte(key, '.'); i >= 0 {
		table = key[:i]
	}
	var siblings []string
	for _, k := range Keys() {
		parent, leaf := "", k
		if i := strings.LastIndexByte(k, '.'); i >= 0 {
			parent, leaf = k[:i], k[i+1:]
		}
		if parent == table {
			siblings = append(siblings, leaf)
		}
	}
	switch {
	case len(siblings) == 0:
		return "unknown table; " + tables
	case table == "":
		return "unknown key; outside of tables there are " + strings.Join(siblings, ", ") + "; " + tables
	}
	return fmt.Sprintf("unknown key; the table [%s] has %s", table, strings.Join(siblings, ", "))
}

// positions finds where each key of a valid document stands. go-toml gives places for errors of its own only.
func positions(data []byte) map[string]position {
	found := make(map[string]position)
	parser := unstable.Parser{}
	parser.Reset(data)
	table := ""
	for parser.NextExpression() {
		node := parser.Expression()
		switch node.Kind {
		case unstable.Table, unstable.ArrayTable:
			table, _ = keyOf(&parser, node)
		case unstable.KeyValue:
			record(&parser, node, table, found)
		}
	}
	return found
}

func record(parser *unstable.Parser, node *unstable.Node, table string, found map[string]position) {
	key, at := keyOf(parser, node)
	if table != "" {
		key = table + "." + key
	}
	found[key] = at
	if node.Value().Kind != unstable.InlineTable {
		return
	}
	for children := node.Value().Children(); children.Next(); {
		record(parser, children.Node(), key, found)
	}
}

func keyOf(parser *unstable.Parser, node *unstable.Node) (string, position) {
	var parts []string
	var at position
	for it := node.Key(); it.Next(); {
		if parts == nil {
			start := parser.Shape(it.Node().Raw).Start
			at = position{start.Line, start.Column}
		}
		parts = append(parts, string(it.Node().Data))
	}
	return strings.Join(parts, "."), at
}

// resolve checks every value and turns text into numbers. Its errors are *Error without file and place. written holds the
// keys that the file sets: one that was set to "" is an error where "" isn't the default.
func (f file) resolve(written map[string]position) (Config, error) {
	if f.Version != Version {
		if _, ok := written["version"]; !ok {
			return Config{}, &Error{Key: "version", Message: `the file must say "version = 1" at its top`}
		}
		return Config{}, invalid("version", f.Version, "this program reads version 1")
	}
	c := Config{StateDir: f.StateDir, RunDir: f.RunDir, VMM: VMM{Binary: f.VMM.Binary}}
	for _, p := range []struct {
		key   string
		value *string
	}{{"state_dir", &c.StateDir}, {"run_dir", &c.RunDir}} {
		if !filepath.IsAbs(*p.value) {
			return Config{}, invalid(p.key, *p.value, "write an absolute path")
		}
		*p.value = filepath.Clean(*p.value)
	}
	if f.VMM.Binary != "" && !filepath.IsAbs(f.VMM.Binary) {
		return Config{}, invalid("vmm.binary", f.VMM.Binary, "write an absolute path, or leave it out to have it searched for")
	}
	for _, step := range []func(*Config) *Error{f.resolveVMM, f.resolveGuest, f.resolveSandbox, f.resolveLayers, f.resolveLog} {
		if bad := step(&c); bad != nil {
			return Config{}, bad
		}
	}
	return c, nil
}

func (f file) resolveVMM(c *Config) *Error {
	c.VMM.Acceleration = f.VMM.Acceleration
	if bad := oneOf("vmm.acceleration", f.VMM.Acceleration, AccelerationAuto, AccelerationHardware, AccelerationEmulated); bad != nil {
		return bad
	}
	// The range must not reach into the host's own users (below 1000 by Debian's policy, 65534 is nobody), nor contain
	// 4294967295, which system calls take for "unchanged".
	if f.VMM.UIDBase < 65536 || f.VMM.UIDBase > math.MaxUint32-1 {
		return invalid("vmm.uid_base", f.VMM.UIDBase, "write a number from 65536 to 4294967294")
	}
	if most := math.MaxUint32 - f.VMM.UIDBase; f.VMM.UIDCount < 1 || f.VMM.UIDCount > most {
		return invalid("vmm.uid_count", f.VMM.UIDCount, fmt.Sprintf("with uid_base = %d write a number from 1 to %d", f.VMM.UIDBase, most))
	}
	c.VMM.UIDBase, c.VMM.UIDCount = uint32(f.VMM.UIDBase), uint32(f.VMM.UIDCount)
	return nil
}

func (f file) resolveGuest(c *Config) *Error {
	for _, p := range []struct {
		key, value, fallback string
		to                   *string
	}{
		{"guest.kernel", f.Guest.Kernel, "kernel", &c.Guest.Kernel},
		{"guest.initramfs", f.Guest.Initramfs, "initramfs", &c.Guest.Initramfs},
	} {
		switch {
		case p.value == "":
			*p.to = filepath.Join(c.GuestDir(), p.fallback)
		case !filepath.IsAbs(p.value):
			return invalid(p.key, p.value, "write an absolute path, or leave it out for the one that \"bulkhead guest build\" makes")
		default:
			*p.to = filepath.Clean(p.value)
		}
	}
	timeout, err := time.ParseDuration(f.Guest.BootTimeout)
	if err != nil || timeout < time.Second || timeout > time.Hour {
		return invalid("guest.boot_timeout", f.Guest.BootTimeout, `write a duration from "1s" to "1h", like "60s" or "1m30s"`)
	}
	c.Guest.BootTimeout = timeout
	for _, arg := range f.Guest.KernelArgs {
		// An argument with a space would become two on the command line, and one with a comma or an "=" is ordinary.
		if arg == "" || strings.ContainsFunc(arg, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return invalid("guest.kernel_args", arg, "write one argument per element, of printable ASCII without spaces")
		}
	}
	c.Guest.KernelArgs = slices.Clone(f.Guest.KernelArgs)
	return nil
}

// Bounds of [sandbox].
const (
	minMemory  = 128 << 20
	maxMemory  = 4 << 40
	maxVCPUs   = 240 // what package sizing gives a VM at most
	minScratch = 16 << 20
	maxScratch = 16 << 40
)

func (f file) resolveSandbox(c *Config) *Error {
	c.Sandbox.Profile = f.Sandbox.Profile
	if bad := oneOf("sandbox.profile", f.Sandbox.Profile, ProfileStandard, ProfileAKS); bad != nil {
		return bad
	}
	var bad *Error
	if c.Sandbox.DefaultMemory, bad = sizeIn("sandbox.default_memory", f.Sandbox.DefaultMemory, minMemory, maxMemory); bad != nil {
		return bad
	}
	if f.Sandbox.DefaultVCPUs < 1 || f.Sandbox.DefaultVCPUs > maxVCPUs {
		return invalid("sandbox.default_vcpus", f.Sandbox.DefaultVCPUs, fmt.Sprintf("write a number from 1 to %d", maxVCPUs))
	}
	c.Sandbox.DefaultVCPUs = int(f.Sandbox.DefaultVCPUs)
	c.Sandbox.ScratchSize, bad = sizeIn("sandbox.scratch_size", f.Sandbox.ScratchSize, minScratch, maxScratch)
	return bad
}

// Bounds of [layers].
const (
	minLayers = 1 << 20
	maxLayers = 1 << 50
	minAge    = time.Minute
	maxAge    = 10 * 365 * 24 * time.Hour
)

func (f file) resolveLayers(c *Config) (bad *Error) {
	if c.Layers.MaxSize, bad = sizeIn("layers.max_size", f.Layers.MaxSize, minLayers, maxLayers); bad != nil {
		return bad
	}
	age, err := time.ParseDuration(f.Layers.MaxAge)
	if err != nil || age != 0 && (age < minAge || age > maxAge) {
		return invalid("layers.max_age", f.Layers.MaxAge, `write "0" for no limit, or a duration from "1m" to "87600h", like "720h"`)
	}
	c.Layers.MaxAge = age
	return nil
}

func (f file) resolveLog(c *Config) *Error {
	if bad := oneOf("log.level", f.Log.Level, "debug", "info", "warn", "error"); bad != nil {
		return bad
	}
	levels := map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
	c.Log.Level = levels[f.Log.Level]
	return nil
}

func oneOf(key, value string, allowed ...string) *Error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return invalid(key, value, "write one of "+strings.Join(allowed, ", "))
}

// sizeIn reads a size within bounds. Sizes of machines are whole mebibytes: VMMs take nothing finer.
func sizeIn(key, value string, least, most int64) (int64, *Error) {
	n, err := ParseSize(value)
	if err != nil {
		return 0, &Error{Key: key, Message: err.Error()}
	}
	if n < least || n > most || n%(1<<20) != 0 {
		return 0, invalid(key, value, fmt.Sprintf("write whole Mi from %q to %q", FormatSize(least), FormatSize(most)))
	}
	return n, nil
}
