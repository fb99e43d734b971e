package config

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// Error is something wrong at one place of a configuration file. It is of the class ErrInvalidArgument.
type Error struct {
	// File is the name that was given to Parse.
	File string
	// Line and Column count from 1; both are 0 when the place isn't known.
	Line, Column int
	// Key is the full name of the key, such as "vmm.binary"; empty for a syntax error.
	Key string
	// Message says what is wrong and what is allowed.
	Message string
}

// Error gives "file:line:column: key: message".
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", e.Line, e.Column)
	}
	if e.Key != "" {
		b.WriteString(": " + e.Key)
	}
	b.WriteString(": " + e.Message)
	return b.String()
}

// Unwrap gives the class.
func (e *Error) Unwrap() error { return errdefs.ErrInvalidArgument }

// invalid is a value that is not allowed; resolve's caller adds file and place.
func invalid(key string, value any, allowed string) *Error {
	return &Error{Key: key, Message: fmt.Sprintf("%#v is not allowed: %s", value, allowed)}
}
