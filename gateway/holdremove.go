package gateway

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// removal lets go of held messages that were released, as the releaser does of
// source messages: once their sealed copies are acknowledged, and safe, and a
// fence stands behind them, see holds. Filled by the worker, emptied by the keeper.
type removal struct {
	mu   sync.Mutex
	list []removable // guarded by mu
}

// removable is a scope's row of held messages, or a row of fences.
type removable struct {
	tag    string
	upTo   uint64    // sequence of the hold stream
	sealed uint64    // the last one's sequence in the sealed stream, or above
	whole  bool      // nothing of the row stays
	at     time.Time // when that was acknowledged; zero: not yet
	fenced bool
}

func (r *removal) add(e removable) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, e)
}

func (r *removal) empty() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.list) == 0
}

// ripe notes how far the sealed stream acknowledged and returns what may be
// removed, but for the fence.
func (r *removal) ripe(acked uint64, now time.Time, lag time.Duration) (out []removable) {
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

// fenced notes that a fence stands behind rows.
func (r *removal) fenced(rows []removable) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range rows {
		for i := range r.list {
			if r.list[i] == e {
				r.list[i].fenced = true
			}
		}
	}
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
	for _, e := range h.removal.ripe(acked, time.Now(), lag) {
		if !e.fenced {
			continue
		}
		if err := h.purge(ctx, &e); err != nil {
			return fmt.Errorf("removing released messages from stream %s: %w", h.d.config.Name, err)
		}
		if e.whole {
			h.marks.drop(e.tag, e.upTo)
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
