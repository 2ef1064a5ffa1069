package demo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"sync"

	"github.com/nats-io/nats.go"
	"golang.org/x/sync/semaphore"
)

const (
	// aheadBytes bounds the payload between publishing and reading back,
	// aheadMessages the number of messages.
	aheadBytes    = 32 << 20
	aheadMessages = 4096
)

// ledger knows what was published and not yet read back: the hash of every
// payload, in order per subject.
type ledger struct {
	room *semaphore.Weighted // of aheadBytes

	mu      sync.Mutex
	waiting map[string][]entry // by subject
}

type entry struct {
	hash   [sha256.Size]byte
	weight int64
}

func newLedger() *ledger {
	return &ledger{room: semaphore.NewWeighted(aheadBytes), waiting: map[string][]entry{}}
}

// publish waits until there is room for one more message, and notes it.
func (l *ledger) publish(ctx context.Context, subject string, payload []byte) error {
	e := entry{sha256.Sum256(payload), max(int64(len(payload)), aheadBytes/aheadMessages)}
	if err := l.room.Acquire(ctx, e.weight); err != nil {
		return context.Cause(ctx)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting[subject] = append(l.waiting[subject], e)
	return nil
}

// read notes a message that was read back, and reports whether it is the one
// that had to come next on its subject, byte for byte.
func (l *ledger) read(subject string, payload []byte) bool {
	h := sha256.Sum256(payload)
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.waiting[subject]
	if len(q) == 0 {
		return false
	}
	if len(q) > 1 {
		l.waiting[subject] = q[1:]
	} else {
		delete(l.waiting, subject)
	}
	l.room.Release(q[0].weight)
	return q[0].hash == h
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
