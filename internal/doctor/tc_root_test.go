//go:build root

package doctor

import (
	"os"
	"testing"
)

func TestTrafficControlLeavesNothing(t *testing.T) {
	before, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := tryTrafficControl(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	after, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range after {
		if name := link.Name(); name == "doctor0" || name == "doctor1" || name == "doctor2" {
			t.Errorf("left %s behind (before: %d links, after: %d)", name, len(before), len(after))
		}
	}
}
