package config

import (
	"math"
	"testing"
)

func TestParseSize(t *testing.T) {
	tests := []struct {
		text string
		want int64 // -1: an error
	}{
		{"0", 0}, {"1", 1}, {"1023", 1023}, {"1Ki", 1 << 10}, {"192Mi", 192 << 20}, {"10Gi", 10 << 30}, {"2Ti", 2 << 40},
		{"007Mi", 7 << 20}, {"9223372036854775807", math.MaxInt64}, {"8388607Ti", 8388607 << 40},
		{"", -1}, {"Mi", -1}, {"-1", -1}, {"+1", -1}, {"1.5Gi", -1}, {"1 Gi", -1}, {"1gi", -1}, {"1G", -1}, {"1GiB", -1}, {"1e3", -1},
		{"0x10", -1}, {"1_000", -1}, {"١Mi", -1}, {"1KiKi", -1}, {"8388608Ti", -1}, {"9223372036854775808", -1}, {"99999999999999999999Ki", -1},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			got, err := ParseSize(tt.text)
			if err != nil {
				got = -1
			}
			if got != tt.want {
				t.Errorf("got %d, %v; want %d", got, err, tt.want)
			}
		})
	}
}

func TestFormatSize(t *testing.T) {
	for want, n := range map[string]int64{"0": 0, "1": 1, "1Ki": 1024, "1025": 1025, "192Mi": 192 << 20, "3Ti": 3 << 40} {
		if got := FormatSize(n); got != want {
			t.Errorf("FormatSize(%d) = %q, want %q", n, got, want)
		}
	}
}

func FuzzSize(f *testing.F) {
	f.Add("192Mi")
	f.Add("8388607Ti")
	f.Fuzz(func(t *testing.T, text string) {
		n, err := ParseSize(text)
		if err != nil {
			return
		}
		if n < 0 {
			t.Fatalf("ParseSize(%q) = %d", text, n)
		}
		if again, err := ParseSize(FormatSize(n)); err != nil || again != n {
			t.Errorf("%q is %d, written %q, read %d, %v", text, n, FormatSize(n), again, err)
		}
	})
}
