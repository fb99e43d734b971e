package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// suffixes are the units of a size, largest first. Decimal units are left out on purpose: guest memory comes in pages.
var suffixes = []struct {
	name  string
	shift uint
}{{"Ti", 40}, {"Gi", 30}, {"Mi", 20}, {"Ki", 10}}

// ParseSize reads a number of bytes: digits, and optionally Ki, Mi, Gi or Ti (powers of 1024).
func ParseSize(text string) (int64, error) {
	digits, shift := text, uint(0)
	for _, s := range suffixes {
		if rest, ok := strings.CutSuffix(text, s.name); ok {
			digits, shift = rest, s.shift
			break
		}
	}
	for _, r := range digits {
		if r < '0' || r > '9' {
			return 0, fmt.Errorf(`%q is no size: write a whole number and Ki, Mi, Gi or Ti, like "192Mi"`, text)
		}
	}
	if digits == "" {
		return 0, fmt.Errorf(`%q is no size: write a whole number and Ki, Mi, Gi or Ti, like "192Mi"`, text)
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is too large: the largest size is 8388607Ti", text)
	}
	return n << shift, nil
}

// FormatSize writes a size in the largest unit that divides it, so that ParseSize reads the same number back.
func FormatSize(bytes int64) string {
	for _, s := range suffixes {
		if bytes != 0 && bytes%(1<<s.shift) == 0 {
			return strconv.FormatInt(bytes>>s.shift, 10) + s.name
		}
	}
	return strconv.FormatInt(bytes, 10)
}
