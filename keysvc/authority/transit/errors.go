package transit

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/keyweir/keyweir/keysvc/authority"
)

// fault is what went wrong in one exchange, fit to be shown.
//
// The mapping, by HTTP status and, where one status means several things, by the
// message of the engine:
//
//	400  key not found: NotFound, Destroyed if this process has seen the key
//	     version disallowed by policy (too old, trimmed): Denied; a blob, which
//	     anybody can forge, names the version, so it says nothing about the key
//	     soft-deleted: Disabled
//	     missing client token: Denied
//	     anything else (wrong context, damaged blob): Invalid
//	401, 403  Denied, after one login with fresh credentials
//	404  NotFound or Destroyed, as above; no engine at the mount: NotFound
//	405, 413  Invalid
//	429  Throttled
//	redirects, 412, 472, 473, 5xx, no answer, no JSON: Unavailable
type fault struct {
	sentinel   error
	status     int    // of HTTP; 0 if none
	detail     string // in our words
	retry      bool   // a later attempt may succeed
	retryAfter time.Duration
	refused    bool // the token was not accepted for this
	unclear    bool // the state of the key may be the reason
	garbage    bool // an answer that does not fit the question
}

func (f *fault) String() string {
	if f.status != 0 {
		return fmt.Sprintf("%s (status %d)", f.detail, f.status)
	}
	return f.detail
}

func garbage(format string, args ...any) *fault {
	return &fault{sentinel: authority.ErrUnavailable, detail: "unusable answer: " + fmt.Sprintf(format, args...), garbage: true}
}

func outage(detail string) *fault {
	return &fault{sentinel: authority.ErrUnavailable, detail: detail, retry: true}
}

// classify maps a status of 300 and above. messages are those of the answer, nil
// if it was not one of the API.
func classify(status int, messages []string) *fault {
	f := &fault{sentinel: authority.ErrUnavailable, status: status, detail: "no usable answer"}
	if status == http.StatusTooManyRequests {
		f.sentinel, f.detail, f.retry = authority.ErrThrottled, "rate limit", true
		return f
	}
	if status < 400 {
		f.detail = "redirected: name the active server, or let standby servers forward requests"
		return f
	}
	if messages == nil {
		f.detail, f.retry = "not an answer of the api", status >= 500
		return f
	}
	said := strings.ToLower(strings.Join(messages, "\n"))
	says := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(said, p) {
				return true
			}
		}
		return false
	}
	switch status {
	case http.StatusBadRequest:
		f.sentinel, f.detail = authority.ErrInvalid, "request refused"
		switch {
		case says("missing client token"):
			f.sentinel, f.detail, f.refused = authority.ErrDenied, "no token", true
		case says("encryption key not found"):
			f.sentinel, f.detail, f.unclear = authority.ErrNotFound, "key not found", true
		case says("disallowed by policy", "too old"):
			f.sentinel, f.detail = authority.ErrDenied, "key version disallowed by policy"
		case says("soft delete", "soft-delete", "softly delete", "soft_delete"):
			f.sentinel, f.detail = authority.ErrDisabled, "key soft-deleted"
		case says("invalid ciphertext", "message authentication failed", "unable to decrypt"):
			f.detail = "ciphertext refused"
		default:
			f.unclear = true
		}
	case http.StatusUnauthorized, http.StatusForbidden:
		f.sentinel, f.detail, f.refused = authority.ErrDenied, "permission denied", true
	case http.StatusNotFound:
		f.sentinel, f.detail = authority.ErrNotFound, "not found"
		if says("no handler for route", "unsupported path", "route entry not found") {
			f.detail = "no engine at the mount"
		} else {
			f.unclear = true
		}
	case http.StatusMethodNotAllowed, http.StatusRequestEntityTooLarge:
		f.sentinel, f.detail = authority.ErrInvalid, "request refused"
	default:
		f.detail, f.retry = "the server cannot answer", true
		// An engine may report a soft-deleted key as an internal error.
		f.unclear = status == http.StatusInternalServerError
		if says("sealed") {
			f.detail = "the server is sealed"
		}
	}
	return f
}

// unreachable says in our words why there was no answer.
func unreachable(err error) *fault {
	if dns, ok := errors.AsType[*net.DNSError](err); ok {
		if dns.IsNotFound {
			return outage("host not resolved")
		}
		return outage("host cannot be resolved")
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		f := outage("certificate not accepted")
		f.retry = false
		return f
	}
	if no, ok := errors.AsType[syscall.Errno](err); ok {
		return outage("network: " + no.Error())
	}
	var timeout interface{ Timeout() bool }
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		return outage("no answer in time")
	}
	return outage("no usable answer")
}
