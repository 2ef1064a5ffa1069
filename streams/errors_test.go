package streams_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/keyweir/keyweir/keysvc"
	"github.com/keyweir/keyweir/streams"
)

func TestVerdict(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want streams.Action
	}{
		{nil, 0},
		{streams.ErrPlaintext, streams.Reject},
		{streams.ErrTampered, streams.Reject},
		{streams.ErrRelocated, streams.Reject},
		{streams.ErrNotAccepted, streams.Reject},
		{streams.ErrDestroyed, streams.Reject},
		{streams.ErrUnsupported, streams.Reject},
		{streams.ErrDenied, streams.Hold},
		{streams.ErrSuspended, streams.Hold},
		{streams.ErrUnavailable, streams.Hold},
		{streams.ErrClockSkew, streams.Hold},
		{streams.ErrUnknownKey, streams.Retry},
		{streams.ErrClosed, streams.Retry},
		{errors.New("handler failed"), streams.Retry},
		{context.Canceled, streams.Retry},
		{&streams.OpenError{Err: fmt.Errorf("%w: more", streams.ErrSuspended)}, streams.Hold},
		{fmt.Errorf("reading: %w", &streams.OpenError{Err: streams.ErrTampered}), streams.Reject},
	} {
		if got := streams.Verdict(tc.err); got != tc.want {
			t.Errorf("Verdict(%v) = %v, want %v", tc.err, got, tc.want)
		}
	}
}

func TestActionString(t *testing.T) {
	got := fmt.Sprint(streams.Retry, streams.Hold, streams.Reject, streams.Action(0), streams.Action(9))
	if want := "retry hold reject Action(0) Action(9)"; got != want {
		t.Errorf("actions print as %q, want %q", got, want)
	}
}

// The two mappings differ on purpose: what is said about one key may reject its
// message, what is said about a whole call never may.
func TestServiceErrors(t *testing.T) {
	for _, tc := range []struct{ service, key, call error }{
		{keysvc.ErrDenied, streams.ErrDenied, streams.ErrDenied},
		{keysvc.ErrNoScope, streams.ErrDenied, streams.ErrUnavailable},
		{keysvc.ErrNotFound, streams.ErrUnknownKey, streams.ErrUnavailable},
		{keysvc.ErrSuspended, streams.ErrSuspended, streams.ErrUnavailable},
		{keysvc.ErrDestroyed, streams.ErrDestroyed, streams.ErrUnavailable},
		{keysvc.ErrUnavailable, streams.ErrUnavailable, streams.ErrUnavailable},
		{keysvc.ErrBusy, streams.ErrUnavailable, streams.ErrUnavailable},
		{&keysvc.ClockSkewError{Offset: 1e12}, streams.ErrClockSkew, streams.ErrClockSkew},
		{keysvc.ErrInvalid, streams.ErrTampered, streams.ErrUnavailable},
		{keysvc.ErrUnsupported, streams.ErrUnsupported, streams.ErrUnavailable},
		{keysvc.ErrBadReply, streams.ErrUnavailable, streams.ErrUnavailable},
		{errors.New("unheard of"), streams.ErrUnavailable, streams.ErrUnavailable},
	} {
		if got := streams.AnswerError(fmt.Errorf("%w: detail", tc.service)); !errors.Is(got, tc.key) {
			t.Errorf("answer %v becomes %v, want %v", tc.service, got, tc.key)
		}
		got := streams.CallError(fmt.Errorf("%w: detail", tc.service))
		if !errors.Is(got, tc.call) || streams.Verdict(got) != streams.Hold {
			t.Errorf("call error %v becomes %v (%v), want %v (hold)", tc.service, got, streams.Verdict(got), tc.call)
		}
	}
	if got := streams.AnswerError(keysvc.ErrInvalid).Error(); got != streams.ErrTampered.Error() {
		t.Errorf("a cryptographic failure tells %q, want nothing but %q", got, streams.ErrTampered)
	}
}

func TestOpenErrorText(t *testing.T) {
	e := &streams.OpenError{Stream: "S", Consumer: "c", Subject: "sealed.a", Sequence: 7, KeyID: keysvc.KeyID{1}, Err: streams.ErrTampered}
	for _, part := range []string{`message 7 of stream "S"`, `"sealed.a"`, "0100", streams.ErrTampered.Error()} {
		if !strings.Contains(e.Error(), part) {
			t.Errorf("Error() = %q, lacks %q", e.Error(), part)
		}
	}
	if e.Sealed() != nil {
		t.Error("Sealed() of an error without a message is not nil")
	}
}
