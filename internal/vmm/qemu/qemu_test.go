package qemu

import (
	"os"
	"testing"

	"bulkhead.dev/bulkhead/internal/vmm/jail"
)

func TestMain(m *testing.M) {
	jail.Main()
	os.Exit(m.Run())
}
