package sizing

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

const (
	mib = int64(1) << 20
	gib = int64(1) << 30
)

func node() Inputs {
	return Inputs{DefaultMemoryBytes: 192 * mib, DefaultVCPUs: 1, ScratchBytes: 10 * gib, HostVCPUs: 16, HostMemoryBytes: 64 * gib}
}

func cri(pairs ...string) map[string]string {
	m := map[string]string{criContainerType: "sandbox"}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

func ptr[T any](v T) *T { return &v }

func TestCompute(t *testing.T) {
	tests := []struct {
		name        string
		profile     Profile
		annotations map[string]string
		in          func(*Inputs)
		want        Size
	}{
		{"standard without limits", Standard, nil, nil, Size{1, 292 * mib, 10 * gib}},
		{"no profile is standard", "", cri(), nil, Size{1, 292 * mib, 10 * gib}},
		{"standard with limits", Standard, cri(criQuota, "150000", criPeriod, "100000", criMemory, "1073741824"), nil, Size{2, 1136 * mib, 10 * gib}},
		{"exactly one processor", Standard, cri(criQuota, "100000", criPeriod, "100000"), nil, Size{1, 292 * mib, 10 * gib}},
		{"one µs more is two", Standard, cri(criQuota, "100001", criPeriod, "100000"), nil, Size{2, 292 * mib, 10 * gib}},
		{"quota without a period", Standard, cri(criQuota, "300000"), nil, Size{3, 292 * mib, 10 * gib}},
		{"zeros are no limits", Standard, cri(criQuota, "0", criPeriod, "0", criMemory, "0"), nil, Size{1, 292 * mib, 10 * gib}},
		{"quota -1 is no limit", Standard, cri(criQuota, "-1", criPeriod, "100000"), nil, Size{1, 292 * mib, 10 * gib}},
		{"small limit gets the least VM", Standard, cri(criMemory, "8388608"), nil, Size{1, 160 * mib, 10 * gib}},
		{"odd limit is rounded up", Standard, cri(criMemory, "209715201"), nil, Size{1, 300 * mib, 10 * gib}},
		{"limit beyond the host", Standard, cri(criQuota, "6400000", criMemory, "1099511627776"), nil, Size{16, 64 * gib, 10 * gib}},
		{"largest number there is", Standard, cri(criQuota, "9223372036854775807", criPeriod, "1000", criMemory, "9223372036854775807"), nil, Size{16, 64 * gib, 10 * gib}},
		{"node's default vCPUs", Standard, nil, func(in *Inputs) { in.DefaultVCPUs = 4 }, Size{4, 292 * mib, 10 * gib}},

		{"aks without limits", AKS, cri(), nil, Size{1, 2 * gib, 10 * gib}},
		{"aks with limits", AKS, cri(criQuota, "200000", criPeriod, "100000", criMemory, "1073741824"), nil, Size{3, 3 * gib, 10 * gib}},
		{"aks with a CPU limit", AKS, cri(criQuota, "50000", criPeriod, "100000"), nil, Size{2, 2 * gib, 10 * gib}},
		{"aks with a memory limit", AKS, cri(criMemory, "536870912"), nil, Size{1, 2*gib + 512*mib, 10 * gib}},
		{"aks by annotation", Standard, cri(ProfileName, "aks"), nil, Size{1, 2 * gib, 10 * gib}},
		{"standard by annotation", AKS, cri(ProfileName, "standard"), nil, Size{1, 292 * mib, 10 * gib}},

		{"own annotations", Standard, cri(VCPUs, "4", Memory, "1Gi", ScratchSize, "512Mi"), nil, Size{4, gib, 512 * mib}},
		{"own without the CRI", AKS, map[string]string{Memory: "536870912", ScratchSize: "1G"}, nil, Size{1, 512 * mib, 954 * mib}},
		{"own memory holds the limit", Standard, cri(criMemory, "536870912", Memory, "512Mi"), nil, Size{1, 512 * mib, 10 * gib}},
		{"others' annotations", Standard, map[string]string{"example.com/vcpus": "many", "notbulkhead.dev/x": ""}, nil, Size{1, 292 * mib, 10 * gib}},

		{"ctr run with limits", Standard, nil, func(in *Inputs) {
			in.Resources = &specs.LinuxResources{
				CPU:    &specs.LinuxCPU{Quota: ptr(int64(250000)), Period: ptr(uint64(100000))},
				Memory: &specs.LinuxMemory{Limit: ptr(512 * mib)},
			}
		}, Size{3, 616 * mib, 10 * gib}},
		{"ctr run without", Standard, nil, func(in *Inputs) {
			in.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(-1))}, Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}}
		}, Size{1, 292 * mib, 10 * gib}},
		{"the CRI's word beats the pause container's", Standard, cri(), func(in *Inputs) {
			in.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(8 * gib)}}
		}, Size{1, 292 * mib, 10 * gib}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := node()
			if tt.in != nil {
				tt.in(&in)
			}
			got, err := Compute(tt.profile, tt.annotations, in)
			if err != nil {
				t.Fatalf("Compute: %v", err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("size (-want +got):\n%s", diff)
			}
		})
	}
}

func TestComputeRefuses(t *testing.T) {
	tests := []struct {
		name        string
		profile     Profile
		annotations map[string]string
		in          func(*Inputs)
		want        []string // parts of the message
	}{
		{"memory not a number", Standard, cri(criMemory, "lots"), nil, []string{criMemory, `"lots"`}},
		{"memory empty", Standard, cri(criMemory, ""), nil, []string{criMemory, `""`}},
		{"memory with a suffix", Standard, cri(criMemory, "1Gi"), nil, []string{criMemory, `"1Gi"`}},
		{"memory negative", Standard, cri(criMemory, "-1"), nil, []string{criMemory, `"-1"`, "negative"}},
		{"memory too small", Standard, cri(criMemory, "1000"), nil, []string{criMemory, `"1000"`, "4 MiB"}},
		{"memory overflows", Standard, cri(criMemory, "9223372036854775808"), nil, []string{criMemory, "9223372036854775808"}},
		{"memory beyond any VM", Standard, cri(criMemory, "9223372036854775807"), func(in *Inputs) { in.HostMemoryBytes = 0 }, []string{criMemory, "1 TiB"}},
		{"memory that grows beyond any VM", AKS, cri(criMemory, "1099511627776"), func(in *Inputs) { in.HostMemoryBytes = 0 }, []string{criMemory, "1 TiB"}},
		{"quota not a number", Standard, cri(criQuota, "1e5"), nil, []string{criQuota, `"1e5"`}},
		{"quota with a plus", Standard, cri(criQuota, "+5"), nil, []string{criQuota, `"+5"`}},
		{"period negative", Standard, cri(criQuota, "1", criPeriod, "-100000"), nil, []string{criPeriod, `"-100000"`}},
		{"period too long", Standard, cri(criPeriod, "1000001"), nil, []string{criPeriod, `"1000001"`}},
		{"quota beyond the driver", Standard, cri(criQuota, "800000"), func(in *Inputs) { in.MaxVCPUs = 4 }, []string{criQuota, `"800000"`, "8 vCPUs", "1 to 4"}},
		{"aks beyond the driver", AKS, cri(criQuota, "400000"), func(in *Inputs) { in.MaxVCPUs = 4 }, []string{criQuota, "5 vCPUs"}},
		{"quota beyond every VM", Standard, cri(criQuota, "9223372036854775807", criPeriod, "1000"), func(in *Inputs) { in.HostVCPUs = 0 }, []string{criQuota, "1 to 240"}},

		{"unknown annotation", Standard, cri("bulkhead.dev/kernel-args", "x"), nil, []string{"bulkhead.dev/kernel-args", Memory, ProfileName, ScratchSize, VCPUs}},
		{"bare prefix", Standard, cri("bulkhead.dev/", "x"), nil, []string{`"bulkhead.dev/"`}},
		{"profile unknown", Standard, cri(ProfileName, "huge"), nil, []string{ProfileName, `"huge"`, "standard and aks"}},
		{"profile empty", Standard, cri(ProfileName, ""), nil, []string{ProfileName, `""`}},
		{"node's profile unknown", "gke", nil, nil, []string{"profile", `"gke"`}},
		{"vcpus zero", Standard, cri(VCPUs, "0"), nil, []string{VCPUs, `"0"`, "1 to 16"}},
		{"vcpus negative", Standard, cri(VCPUs, "-2"), nil, []string{VCPUs, `"-2"`}},
		{"vcpus a fraction", Standard, cri(VCPUs, "1.5"), nil, []string{VCPUs, `"1.5"`}},
		{"vcpus beyond the host", Standard, cri(VCPUs, "17"), nil, []string{VCPUs, `"17"`, "1 to 16"}},
		{"own memory below the least", Standard, cri(Memory, "64Mi"), nil, []string{Memory, `"64Mi"`}},
		{"own memory beyond the host", Standard, cri(Memory, "65Gi"), nil, []string{Memory, `"65Gi"`}},
		{"own memory below the limit", Standard, cri(criMemory, "1073741824", Memory, "512Mi"), nil, []string{Memory, `"512Mi"`, criMemory, "1073741824"}},
		{"own memory a fraction", Standard, cri(Memory, "1.5Gi"), nil, []string{Memory, `"1.5Gi"`}},
		{"own memory negative", Standard, cri(Memory, "-1Gi"), nil, []string{Memory, `"-1Gi"`}},
		{"own memory only a suffix", Standard, cri(Memory, "Gi"), nil, []string{Memory, `"Gi"`}},
		{"own memory overflows", Standard, cri(Memory, "9999999999Ti"), nil, []string{Memory, "64 bits"}},
		{"scratch too small", Standard, cri(ScratchSize, "1Mi"), nil, []string{ScratchSize, `"1Mi"`}},
		{"scratch too big", Standard, cri(ScratchSize, "17Ti"), nil, []string{ScratchSize, `"17Ti"`}},

		{"spec's limit negative", Standard, nil, func(in *Inputs) {
			in.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-5))}}
		}, []string{"linux.resources.memory.limit", `"-5"`}},
		{"spec's period too long", Standard, nil, func(in *Inputs) {
			in.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(1)), Period: ptr(^uint64(0))}}
		}, []string{"linux.resources.cpu.period", "18446744073709551615"}},
		{"long value is cut", Standard, cri(criMemory, strings.Repeat("9", 5000)), nil, []string{"…"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := node()
			if tt.in != nil {
				tt.in(&in)
			}
			got, err := Compute(tt.profile, tt.annotations, in)
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Fatalf("Compute = %+v, %v; want ErrInvalidArgument", got, err)
			}
			if len(err.Error()) > 500 {
				t.Errorf("message has %d bytes", len(err.Error()))
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("message %q lacks %q", err, part)
				}
			}
		})
	}
}

func FuzzCompute(f *testing.F) {
	f.Add("standard", "100000", "100000", "1073741824", "", "", "")
	f.Add("aks", "-1", "0", "0", "4", "1Gi", "10Gi")
	f.Add("", "9223372036854775807", "1000", "9223372036854775807", "0", "Ki", "-")
	f.Fuzz(func(t *testing.T, profile, quota, period, memory, vcpus, ownMemory, scratch string) {
		annotations := map[string]string{}
		for name, value := range map[string]string{
			ProfileName: profile, criQuota: quota, criPeriod: period, criMemory: memory, VCPUs: vcpus, Memory: ownMemory, ScratchSize: scratch,
		} {
			if value != "" {
				annotations[name] = value
			}
		}
		size, err := Compute(Standard, annotations, node())
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Fatalf("error of another class: %v", err)
			}
			return
		}
		if size.VCPUs < 1 || size.VCPUs > MaximumVCPUs {
			t.Errorf("%d vCPUs", size.VCPUs)
		}
		if size.MemoryBytes < MinimumMemory || size.MemoryBytes > 64*gib || size.MemoryBytes%Alignment != 0 {
			t.Errorf("%d bytes of memory", size.MemoryBytes)
		}
		if size.ScratchBytes < MinimumScratch || size.ScratchBytes > MaximumScratch || size.ScratchBytes%mib != 0 {
			t.Errorf("%d bytes of scratch", size.ScratchBytes)
		}
	})
}
