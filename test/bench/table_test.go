package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestQuantile(t *testing.T) {
	var ten series
	for v := range 10 {
		ten.add(float64(10 - v))
	}
	for _, test := range []struct {
		of   series
		q    float64
		want float64
	}{
		{ten, 0.5, 5}, {ten, 0.9, 9}, {ten, 1, 10}, {ten, 0, 1},
		{series{[]float64{7}}, 0.5, 7}, {series{[]float64{7}}, 0.9, 7}, {series{}, 0.5, 0},
	} {
		if got := test.of.quantile(test.q); got != test.want {
			t.Errorf("quantile %v of %v is %v, want %v", test.q, test.of.values, got, test.want)
		}
	}
}

func TestTable(t *testing.T) {
	rows := []row{
		{"start", "s", [2]series{{[]float64{0.25}}, {[]float64{5, 6, 7}}}, most(5.5)},
		{"throughput", "MiB/s", [2]series{{[]float64{400}}, {[]float64{40.4}}}, nil},
		{"growth", "", [2]series{{[]float64{0}}, {[]float64{0}}}, most(0)},
	}
	want := []string{
		"| start | s | 0.250 | 0.250 | 6 | 7 | 24.0 | ≤ 5.50 | no, over by 0.500 |",
		"| throughput | MiB/s | 400 | 400 | 40 | 40 | 0.1 | – | – |",
		"| growth |  | 0 | 0 | 0 | 0 | – | ≤ 0 | yes |",
	}
	lines := strings.Split(strings.TrimSpace(table(rows)), "\n")
	if diff := cmp.Diff(want, lines[2:]); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}
