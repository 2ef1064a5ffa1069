package demo

import (
	"bytes"
	"crypto/sha256"
	"sync"

	"github.com/nats-io/nats.go"
)

// ledger knows what was published and not yet read back: the hash of every
// payload, in order per subject. It is bounded by the window.
type ledger struct {
	slots chan struct{} // one per message between publishing and reading

	mu      sync.Mutex
	waiting map[string][][sha256.Size]byte // by subject
}

func newLedger(window int) *ledger {
	return &ledger{slots: make(chan struct{}, window), waiting: map[string][][sha256.Size]byte{}}
}

// published notes a message that is about to be published. It wants a slot,
// which the caller took.
func (l *ledger) published(subject string, payload []byte) {
	h := sha256.Sum256(payload)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting[subject] = append(l.waiting[subject], h)
}

// read notes a message that was read back, and reports whether it is the one
// that had to come next on its subject, byte for byte.
func (l *ledger) read(subject string, payload []byte) bool {
	h := sha256.Sum256(payload)
	l.mu.Lock()
	q := l.waiting[subject]
	ok := len(q) > 0 && q[0] == h
	if len(q) > 1 {
		l.waiting[subject] = q[1:]
	} else {
		delete(l.waiting, subject)
	}
	l.mu.Unlock()
	if len(q) > 0 {
		<-l.slots
	}
	return ok
}

// left is how many messages were published and never read back.
func (l *ledger) left() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, q := range l.waiting {
		n += len(q)
	}
	return n
}

// window is how long a piece of payload must be to count as readable.
const window = 16

// readable reports whether any of up to 16 pieces of payload, spread over it,
// stands in the sealed message as it is stored. Short payloads are looked for as
// a whole, in the envelope only: a header may hold the same digits.
func readable(payload, sealed []byte, headers nats.Header) bool {
	if len(payload) < 4 {
		return false // it would stand in random bytes by chance
	}
	if len(payload) < window {
		return bytes.Contains(sealed, payload)
	}
	step := max(1, (len(payload)-window)/15)
	for at := 0; at+window <= len(payload); at += step {
		piece := payload[at : at+window]
		if bytes.Contains(sealed, piece) {
			return true
		}
		for name, values := range headers {
			if bytes.Contains([]byte(name), piece) {
				return true
			}
			for _, v := range values {
				if bytes.Contains([]byte(v), piece) {
					return true
				}
			}
		}
	}
	return false
}
