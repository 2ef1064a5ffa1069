package keysvc

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

// What a key service can answer. Each is one decision the caller can take.
var (
	// ErrDenied: the policy does not allow this principal this operation on this
	// scope, or the principal is not enrolled. Ask the platform team for access.
	ErrDenied = errors.New("keysvc: access denied")
	// ErrNoScope: no scope rule matches the subject. Nothing is sealed for it.
	ErrNoScope = errors.New("keysvc: no scope rule matches")
	// ErrNotFound: the key service does not know the key ID, and no record was given.
	ErrNotFound = errors.New("keysvc: unknown key")
	// ErrSuspended: the owner of the key, or the authority's operator, disabled
	// or suspended it. It may come back.
	ErrSuspended = errors.New("keysvc: key suspended")
	// ErrDestroyed: the key is gone for good; so is what it sealed.
	ErrDestroyed = errors.New("keysvc: key destroyed")
	// ErrUnavailable: no usable answer in time: key service or authority cannot be
	// reached and the stale limit has passed. Retry.
	ErrUnavailable = errors.New("keysvc: unavailable")
	// ErrBusy: the key service's queue is full. Retry after a pause.
	ErrBusy = errors.New("keysvc: busy")
	// ErrClockSkew: the clocks of requester and key service differ by more than a
	// minute; see [ClockSkewError] for the offset. Correct the clock.
	ErrClockSkew = errors.New("keysvc: clock skew")
	// ErrInvalid: the request is wrong: malformed, addressed to another service, a
	// record that does not match its key ID or does not open.
	ErrInvalid = errors.New("keysvc: invalid request")
	// ErrMisdelivered: this delivery of the request was not the requester's: a
	// copy, or one on the subject of another operation. Anybody who sees a request
	// can provoke that answer to it, so the client goes on waiting for another one;
	// callers see it only as the cause inside ErrUnavailable.
	ErrMisdelivered = errors.New("keysvc: request misdelivered")
	// ErrUnsupported: the key service does not know the operation, exchange suite,
	// scheme or record version.
	ErrUnsupported = errors.New("keysvc: unsupported")
	// ErrBadReply: an answer that the pinned service did not sign for this very
	// request, or that does not open. The client counts it and goes on waiting;
	// callers see it only as the cause inside ErrUnavailable.
	ErrBadReply = errors.New("keysvc: reply rejected")
)

// codes maps sentinels to what travels in a signed reply. One table, both ways.
var codes = []struct {
	err  error
	code string
}{
	{ErrDenied, "denied"},
	{ErrNoScope, "no_scope"},
	{ErrNotFound, "not_found"},
	{ErrSuspended, "suspended"},
	{ErrDestroyed, "destroyed"},
	{ErrUnavailable, "unavailable"},
	{ErrBusy, "busy"},
	{ErrClockSkew, "clock_skew"},
	{ErrInvalid, "invalid"},
	{ErrMisdelivered, "misdelivered"},
	{ErrUnsupported, "unsupported"},
}

// maxErrorText bounds the text of an error on the wire, in bytes.
const maxErrorText = 512

// WireError is an error as it travels in a reply.
type WireError struct {
	Code string `json:"code"`
	Text string `json:"text"`
	// OffsetMillis is the service's clock minus the request's time, for
	// clock_skew; 0 otherwise.
	OffsetMillis int64 `json:"offset_ms"`
}

// ToWire turns err into its wire form. An error outside the table becomes
// "unavailable" with no detail: what is unforeseen is not told to the network.
func ToWire(err error) *WireError {
	if err == nil {
		return nil
	}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			w := &WireError{Code: c.code, Text: bounded(err.Error())}
			var skew *ClockSkewError
			if errors.As(err, &skew) {
				w.OffsetMillis = skew.Offset.Milliseconds()
			}
			return w
		}
	}
	return &WireError{Code: "unavailable", Text: "internal error of the key service"}
}

// Err turns a wire error back into one that errors.Is matches against the
// sentinels. A nil WireError is a nil error; an unknown code is [ErrUnsupported].
func (w *WireError) Err() error {
	if w == nil {
		return nil
	}
	if w.Code == "clock_skew" {
		ms := min(max(w.OffsetMillis, -maxOffset), maxOffset)
		return &ClockSkewError{Offset: time.Duration(ms) * time.Millisecond}
	}
	for _, c := range codes {
		if w.Code == c.code {
			text := bounded(w.Text)
			if !strings.HasPrefix(text, c.err.Error()) {
				text = strings.TrimSuffix(c.err.Error()+": "+text, ": ")
			}
			return &serviceError{text: text, sentinel: c.err}
		}
	}
	return fmt.Errorf("%w: error code %.32q", ErrUnsupported, w.Code)
}

// maxOffset is the largest offset, in milliseconds, that fits a time.Duration.
const maxOffset = math.MaxInt64 / int64(time.Millisecond)

// bounded cuts text to maxErrorText, between two characters.
func bounded(text string) string {
	text = strings.ToValidUTF8(text, "?")
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "")
	}
	return text
}

// serviceError keeps the service's own words, which begin with the sentinel's
// text.
type serviceError struct {
	text     string
	sentinel error
}

func (e *serviceError) Error() string { return e.text }
func (e *serviceError) Unwrap() error { return e.sentinel }

// ClockSkewError is the [ErrClockSkew] that says by how much.
type ClockSkewError struct {
	Offset time.Duration // the service's clock minus the requester's
}

func (e *ClockSkewError) Error() string {
	return fmt.Sprintf("%v: the key service's clock is %v ahead of ours", ErrClockSkew, e.Offset)
}

func (e *ClockSkewError) Unwrap() error { return ErrClockSkew }
