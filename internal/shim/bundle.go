package shim

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"bulkhead.dev/bulkhead/internal/config"
)

// Names of the files in the bundle; the package comment says what they hold.
const (
	addressFile = "address"
	pidFile     = "shim.pid"
	shimFile    = "bulkhead-shim.json"
	sandboxFile = "bulkhead-sandbox.json"
)

// shimRecord names the shim's process for ever. Version history:
//
//	1  first version
type shimRecord struct {
	Version   int    `json:"version"`
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"` // field 22 of /proc/PID/stat
}

// sandboxRecord says what a dead shim's VM needs to be cleaned up. The configuration is kept as it was, since the file may
// have changed since. Version history:
//
//	1  first version
type sandboxRecord struct {
	Version int           `json:"version"`
	Dir     string        `json:"dir"`
	Config  config.Config `json:"config"`
}

// writeFile writes a file of the bundle atomically: "delete" may look at any time.
func writeFile(bundle, name string, data []byte) error {
	temporary := filepath.Join(bundle, "."+name+".new")
	if err := os.WriteFile(temporary, data, 0o600); err != nil {
		return fmt.Errorf("write %s of bundle %s: %w", name, bundle, err)
	}
	if err := os.Rename(temporary, filepath.Join(bundle, name)); err != nil {
		return fmt.Errorf("write %s of bundle %s: %w", name, bundle, err)
	}
	return nil
}

func writeRecord(bundle, name string, record any) error {
	data, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("write %s of bundle %s: %w", name, bundle, err)
	}
	return writeFile(bundle, name, data)
}

// readRecord reports whether there is a record.
func readRecord(bundle, name string, record any) (bool, error) {
	data, err := os.ReadFile(filepath.Join(bundle, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s of bundle %s: %w", name, bundle, err)
	}
	if err := json.Unmarshal(data, record); err != nil {
		return false, fmt.Errorf("read %s of bundle %s: %w", name, bundle, err)
	}
	return true, nil
}

// readAddress returns the address in a bundle; empty: none.
func readAddress(bundle string) string {
	data, err := os.ReadFile(filepath.Join(bundle, addressFile))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}
