package authority

import "errors"

// What an authority can answer. Denied, disabled, not found and destroyed are
// decisions of the authority: who meets one stops using the key at once.
// Throttled and unavailable are not decisions: keys already opened stay usable
// until their stale limit.
var (
	// ErrNotFound: the authority does not know the managed key.
	ErrNotFound = errors.New("authority: managed key not found")
	// ErrDenied: the credentials may not use the managed key this way.
	ErrDenied = errors.New("authority: access denied")
	// ErrDisabled: the managed key exists but is disabled or pending deletion.
	ErrDisabled = errors.New("authority: managed key disabled")
	// ErrDestroyed: the managed key existed and its material is gone for good.
	ErrDestroyed = errors.New("authority: managed key destroyed")
	// ErrThrottled: the authority refused for its rate limit, after retries.
	ErrThrottled = errors.New("authority: throttled")
	// ErrUnavailable: no usable answer: network, time-out, 5xx, closed, cancelled.
	ErrUnavailable = errors.New("authority: unavailable")
	// ErrInvalid: the request or the wrap is wrong: empty or oversized input,
	// another context, another key's wrap, a damaged blob. Retrying is useless.
	ErrInvalid = errors.New("authority: invalid request or wrapped key")
)

// IsOutage reports whether err says nothing about the key itself, only that the
// authority could not be asked: [ErrThrottled] or [ErrUnavailable].
func IsOutage(err error) bool {
	return errors.Is(err, ErrThrottled) || errors.Is(err, ErrUnavailable)
}

// IsDecision reports whether err is the authority's own refusal of the key:
// [ErrNotFound], [ErrDenied], [ErrDisabled] or [ErrDestroyed].
func IsDecision(err error) bool {
	return errors.Is(err, ErrNotFound) || errors.Is(err, ErrDenied) ||
		errors.Is(err, ErrDisabled) || errors.Is(err, ErrDestroyed)
}
