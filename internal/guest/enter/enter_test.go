package enter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCandidates(t *testing.T) {
	for _, tc := range []struct {
		name string
		env  []string
		want []string
	}{
		{"/bin/x", []string{"PATH=/a"}, []string{"/bin/x"}},
		{"./x", nil, []string{"./x"}},
		{"x", []string{"A=b", "PATH=/a:/b::c"}, []string{"/a/x", "/b/x", "./x", "c/x"}},
		{"x", []string{"PATH=/a", "PATH=/b"}, []string{"/b/x"}},
		{"x", []string{"PATH="}, []string{"./x"}},
	} {
		if diff := cmp.Diff(tc.want, candidates(tc.name, tc.env)); diff != "" {
			t.Errorf("%s %v (-want +got)\n%s", tc.name, tc.env, diff)
		}
	}
}

func message(kind, x, y uint32) []byte {
	b := binary.NativeEndian.AppendUint32(nil, kind)
	b = binary.NativeEndian.AppendUint32(b, x)
	return binary.NativeEndian.AppendUint32(b, y)
}

func TestOutcome(t *testing.T) {
	started, failed := message(messagePID, 42, 0), message(messageFailed, stepExec, uint32(syscall.ENOENT))
	for name, tc := range map[string]struct {
		sent []byte
		pid  int
		err  error
	}{
		"started":              {started, 42, nil},
		"exec failed":          {append(bytes.Clone(started), failed...), 42, syscall.ENOENT},
		"failed before":        {append(bytes.Clone(failed), started...), 42, syscall.ENOENT},
		"nothing":              {nil, 0, syscall.ECHILD},
		"first child failed":   {message(messageFailed, stepJoin, uint32(syscall.ESRCH)), 0, syscall.ESRCH},
		"step that isn't":      {message(messageFailed, 99, uint32(syscall.EPERM)), 0, syscall.EPERM},
		"cut":                  {started[:5], 0, io.ErrUnexpectedEOF},
		"kind that isn't":      {append(message(9, 1, 1), started...), 42, nil},
		"exec failed, in time": {append(bytes.Clone(started), message(messageFailed, stepExec, uint32(syscall.EACCES))...), 42, syscall.EACCES},
	} {
		t.Run(name, func(t *testing.T) {
			pid, err := outcome(bytes.NewReader(tc.sent))
			if pid != tc.pid || !errors.Is(err, tc.err) {
				t.Errorf("%d, %v; want %d, %v", pid, err, tc.pid, tc.err)
			}
		})
	}
}

func TestPrepareRefuses(t *testing.T) {
	files := [3]*os.File{os.Stdin, os.Stdout, os.Stderr}
	for name, p := range map[string]Process{
		"no program":          {Files: files},
		"empty program":       {Files: files, Args: []string{""}},
		"NUL in an argument":  {Files: files, Args: []string{"a", "b\x00"}},
		"NUL in the program":  {Files: files, Args: []string{"a\x00"}},
		"NUL in a variable":   {Files: files, Args: []string{"a"}, Env: []string{"\x00"}},
		"NUL in the cwd":      {Files: files, Args: []string{"a"}, Cwd: "\x00"},
		"cut seccomp filter":  {Files: files, Args: []string{"a"}, Seccomp: make([]byte, 7)},
		"long seccomp filter": {Files: files, Args: []string{"a"}, Seccomp: make([]byte, 8<<16)},
	} {
		if _, err := prepare(p); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
