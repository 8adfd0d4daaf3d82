// Every error of the package, one tree, as docs/errors.md has it.
//
//	Error                       an interface: all that this package fails with on purpose
//	├── *InvalidMessage         a name, id, payload or frame breaks a rule
//	│   └── *LimitExceeded      ... because it is too large or too deep
//	├── *AddressError           a URL that cannot be dialled, or listened at
//	├── *LinkError              a link could not be made: we concluded so
//	├── *Closed                 it was closed here, by Close
//	└── *RequestError           a request ended without its answer: Code, Reason, At, Delivered
//	    ├── *Unhandled          UNIMPLEMENTED
//	    ├── *DeadlineExceeded   DEADLINE_EXCEEDED; also context.DeadlineExceeded
//	    ├── *Unavailable        UNAVAILABLE
//	    ├── *Cancelled          CANCELLED; also context.Canceled
//	    ├── *Refused            all others: a rule, a bound, or the handler said no
//	    └── *HandlerFailed      INTERNAL
//
// errors.As finds a kind and each kind above it.

package exchange

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Error is what this package fails with on purpose.
type Error interface {
	error
	exchangeError()
}

// InvalidMessage says that a name, an id, a payload or a frame breaks a rule of the protocol.
type InvalidMessage struct{ Text string }

func (e *InvalidMessage) Error() string { return e.Text }
func (*InvalidMessage) exchangeError()  {}

// LimitExceeded says that something is larger, longer or deeper than the limit its text names.
type LimitExceeded struct{ InvalidMessage }

// Unwrap gives the InvalidMessage that it is.
func (e *LimitExceeded) Unwrap() error { return &e.InvalidMessage }

// AddressError is about a URL that no transport takes, or that cannot be listened at.
type AddressError struct{ Text string }

func (e *AddressError) Error() string { return e.Text }
func (*AddressError) exchangeError()  {}

// LinkError says that a link could not be made, or was lost.
type LinkError struct{ Text string }

func (e *LinkError) Error() string { return e.Text }
func (*LinkError) exchangeError()  {}

// Closed says that the exchange on which something was called is closed, and will never do it.
type Closed struct{ Exchange string }

func (e *Closed) Error() string { return "the exchange " + e.Exchange + " is closed" }
func (*Closed) exchangeError()  {}

// Delivered says whether a handler may have seen a message.
type Delivered string

// What is known of that.
const (
	DeliveredNo      Delivered = "no"      // surely not
	DeliveredUnknown Delivered = "unknown" // nobody knows
)

// RequestError says that a request ended without its answer, or what became of a send.
type RequestError struct {
	Code      codes.Code
	Reason    string    // an upper-case word for programs
	Text      string    // a sentence for people
	At        string    // the id of the exchange that concluded it
	Delivered Delivered // of an Unavailable
}

func (e *RequestError) Error() string { return e.Text }
func (*RequestError) exchangeError()  {}

// Unhandled says that nobody within reach handles the name, or has the id.
type Unhandled struct{ RequestError }

// DeadlineExceeded says that the time given was over before the answer came.
type DeadlineExceeded struct{ RequestError }

// Unavailable says that the way to the handler was lost, or could not be found out in time.
type Unavailable struct{ RequestError }

// Cancelled says that the request was withdrawn before it was answered.
type Cancelled struct{ RequestError }

// Refused says that whoever took the message refused it: a rule, a bound, or its handler said no.
// A handler that returns one, made by [Refuse], says so to its caller.
type Refused struct{ RequestError }

// HandlerFailed says that the handler failed. The details are in the log of At.
type HandlerFailed struct{ RequestError }

// Unwrap gives the RequestError that it is.
func (e *Unhandled) Unwrap() error { return &e.RequestError }

// Unwrap gives the RequestError that it is, and the error of package context.
func (e *DeadlineExceeded) Unwrap() []error {
	return []error{&e.RequestError, context.DeadlineExceeded}
}

// Unwrap gives the RequestError that it is.
func (e *Unavailable) Unwrap() error { return &e.RequestError }

// Unwrap gives the RequestError that it is, and the error of package context.
func (e *Cancelled) Unwrap() []error { return []error{&e.RequestError, context.Canceled} }

// Unwrap gives the RequestError that it is.
func (e *Refused) Unwrap() error { return &e.RequestError }

// Unwrap gives the RequestError that it is.
func (e *HandlerFailed) Unwrap() error { return &e.RequestError }

// Refuse is the error with which a handler says no, in words that are for its caller. reason is an
// upper-case word for programs; empty, it is REFUSED.
func Refuse(code codes.Code, reason, format string, args ...any) error {
	return &Refused{RequestError{Code: code, Reason: or(reason, "REFUSED"), Text: fmt.Sprintf(format, args...)}}
}

// typed is the error of the tree that stands for a code.
func typed(e RequestError) error {
	switch e.Code {
	case codes.Unimplemented:
		return &Unhandled{e}
	case codes.DeadlineExceeded:
		return &DeadlineExceeded{e}
	case codes.Unavailable:
		return &Unavailable{e}
	case codes.Canceled:
		return &Cancelled{e}
	case codes.Internal:
		return &HandlerFailed{e}
	case codes.Unknown:
		return &e
	default:
		return &Refused{e}
	}
}

// GRPCStatus is the error as others of gRPC know it, with a google.rpc.ErrorInfo: see package status of grpc-go.
func (e *RequestError) GRPCStatus() *status.Status { return status.FromProto(packStatus(e)) }

// GRPCStatus is the error as others of gRPC know it.
func (e *InvalidMessage) GRPCStatus() *status.Status { return status.FromProto(packStatus(e)) }

// GRPCStatus is the error as others of gRPC know it.
func (e *LimitExceeded) GRPCStatus() *status.Status { return status.FromProto(packStatus(e)) }

// GRPCStatus is the error as others of gRPC know it.
func (e *AddressError) GRPCStatus() *status.Status {
	return (&RequestError{Code: codes.InvalidArgument, Reason: "ADDRESS", Text: e.Text}).GRPCStatus()
}

// GRPCStatus is the error as others of gRPC know it.
func (e *LinkError) GRPCStatus() *status.Status {
	return (&RequestError{Code: codes.Unavailable, Reason: "LINK", Text: e.Text, Delivered: DeliveredNo}).GRPCStatus()
}

// GRPCStatus is the error as others of gRPC know it.
func (e *Closed) GRPCStatus() *status.Status {
	return (&RequestError{Code: codes.FailedPrecondition, Reason: "CLOSED", Text: e.Error()}).GRPCStatus()
}

func invalid(format string, args ...any) error {
	return &InvalidMessage{fmt.Sprintf(format, args...)}
}

func tooMuch(format string, args ...any) error {
	return &LimitExceeded{InvalidMessage{fmt.Sprintf(format, args...)}}
}
