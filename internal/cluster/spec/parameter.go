package spec

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// ParameterError is a parameter of a command that can't be met. Nothing was changed when it is returned. It is of the class
// ErrInvalidArgument.
type ParameterError struct {
	// Parameter is what the user wrote the value for: "--name", "NAME" for a positional one.
	Parameter string
	// Value is what the user wrote.
	Value string
	// Reason says what is wrong with the value, or with this host.
	Reason string
	// Fix says what to do: a value that would do, or a command to run first.
	Fix string
}

// Error gives `PARAMETER "VALUE": REASON: FIX`.
func (e *ParameterError) Error() string {
	return fmt.Sprintf("%s %q: %s: %s", e.Parameter, e.Value, e.Reason, e.Fix)
}

// Unwrap gives the class.
func (e *ParameterError) Unwrap() error { return errdefs.ErrInvalidArgument }

// ForParameter names another parameter in a *ParameterError: one value may come from --name here and --cluster-name there.
// Another error, and nil, is returned as it is.
func ForParameter(parameter string, err error) error {
	var p *ParameterError
	if !errors.As(err, &p) {
		return err
	}
	renamed := *p
	renamed.Parameter = parameter
	return &renamed
}
