package keysvc_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/keyweir/keyweir/keysvc"
)

// sentinels are the errors documented to travel, and their codes on the wire.
var sentinels = map[string]error{
	"denied": keysvc.ErrDenied, "no_scope": keysvc.ErrNoScope, "not_found": keysvc.ErrNotFound,
	"suspended": keysvc.ErrSuspended, "destroyed": keysvc.ErrDestroyed, "unavailable": keysvc.ErrUnavailable,
	"busy": keysvc.ErrBusy, "clock_skew": keysvc.ErrClockSkew, "invalid": keysvc.ErrInvalid,
	"unsupported": keysvc.ErrUnsupported, "misdelivered": keysvc.ErrMisdelivered,
}

func TestErrorTable(t *testing.T) {
	if got := keysvc.Codes(); keysvc.CodeCount() != len(sentinels) || len(got) != len(sentinels) {
		t.Fatalf("the table has %d codes (%d distinct), want %d", keysvc.CodeCount(), len(got), len(sentinels))
	}
	for code, sentinel := range sentinels {
		if keysvc.Codes()[code] != sentinel {
			t.Errorf("code %q is %v, want %v", code, keysvc.Codes()[code], sentinel)
		}
		for _, sent := range []error{sentinel, fmt.Errorf("%w: scope %q", sentinel, "tenant/acme"), fmt.Errorf("opening: %w", sentinel)} {
			w := keysvc.ToWire(sent)
			if w.Code != code || w.Text != sent.Error() {
				t.Errorf("ToWire(%v) = %+v, want code %q and the same text", sent, w, code)
			}
			got := viaJSON(t, w).Err()
			for other, s := range sentinels {
				if errors.Is(got, s) != (other == code) {
					t.Errorf("%v became %v, which errors.Is(%v) = %t", sent, got, s, errors.Is(got, s))
				}
			}
			if !strings.Contains(got.Error(), sentinel.Error()) {
				t.Errorf("%v became %q without the sentinel's words", sent, got)
			}
		}
	}
}

func viaJSON(t *testing.T, w *keysvc.WireError) *keysvc.WireError {
	t.Helper()
	b, err := json.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	out := new(keysvc.WireError)
	if err := json.Unmarshal(b, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestErrorUnforeseen gives what the table does not hold: nothing of it travels.
func TestErrorUnforeseen(t *testing.T) {
	const detail = "hunter2"
	for _, err := range []error{
		errors.New(detail), &fs.PathError{Op: "open", Path: "/var/" + detail, Err: fs.ErrPermission},
		context.DeadlineExceeded, fmt.Errorf("%w: %s", keysvc.ErrBadReply, detail),
	} {
		want := &keysvc.WireError{Code: "unavailable", Text: "internal error of the key service"}
		w := keysvc.ToWire(err)
		if diff := cmp.Diff(want, w); diff != "" {
			t.Errorf("ToWire(%v): %s", err, diff)
		}
		if got := w.Err(); !errors.Is(got, keysvc.ErrUnavailable) || strings.Contains(got.Error(), detail) {
			t.Errorf("ToWire(%v).Err() = %v", err, got)
		}
	}
	if w := keysvc.ToWire(nil); w != nil || w.Err() != nil {
		t.Errorf("nil became %v, %v", w, w.Err())
	}
}

func TestErrorCodeUnknown(t *testing.T) {
	for _, code := range []string{"", "Denied", "denied ", "bad_reply", strings.Repeat("x", 100_000)} {
		err := (&keysvc.WireError{Code: code, Text: "t"}).Err()
		if !errors.Is(err, keysvc.ErrUnsupported) || len(err.Error()) > 200 {
			t.Errorf("code %.20q became %.300v, want a short ErrUnsupported", code, err)
		}
	}
}

func TestErrorText(t *testing.T) {
	tests := []struct{ text, want string }{
		{"", "keysvc: access denied"},
		{"not you", "keysvc: access denied: not you"},
		{"keysvc: access denied: not you", "keysvc: access denied: not you"},
	}
	for _, tt := range tests {
		if got := (&keysvc.WireError{Code: "denied", Text: tt.text}).Err().Error(); got != tt.want {
			t.Errorf("text %q gives %q, want %q", tt.text, got, tt.want)
		}
	}
	for _, r := range []string{"x", "ü", "日", "😀", "x\xff"} {
		long := fmt.Errorf("%w: %s", keysvc.ErrInvalid, strings.Repeat(r, 5000))
		w := keysvc.ToWire(long)
		if len(w.Text) > keysvc.MaxErrorText || len(w.Text) < keysvc.MaxErrorText-4 || !utf8.ValidString(w.Text) {
			t.Errorf("5000 times %q: text of %d bytes, valid UTF-8 %t", r, len(w.Text), utf8.ValidString(w.Text))
		}
		if got := (&keysvc.WireError{Code: "invalid", Text: long.Error()}).Err(); len(got.Error()) > keysvc.MaxErrorText+50 {
			t.Errorf("5000 times %q received: text of %d bytes", r, len(got.Error()))
		}
	}
}

func TestClockSkewOffset(t *testing.T) {
	for _, d := range []time.Duration{0, time.Millisecond, 61 * time.Second, -72 * time.Hour, math.MaxInt64, math.MinInt64} {
		w := viaJSON(t, keysvc.ToWire(fmt.Errorf("checking: %w", &keysvc.ClockSkewError{Offset: d})))
		if want := d.Milliseconds(); w.OffsetMillis != want || w.Code != "clock_skew" {
			t.Errorf("offset %v travels as %+v", d, w)
		}
		var skew *keysvc.ClockSkewError
		if err := w.Err(); !errors.As(err, &skew) || !errors.Is(err, keysvc.ErrClockSkew) || skew.Offset != d.Truncate(time.Millisecond) {
			t.Errorf("offset %v came back as %v", d, err)
		}
	}
	// What a Duration cannot hold must not turn round.
	for _, ms := range []int64{math.MaxInt64, math.MinInt64} {
		var skew *keysvc.ClockSkewError
		if !errors.As((&keysvc.WireError{Code: "clock_skew", OffsetMillis: ms}).Err(), &skew) || (skew.Offset > 0) != (ms > 0) {
			t.Errorf("offset of %d ms became %v", ms, skew.Offset)
		}
	}
	text := (&keysvc.ClockSkewError{Offset: 90 * time.Second}).Error()
	if want := "keysvc: clock skew: the key service's clock is 1m30s ahead of ours"; text != want {
		t.Errorf("text %q, want %q", text, want)
	}
}
