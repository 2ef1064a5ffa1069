package streams

import "time"

// Fast shortens the pauses of o, for tests against real servers.
func Fast(o *Opener) {
	o.times.holdMin, o.times.holdMax = 20*time.Millisecond, 50*time.Millisecond
	o.times.refuseShort, o.times.refuseFinal = 10*time.Millisecond, 50*time.Millisecond
	o.times.settle = 5 * time.Second
	o.times.heartbeat = time.Second
	o.cache.times = o.times
}

// Held returns how many keys o keeps, and how many refusals.
func Held(o *Opener) (keys, refusals int) {
	o.cache.mu.Lock()
	defer o.cache.mu.Unlock()
	return len(o.cache.held), len(o.cache.refusals)
}

// AnswerError is the mapping of one key's error.
func AnswerError(err error) error { return answerError(err) }

// CallError is the mapping of a whole call's error.
func CallError(err error) error { return callError(err) }

// Ordered reports how a consumer is read.
var Ordered = ordered
