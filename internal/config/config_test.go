package config

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

func TestDefault(t *testing.T) {
	want := Config{
		StateDir: "/var/lib/bulkhead", RunDir: "/run/bulkhead",
		VMM: VMM{Acceleration: "auto", UIDBase: 2000000, UIDCount: 65536},
		Guest: Guest{
			Kernel: "/var/lib/bulkhead/guest/kernel", Initramfs: "/var/lib/bulkhead/guest/initramfs",
			BootTimeout: time.Minute, KernelArgs: []string{},
		},
		Sandbox: Sandbox{Profile: "standard", DefaultMemory: 192 << 20, DefaultVCPUs: 1, ScratchSize: 10 << 30},
		Layers:  Layers{MaxSize: 20 << 30, MaxAge: 30 * 24 * time.Hour},
		Log:     Log{Level: slog.LevelInfo},
	}
	if diff := cmp.Diff(want, Default()); diff != "" {
		t.Error(diff)
	}
}

func TestParse(t *testing.T) {
	base := func(change func(*Config)) Config {
		c := Default()
		change(&c)
		return c
	}
	tests := []struct {
		name, text string
		want       Config
	}{
		{"only the version", "version = 1\n", Default()},
		{"state_dir moves the guest image", "version = 1\nstate_dir = '/srv/b/'\n", base(func(c *Config) {
			c.StateDir = "/srv/b"
			c.Guest.Kernel, c.Guest.Initramfs = "/srv/b/guest/kernel", "/srv/b/guest/initramfs"
		})},
		{"own kernel", "version = 1\n[guest]\nkernel = '/boot/vmlinuz'\nkernel_args = ['quiet', 'a.b=c,d']\n", base(func(c *Config) {
			c.Guest.Kernel = "/boot/vmlinuz"
			c.Guest.KernelArgs = []string{"quiet", "a.b=c,d"}
		})},
		{"inline table", "version = 1\nsandbox = {profile = 'aks', default_memory = '1Gi'}\n", base(func(c *Config) {
			c.Sandbox.Profile, c.Sandbox.DefaultMemory = "aks", 1<<30
		})},
		{"dotted keys", "version = 1\nvmm.acceleration = 'hardware'\nlog.level = 'debug'\n", base(func(c *Config) {
			c.VMM.Acceleration, c.Log.Level = "hardware", slog.LevelDebug
		})},
		{"layers", "version = 1\n[layers]\nmax_size = '512Mi'\nmax_age = '1h30m'\n", base(func(c *Config) {
			c.Layers = Layers{MaxSize: 512 << 20, MaxAge: 90 * time.Minute}
		})},
		{"layers of any age", "version = 1\n[layers]\nmax_age = '0'\n", base(func(c *Config) { c.Layers.MaxAge = 0 })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse("f.toml", []byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	const v = "version = 1\n"
	tests := []struct{ name, text, want string }{
		{"no version", "", `f.toml: version: the file must say "version = 1" at its top`},
		{"later version", "version = 2\n", `f.toml:1:1: version: 2 is not allowed: this program reads version 1`},
		{"syntax", v + "state_dir = /srv\n", `f.toml:2:13: `},
		{"unknown top key", v + "statedir = '/x'\n", `f.toml:2:1: statedir: unknown key; outside of tables there are version, state_dir, run_dir; the tables are vmm, guest, sandbox, layers, log`},
		{"unknown key in table", v + "[vmm]\n  path = 'x'\n", `f.toml:3:3: vmm.path: unknown key; the table [vmm] has binary, acceleration, uid_base, uid_count`},
		{"unknown table", v + "[qemu]\nbinary = 'x'\n", `f.toml:2:2: qemu: `},
		{"wrong type", v + "[guest]\nboot_timeout = 60\n", `f.toml:3:16: guest.boot_timeout: `},
		{"wrong type of number", v + "[sandbox]\ndefault_vcpus = 1.5\n", `f.toml:3:17: sandbox.default_vcpus: `},
		{"number too large", v + "[vmm]\nuid_base = 99999999999999999999\n", `f.toml:3:12: `},
		{"key twice", v + "run_dir = '/a'\nrun_dir = '/b'\n", `f.toml:3:1: `},
		{"relative state_dir", v + "\nstate_dir = 'x'\n", `f.toml:3:1: state_dir: "x" is not allowed: write an absolute path`},
		{"empty run_dir", v + "run_dir = ''\n", `f.toml:2:1: run_dir: "" is not allowed: write an absolute path`},
		{"relative binary", v + "[vmm]\nbinary = 'qemu'\n", `f.toml:3:1: vmm.binary: "qemu" is not allowed: `},
		{"acceleration", v + "[vmm]\nacceleration = 'kvm'\n", `f.toml:3:1: vmm.acceleration: "kvm" is not allowed: write one of auto, hardware, emulated`},
		{"uid of a host user", v + "[vmm]\nuid_base = 1000\n", `f.toml:3:1: vmm.uid_base: 1000 is not allowed: write a number from 65536 to 4294967294`},
		{"uid range past the end", v + "[vmm]\nuid_base = 4294967290\n", `f.toml: vmm.uid_count: 65536 is not allowed: with uid_base = 4294967290 write a number from 1 to 5`},
		{"no uids", v + "[vmm]\nuid_count = 0\n", `f.toml:3:1: vmm.uid_count: 0 is not allowed: `},
		{"relative kernel", v + "[guest]\nkernel = 'vmlinuz'\n", `f.toml:3:1: guest.kernel: "vmlinuz" is not allowed: `},
		{"duration without unit", v + "[guest]\nboot_timeout = '60'\n", `f.toml:3:1: guest.boot_timeout: "60" is not allowed: write a duration from "1s" to "1h"`},
		{"duration too short", v + "[guest]\nboot_timeout = '1ms'\n", `f.toml:3:1: guest.boot_timeout: "1ms" is not allowed: `},
		{"kernel argument with a space", v + "[guest]\nkernel_args = ['a b']\n", `f.toml:3:1: guest.kernel_args: "a b" is not allowed: `},
		{"profile", v + "[sandbox]\nprofile = 'small'\n", `f.toml:3:1: sandbox.profile: "small" is not allowed: write one of standard, aks`},
		{"decimal unit", v + "[sandbox]\ndefault_memory = '192M'\n", `f.toml:3:1: sandbox.default_memory: "192M" is no size: `},
		{"memory below the minimum", v + "[sandbox]\ndefault_memory = '64Mi'\n", `f.toml:3:1: sandbox.default_memory: "64Mi" is not allowed: write whole Mi from "128Mi" to "4Ti"`},
		{"memory not whole", v + "[sandbox]\ndefault_memory = '196609Ki'\n", `f.toml:3:1: sandbox.default_memory: "196609Ki" is not allowed: `},
		{"vcpus", v + "[sandbox]\ndefault_vcpus = 0\n", `f.toml:3:1: sandbox.default_vcpus: 0 is not allowed: write a number from 1 to 240`},
		{"scratch in an inline table", v + "sandbox = { profile = 'aks', scratch_size = '1Mi' }\n", `f.toml:2:30: sandbox.scratch_size: "1Mi" is not allowed: `},
		{"no size of layers", v + "[layers]\nmax_size = '0'\n", `f.toml:3:1: layers.max_size: "0" is not allowed: write whole Mi from "1Mi" to "1024Ti"`},
		{"size of layers as a number", v + "[layers]\nmax_size = 1\n", `f.toml:3:12: layers.max_size: `},
		{"age of layers without unit", v + "[layers]\nmax_age = '720'\n", `f.toml:3:1: layers.max_age: "720" is not allowed: write "0" for no limit, or a duration from "1m" to "87600h"`},
		{"age of layers below zero", v + "[layers]\nmax_age = '-1h'\n", `f.toml:3:1: layers.max_age: "-1h" is not allowed: `},
		{"age of layers too long", v + "[layers]\nmax_age = '87601h'\n", `f.toml:3:1: layers.max_age: "87601h" is not allowed: `},
		{"unknown key of layers", v + "[layers]\nsize = '1Gi'\n", `f.toml:3:1: layers.size: unknown key; the table [layers] has max_size, max_age`},
		{"level", v + "[log]\nlevel = 'trace'\n", `f.toml:3:1: log.level: "trace" is not allowed: write one of debug, info, warn, error`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("f.toml", []byte(tt.text))
			if err == nil {
				t.Fatal("no error")
			}
			if !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("got  %s\nwant %s…", err, tt.want)
			}
			if bad := (*Error)(nil); !errors.As(err, &bad) || !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("%T is no *Error of the class invalid argument", err)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(file, []byte("version = 1\nrun_dir = '/run/other'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing.toml")

	t.Run("a path that was asked for must exist", func(t *testing.T) {
		if _, err := Load(missing); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), missing) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("so must the variable's", func(t *testing.T) {
		t.Setenv(PathVariable, missing)
		if _, err := Load(""); !errdefs.IsNotFound(err) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("the variable replaces the default", func(t *testing.T) {
		t.Setenv(PathVariable, file)
		c, err := Load("")
		if err != nil || c.RunDir != "/run/other" {
			t.Errorf("got %q, %v", c.RunDir, err)
		}
	})
	t.Run("the path goes before the variable", func(t *testing.T) {
		t.Setenv(PathVariable, missing)
		if c, err := Load(file); err != nil || c.RunDir != "/run/other" {
			t.Errorf("got %q, %v", c.RunDir, err)
		}
	})
	t.Run("too large", func(t *testing.T) {
		large := filepath.Join(dir, "large.toml")
		if err := os.WriteFile(large, []byte(strings.Repeat("# \n", maxFile/3+1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(large); !errdefs.IsInvalidArgument(err) {
			t.Errorf("got %v", err)
		}
	})
}

func FuzzParse(f *testing.F) {
	example, err := os.ReadFile("../../docs/reference/config.example.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(example)
	f.Add([]byte("version = 1\nvmm = {a.b = {c = 1}}\n"))
	f.Add([]byte("[[vmm]]\n\"\" = 1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f", data)
		if err != nil {
			return
		}
		if !filepath.IsAbs(c.StateDir) || c.VMM.UIDBase < 65536 || c.Sandbox.DefaultMemory < minMemory || c.Guest.BootTimeout <= 0 {
			t.Errorf("accepted %+v", c)
		}
	})
}
