package streams

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// Why a message did not open. Each is one decision the application can take;
// [Verdict] groups them. None is returned together with data.
var (
	// ErrPlaintext: the message does not begin like an envelope. Somebody
	// published to the sealed stream past the gateway, or it is not a sealed stream.
	ErrPlaintext = errors.New("streams: message is not sealed")
	// ErrTampered: every cryptographic failure, deliberately one: a changed byte,
	// another key, a malformed envelope, a key record that is not the key's own.
	ErrTampered = errors.New("streams: message was tampered with")
	// ErrRelocated: the message is authentic but was sealed for another subject.
	// For a mirror that changes subjects set [Accept].Subjects.
	ErrRelocated = errors.New("streams: message was moved to another subject")
	// ErrNotAccepted: scope, scheme, authorities, suite or chain are not among
	// those this reader accepts, or the scope is not the one its own rules give.
	ErrNotAccepted = errors.New("streams: message is outside what this reader accepts")
	// ErrDenied: the key service refuses this reader the key. Access may be granted.
	ErrDenied = errors.New("streams: access to the key denied")
	// ErrSuspended: the key is suspended. It may be reinstated.
	ErrSuspended = errors.New("streams: key suspended")
	// ErrDestroyed: the key is gone for good, and with it the message.
	ErrDestroyed = errors.New("streams: key destroyed")
	// ErrUnavailable: the key service gave no usable answer in time.
	ErrUnavailable = errors.New("streams: key service unavailable")
	// ErrUnknownKey: the key service has no record of the key. Right after a
	// message was stored that may be delay; later the message is a forgery or the
	// key directory was lost.
	ErrUnknownKey = errors.New("streams: key unknown to the key service")
	// ErrUnsupported: a version, suite or scheme this release does not know. A
	// newer one may.
	ErrUnsupported = errors.New("streams: unsupported version, suite or scheme")
	// ErrClockSkew: this machine's clock is more than a minute off. Correct it.
	ErrClockSkew = errors.New("streams: clock skew")
	// ErrCheckpoint: the message is none of an application but a checkpoint of the
	// gateway, as stands in a sealed stream that several partitions share. Acknowledge
	// it and go on; [Opener.Messages] and [Opener.Consume] do.
	ErrCheckpoint = errors.New("streams: message is a checkpoint of the gateway")
	// ErrClosed: the [Opener] was closed.
	ErrClosed = errors.New("streams: opener closed")
)

// Action is what to do about an error. The zero Action is invalid.
type Action uint8

const (
	Retry  Action = iota + 1 // try again soon, but not for ever
	Hold                     // keep the message, do not Nak it, try again until access is back
	Reject                   // it will not open: park it, or stop
	Skip                     // it is not for the application: acknowledge it and go on
)

func (a Action) String() string {
	switch a {
	case Retry:
		return "retry"
	case Hold:
		return "hold"
	case Reject:
		return "reject"
	case Skip:
		return "skip"
	}
	return fmt.Sprintf("Action(%d)", uint8(a))
}

// classes says what each error means for a message, and how a dead letter names it.
var classes = []struct {
	err    error
	action Action
	code   string
}{
	{ErrPlaintext, Reject, "plaintext"},
	{ErrTampered, Reject, "tampered"},
	{ErrRelocated, Reject, "relocated"},
	{ErrNotAccepted, Reject, "not_accepted"},
	{ErrDestroyed, Reject, "destroyed"},
	{ErrUnsupported, Reject, "unsupported"},
	{ErrDenied, Hold, "denied"},
	{ErrSuspended, Hold, "suspended"},
	{ErrUnavailable, Hold, "unavailable"},
	{ErrClockSkew, Hold, "clock_skew"},
	{ErrUnknownKey, Retry, "unknown_key"},
	{ErrCheckpoint, Skip, "checkpoint"},
}

// Verdict says what an error of this package means for its message. Errors from
// elsewhere, a handler's or a connection's, are Retry; nil is the invalid Action 0.
func Verdict(err error) Action {
	if err == nil {
		return 0
	}
	for _, c := range classes {
		if errors.Is(err, c.err) {
			return c.action
		}
	}
	return Retry
}

// Code names the class of an error in one word, as dead letters do: "tampered",
// "plaintext", "denied" and so on, "other" for errors from elsewhere.
func Code(err error) string {
	for _, c := range classes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	return "other"
}

// answers maps what the key service says about one key. An answer outside the
// table is ErrUnavailable: only what is known to be final may reject a message.
var answers = []struct{ service, ours error }{
	{keysvc.ErrDenied, ErrDenied},
	{keysvc.ErrNoScope, ErrDenied},
	{keysvc.ErrNotFound, ErrUnknownKey},
	{keysvc.ErrSuspended, ErrSuspended},
	{keysvc.ErrDestroyed, ErrDestroyed},
	{keysvc.ErrClockSkew, ErrClockSkew},
	{keysvc.ErrInvalid, ErrTampered},
	{keysvc.ErrUnsupported, ErrUnsupported},
	{keysvc.ErrUnavailable, ErrUnavailable},
	{keysvc.ErrBusy, ErrUnavailable},
	{keysvc.ErrBadReply, ErrUnavailable},
}

// answerError turns the error of one key into one of ours.
func answerError(err error) error {
	for _, a := range answers {
		if !errors.Is(err, a.service) {
			continue
		}
		if a.ours == ErrTampered {
			return ErrTampered
		}
		return fmt.Errorf("%w: %w", a.ours, err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// callError turns the error of a whole call into one of ours. It says nothing
// about a single message: a wrong audience or an outdated server must hold
// messages, not reject them.
func callError(err error) error {
	for _, hold := range []struct{ service, ours error }{
		{keysvc.ErrDenied, ErrDenied},
		{keysvc.ErrClockSkew, ErrClockSkew},
	} {
		if errors.Is(err, hold.service) {
			return fmt.Errorf("%w: %w", hold.ours, err)
		}
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// envelopeError maps the errors of the byte format.
func envelopeError(err error) error {
	switch {
	case errors.Is(err, envelope.ErrNotEnvelope):
		return ErrPlaintext
	case errors.Is(err, envelope.ErrUnsupported):
		return fmt.Errorf("%w: %v", ErrUnsupported, err)
	}
	return ErrTampered
}

// refused reports whether an answer takes away a key already held.
func refused(err error) bool {
	return errors.Is(err, ErrDenied) || errors.Is(err, ErrSuspended) || errors.Is(err, ErrDestroyed)
}

// transient reports whether an answer says nothing about the key asked for.
func transient(err error) bool {
	return errors.Is(err, ErrUnavailable) || errors.Is(err, ErrClockSkew) || errors.Is(err, ErrClosed) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// OpenError is the error of one message. It never carries plaintext; its text
// names coordinates only.
type OpenError struct {
	Stream   string // "" where unknown
	Consumer string // "" where unknown
	Subject  string // as delivered
	Sequence uint64 // in Stream; 0 where unknown
	KeyID    keysvc.KeyID
	Err      error // wraps one sentinel of this package

	raw jetstream.Msg
}

func (e *OpenError) Error() string {
	var b strings.Builder
	b.WriteString("opening message")
	if e.Sequence != 0 {
		fmt.Fprintf(&b, " %d of stream %q", e.Sequence, e.Stream)
	}
	fmt.Fprintf(&b, " on %q", e.Subject)
	if !e.KeyID.IsZero() {
		fmt.Fprintf(&b, " (key %s)", e.KeyID)
	}
	fmt.Fprintf(&b, ": %v", e.Err)
	return b.String()
}

// Unwrap returns Err.
func (e *OpenError) Unwrap() error { return e.Err }

// Sealed returns the message as it was delivered, still sealed, for a program
// that settles it itself under the [Deliver] policy. It is nil where there was
// no JetStream message.
func (e *OpenError) Sealed() jetstream.Msg { return e.raw }
