package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"bulkhead.dev/bulkhead/internal/doctor"
)

// result is what a command line came to.
type result struct {
	status         int
	stdout, stderr string
}

func runCommand(t *testing.T, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status := Main(t.Context(), args, strings.NewReader(""), &stdout, &stderr)
	return result{status, stdout.String(), stderr.String()}
}

// files of the directory in which the command lines of TestCommands run.
var files = map[string]string{
	"good.toml":            "version = 1\n",
	"bad.toml":             "version = 1\n[vmm]\nacceleration = 'kvm'\n",
	"typo.toml":            "version = 1\nstatedir = '/x'\n",
	"broken/manifest.json": "{",
	"other/precious":       "",
	"root/run":             "#!/bin/sh\n",
}

func workDir(t *testing.T) {
	t.Helper()
	t.Chdir(t.TempDir())
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCommands runs command lines as people type them. Empty texts mean that nothing was written there.
func TestCommands(t *testing.T) {
	tests := []struct {
		line           string
		status         int
		stdout, stderr string // regular expressions
	}{
		{"", 0, `(?s)^Bulkhead runs a pod .*doctor +Say what this host has and lacks`, ""},
		{"guest", 0, `(?s)build +Make the guest image.*show +Say what is in`, ""},
		{"guest build --help", 0, `(?s)Examples:.*--kernel-package package`, ""},
		{"version", 0, `^bulkhead \S+ go1\.\S+ linux/\S+\n$`, ""},
		{"version -o json", 0, `"platform": "linux/`, ""},
		{"version -o yaml", 0, `(?m)^platform: linux/`, ""},

		{"guset", 2, "", `^bulkhead: "bulkhead" has no command "guset"; it has .*doctor.*\nSee "bulkhead --help"\.\n$`},
		{"guest bild", 2, "", `^bulkhead: "bulkhead guest" has no command "bild"; it has build, show\n`},
		{"doctor --fix", 2, "", `^bulkhead: unknown flag: --fix\nSee "bulkhead doctor --help"\.\n$`},
		{"doctor now", 2, "", `^bulkhead: "bulkhead doctor" takes no argument, and got "now"\n`},
		{"version -o xml", 2, "", `^bulkhead: --output "xml": write table, json or yaml\n`},
		{"image build", 2, "", `takes one argument, a directory or a program, and got 0`},
		{"image build --name x root", 2, "", `^bulkhead: --output or --cluster-name is required\n`},
		{"image build -o x.tar root", 2, "", `^bulkhead: --name is required\n`},
		{"image build --name UPPER -o x.tar root", 2, "", `"UPPER" is no name for an image`},
		{"image busybox", 2, "", `--output or --cluster-name is required`},

		{"config check --config good.toml", 0, `^good.toml is right\n$`, ""},
		{"config check --config bad.toml", 1, "", `^bulkhead: bad.toml:3:1: vmm.acceleration: "kvm" is not allowed: write one of auto, hardware, emulated\n$`},
		{"config check --config typo.toml", 1, "", `^bulkhead: typo.toml:2:1: statedir: unknown key; `},
		{"config check --config none.toml", 1, "", `^bulkhead: configuration file none.toml does not exist\n$`},

		{"guest show --dir none", 1, "", `^bulkhead: guest image: there is none in /.*/none; make it with "bulkhead guest build --dir /.*/none"\n$`},
		{"guest show --dir broken", 1, "", `/broken/manifest.json is corrupt: `},
		{"guest build --dir other --agent root/run", 1, "", `^bulkhead: /.*/other holds other files and no guest image: name a directory of its own\n$`},

		{"image build --name x -o x.tar root/run", 1, "", `^bulkhead: root/run is no program: `},
		{"image build --name x -o x.tar none", 1, "", `none: no such file`},
		{"image build --name x --env A -o x.tar root", 1, "", `environment "A": write NAME=value`},
		{"image build --name x -o none/x.tar root", 1, "", `^bulkhead: write none/x.tar: no such file or directory\n$`},
		{"image busybox -o x.tar --busybox root/run", 1, "", `^bulkhead: make an image of BusyBox: root/run is no program`},
	}
	for _, tt := range tests {
		t.Run(tt.line, func(t *testing.T) {
			workDir(t)
			got := runCommand(t, strings.Fields(tt.line)...)
			if got.status != tt.status {
				t.Errorf("status %d, want %d", got.status, tt.status)
			}
			for _, out := range []struct{ name, got, want string }{{"stdout", got.stdout, tt.stdout}, {"stderr", got.stderr, tt.stderr}} {
				if out.want == "" && out.got != "" || !regexp.MustCompile(out.want).MatchString(out.got) {
					t.Errorf("%s:\n%s\nwant %s", out.name, out.got, out.want)
				}
			}
			if left, err := filepath.Glob("*x.tar*"); err != nil || len(left) > 0 {
				t.Errorf("left %v, %v", left, err)
			}
			if _, err := os.Stat("other/precious"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestConfigVariable(t *testing.T) {
	workDir(t)
	t.Setenv("BULKHEAD_CONFIG", "bad.toml")
	if got := runCommand(t, "config", "check"); got.status != 1 || !strings.Contains(got.stderr, "bad.toml:3:1") {
		t.Errorf("%+v", got)
	}
	if got := runCommand(t, "config", "check", "--config", "good.toml"); got.status != 0 {
		t.Errorf("the flag doesn't go before the variable: %+v", got)
	}
}

func TestImageBuildIsDeterministic(t *testing.T) {
	workDir(t)
	var out, archive [2]string
	for i, name := range []string{"a.tar", "b.tar"} {
		got := runCommand(t, "image", "build", "--name", "example.org/x:1", "--cmd", "/run", "--env", "A=b", "--label", "k=v", "-o", name, "root")
		if got.status != 0 || !regexp.MustCompile(`^example.org/x:1@sha256:[0-9a-f]{64}\n$`).MatchString(got.stdout) {
			t.Fatalf("%+v", got)
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		out[i], archive[i] = got.stdout, string(data)
	}
	if out[0] != out[1] || archive[0] != archive[1] {
		t.Error("two images of equal files differ")
	}
}

// TestDoctor: a host without a guest image isn't ready, whatever else it has. So no VM is started here.
func TestDoctor(t *testing.T) {
	workDir(t)
	for name, text := range map[string]string{
		"config.toml": "version = 1\nstate_dir = '/nonexistent/bulkhead'\n[vmm]\nacceleration = 'emulated'\n",
		"c.toml":      "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.bulkhead]\nruntime_type = 'io.containerd.bulkhead.v2'\n",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"doctor", "--config", "config.toml", "--containerd-config", filepath.Join(wd, "c.toml")}

	t.Run("json", func(t *testing.T) {
		got := runCommand(t, append(args, "-o", "json")...)
		if got.status != 1 || got.stderr != "" {
			t.Errorf("status %d, stderr %q", got.status, got.stderr)
		}
		decoder := json.NewDecoder(strings.NewReader(got.stdout))
		decoder.DisallowUnknownFields()
		var report doctor.Report
		if err := decoder.Decode(&report); err != nil {
			t.Fatal(err)
		}
		if report.Ready || report.Isolation != "none" {
			t.Errorf("ready %v, isolation %s", report.Ready, report.Isolation)
		}
		seen := map[string]doctor.Check{}
		for _, c := range report.Checks {
			seen[c.Name] = c
		}
		for _, name := range []string{"kvm", "user", "qemu", "guest image", "memory", "disk", "cgroup", "tun", "tc", "overlay", "fuse", "erofs", "containerd", "shim"} {
			if seen[name].Status == "" {
				t.Errorf("no check %s", name)
			}
		}
		if c := seen["guest image"]; c.Status != doctor.Missing || c.Fix != "bulkhead guest build" {
			t.Errorf("%+v", c)
		}
		if c := seen["containerd runtime"]; c.Status != doctor.OK {
			t.Errorf("%+v", c)
		}
	})
	t.Run("table", func(t *testing.T) {
		got := runCommand(t, args...)
		for _, want := range []string{`^CHECK +STATUS +FOUND\n`, `(?m)^guest image +missing +guest image: there is none`, `(?m)^  guest image: bulkhead guest build$`, `NOT READY`} {
			if !regexp.MustCompile(want).MatchString(got.stdout) {
				t.Errorf("no %s in\n%s", want, got.stdout)
			}
		}
	})
}

func TestReportSaysEmulationLoudly(t *testing.T) {
	var out bytes.Buffer
	report := doctor.Report{Ready: true, Isolation: "emulated", Checks: []doctor.Check{{Name: "kvm", Status: doctor.Warn, Found: "two\nlines", Fix: "f"}}}
	if err := writeReport(&out, report); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"two lines", "by EMULATION. THIS IS NOT ISOLATION"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
