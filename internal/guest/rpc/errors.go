package rpc

import (
	"context"
	"errors"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// classes are the errors that cross the channel with their class; all others arrive as ErrUnknown.
var classes = []struct {
	err  error
	code codes.Code
}{
	{errdefs.ErrInvalidArgument, codes.InvalidArgument},
	{errdefs.ErrNotFound, codes.NotFound},
	{errdefs.ErrAlreadyExists, codes.AlreadyExists},
	{errdefs.ErrFailedPrecondition, codes.FailedPrecondition},
	{errdefs.ErrUnavailable, codes.Unavailable},
	{errdefs.ErrNotImplemented, codes.Unimplemented},
	{errdefs.ErrOutOfRange, codes.OutOfRange},
	{errdefs.ErrResourceExhausted, codes.ResourceExhausted},
	{errdefs.ErrPermissionDenied, codes.PermissionDenied},
	{errdefs.ErrAborted, codes.Aborted},
	{errdefs.ErrDataLoss, codes.DataLoss},
	{errdefs.ErrInternal, codes.Internal},
	{context.Canceled, codes.Canceled},
	{context.DeadlineExceeded, codes.DeadlineExceeded},
}

// maxErrorText is how much of an error's text is taken from the guest.
const maxErrorText = 4 << 10

// toStatus is the guest's half: it gives an error its code.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	for _, c := range classes {
		if errors.Is(err, c.err) {
			return status.Error(c.code, err.Error())
		}
	}
	return status.Error(codes.Unknown, err.Error())
}

// remoteError is an error that the guest reported: its text is the guest's, made printable, its class ours.
type remoteError struct {
	text  string
	class error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.class }

// fromStatus is the host's half. The text is hostile: it is cut and made printable.
func fromStatus(s *spb.Status) error {
	if s == nil || s.Code == int32(codes.OK) {
		return nil
	}
	var class error = errdefs.ErrUnknown
	for _, c := range classes {
		if s.Code == int32(c.code) {
			class = c.err
		}
	}
	return &remoteError{text: printable(s.Message), class: class}
}

func printable(s string) string {
	if len(s) > maxErrorText {
		s = s[:maxErrorText] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
