package supervise

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const (
	logFile = "supervisor.log"
	// logSize is how long a log gets before it is moved.
	logSize = 20 << 20
)

// openLog makes a log's directory, too, and moves the log if it is long.
func openLog(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make directory of log: %w", err)
	}
	if err := rotate(path, logSize); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return f, nil
}

// rotate copies a log that is longer than the size to PATH.1 and empties it: its process has it open and goes on appending.
// What is written between the two is lost.
func rotate(path string, size int64) error {
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && info.Size() <= size {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at log: %w", err)
	}
	from, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("rotate log: %w", err)
	}
	defer from.Close()
	to, err := os.OpenFile(path+".1", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("rotate log: %w", err)
	}
	_, err = io.Copy(to, from)
	// A full disk must not keep the log from being emptied: that is what it needs.
	if err = errors.Join(err, to.Close(), os.Truncate(path, 0)); err != nil {
		return fmt.Errorf("rotate log %s: %w", path, err)
	}
	return nil
}

// tail returns the last lines of a log, or why it can't be read.
func tail(path string) string {
	const lines, size = 15, 16 << 10
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err.Error()
	}
	data := make([]byte, min(size, info.Size()))
	n, err := f.ReadAt(data, info.Size()-int64(len(data)))
	if err != nil && !errors.Is(err, io.EOF) {
		return err.Error()
	}
	all := strings.Split(string(bytes.TrimSpace(data[:n])), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
