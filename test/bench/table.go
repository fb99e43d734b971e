package main

import (
	"fmt"
	"slices"
	"strings"
)

// series is a number of measurements of one thing.
type series struct{ values []float64 }

func (s *series) add(v float64) { s.values = append(s.values, v) }

// quantile is the smallest value that at least the fraction q of all are not above.
func (s *series) quantile(q float64) float64 {
	if len(s.values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s.values))
	rank := int(q*float64(len(sorted)) + 0.999999)
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// show is a quantile as text, a dash where nothing was measured.
func (s *series) show(q float64) string {
	if len(s.values) == 0 {
		return "–"
	}
	return number(s.quantile(q))
}

// row is a line of the table: runc's measurements, then Bulkhead's.
type row struct {
	name, unit string
	values     [2]series
	// limit is what Bulkhead's median must not exceed; nil: there is no aim.
	limit *float64
}

func most(v float64) *float64 { return &v }

// table lays the rows out as Markdown.
func table(rows []row) string {
	var b strings.Builder
	b.WriteString("| what | unit | runc p50 | runc p90 | bulkhead p50 | bulkhead p90 | ratio of p50 | aim | met |\n")
	b.WriteString("|---|---|---:|---:|---:|---:|---:|---:|---|\n")
	for _, r := range rows {
		runc, ours := &r.values[0], &r.values[1]
		ratio, aim, met := "–", "–", "–"
		if base := runc.quantile(0.5); base != 0 {
			ratio = fmt.Sprintf("%.1f", ours.quantile(0.5)/base)
		}
		if r.limit != nil {
			aim, met = "≤ "+number(*r.limit), "yes"
			if p50 := ours.quantile(0.5); p50 > *r.limit {
				met = "no, over by " + number(p50-*r.limit)
			}
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", r.name, r.unit,
			runc.show(0.5), runc.show(0.9), ours.show(0.5), ours.show(0.9), ratio, aim, met)
	}
	return b.String()
}

// number shows three significant digits, and no more places than help.
func number(v float64) string {
	switch {
	case v == float64(int64(v)):
		return fmt.Sprint(int64(v))
	case v < 1:
		return fmt.Sprintf("%.3f", v)
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.0f", v)
	}
}
