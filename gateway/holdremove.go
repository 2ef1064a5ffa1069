package gateway

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// removal lets go of held messages that were released, as the releaser does of
// source messages: once their sealed copies are acknowledged, and safe. Filled by
// the worker, emptied by the keeper.
type removal struct {
	mu   sync.Mutex
	list []removable // guarded by mu
}

// removable is a scope's row of held messages.
type removable struct {
	tag    string
	upTo   uint64    // sequence of the hold stream
	sealed uint64    // the last one's sequence in the sealed stream, or above
	at     time.Time // when that was acknowledged; zero: not yet
}

func (r *removal) add(tag string, upTo, sealed uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, removable{tag: tag, upTo: upTo, sealed: sealed})
}

// due returns what may be removed, given how far the sealed stream acknowledged.
func (r *removal) due(acked uint64, now time.Time, lag time.Duration) (out []removable) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.list {
		e := &r.list[i]
		if e.at.IsZero() && acked >= e.sealed {
			e.at = now
		}
		if !e.at.IsZero() && now.Sub(e.at) >= lag {
			out = append(out, *e)
		}
	}
	return out
}

func (r *removal) done(e removable) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.list {
		if r.list[i] == e {
			r.list = append(r.list[:i], r.list[i+1:]...)
			return
		}
	}
}

// remove removes what is due from the hold stream.
func (h *holds) remove(ctx context.Context, acked uint64, lag time.Duration) error {
	for _, e := range h.removal.due(acked, time.Now(), lag) {
		if err := h.purge(ctx, &e); err != nil {
			return fmt.Errorf("removing released messages from stream %s: %w", h.d.config.Name, err)
		}
		h.removal.done(e)
	}
	return nil
}

func (h *holds) purge(ctx context.Context, e *removable) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := h.w.sealedJS.Stream(ctx, h.d.config.Name)
	if err != nil {
		return err
	}
	return s.Purge(ctx, jetstream.WithPurgeSubject(h.subjects.of(e.tag)), jetstream.WithPurgeSequence(e.upTo+1))
}
