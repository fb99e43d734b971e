package vmm

import (
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func TestValidate(t *testing.T) {
	good := func() Spec {
		return Spec{
			ID: "a-B_1.2", VCPUs: 1, MemoryBytes: 1 << 20, Kernel: "/k", Initramfs: "/i", KernelArgs: []string{"a=b"}, Acceleration: Emulated,
			NICs: []NIC{{Tap: os.Stdin, MAC: []byte{2, 0, 0, 0, 0, 1}, MTU: 1500}},
		}
	}
	tests := map[string]struct {
		change func(*Spec)
		want   string // part of the error; "": none
	}{
		"good":                 {func(*Spec) {}, ""},
		"hardware":             {func(s *Spec) { s.Acceleration = Hardware }, ""},
		"no id":                {func(s *Spec) { s.ID = "" }, "id"},
		"id with an option":    {func(s *Spec) { s.ID = "a,b=c" }, "id"},
		"long id":              {func(s *Spec) { s.ID = strings.Repeat("a", 65) }, "id"},
		"no vCPU":              {func(s *Spec) { s.VCPUs = 0 }, "0 vCPUs"},
		"odd memory":           {func(s *Spec) { s.MemoryBytes++ }, "multiple of 1 MiB"},
		"no initramfs":         {func(s *Spec) { s.Initramfs = "" }, "must be named"},
		"NUL in a path":        {func(s *Spec) { s.Kernel = "/k\x00" }, "NUL"},
		"undecided":            {func(s *Spec) { s.Acceleration = "auto" }, `"auto"`},
		"argument of 2 lines":  {func(s *Spec) { s.KernelArgs = []string{"a\nb"} }, "control character"},
		"NIC without tap":      {func(s *Spec) { s.NICs[0].Tap = nil }, "NIC 0 has no tap"},
		"MAC of a group":       {func(s *Spec) { s.NICs[0].MAC[0] = 1 }, "MAC"},
		"odd MTU":              {func(s *Spec) { s.NICs[0].MTU = 67 }, "MTU 67"},
		"the first of several": {func(s *Spec) { s.VCPUs, s.NICs[0].MTU = 0, 67 }, "vCPUs"},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			s := good()
			tc.change(&s)
			err := s.Validate()
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("got %v, want ErrInvalidArgument with %q", err, tc.want)
			}
		})
	}
}
