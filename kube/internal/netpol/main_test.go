package netpol

import (
	"bytes"
	"io"
	"path/filepath"
	"strings"
	"testing"
)

func TestMainRefuses(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	tests := map[string]struct {
		args []string
		code int
		want string // in stderr
	}{
		"help":             {[]string{"-h"}, exitOK, "-stand-ins file"},
		"no kubeconfig":    {[]string{"--node-name", "n"}, exitUsage, "--kubeconfig is needed"},
		"no node":          {[]string{"--kubeconfig", "f"}, exitUsage, "--node-name is needed"},
		"unknown flag":     {[]string{"--sideways"}, exitUsage, "-sideways"},
		"unknown level":    {[]string{"--log-level", "loud"}, exitUsage, "loud"},
		"argument":         {[]string{"--kubeconfig", "f", "--node-name", "n", "more"}, exitUsage, `"more"`},
		"missing config":   {[]string{"--kubeconfig", missing, "--node-name", "n"}, exitError, missing},
		"missing standins": {[]string{"--kubeconfig", "f", "--node-name", "n", "--stand-ins", missing}, exitError, missing},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			var stderr bytes.Buffer
			if code := Main(t.Context(), tc.args, io.Discard, &stderr); code != tc.code {
				t.Errorf("exit code %d, want %d; stderr:\n%s", code, tc.code, &stderr)
			}
			if !strings.Contains(stderr.String(), tc.want) {
				t.Errorf("stderr doesn't name %q:\n%s", tc.want, &stderr)
			}
		})
	}
}
