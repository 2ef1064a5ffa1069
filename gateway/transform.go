package gateway

import (
	"context"
	"time"

	"github.com/keyweir/keyweir/internal/envelope"
)

// transform is what a relay does to a message between reading and publishing: a
// sealer seals, an unsealer opens. Everything else, from the position to the
// release, is the same. It belongs to the worker's goroutine.
type transform interface {
	// prepare makes sure of the keys of items. It returns how many leading items
	// can be transformed now, and the error of the next one if that is not all.
	prepare(ctx context.Context, items []item) (int, error)
	// transform makes what is published of one prepared item; items come in their
	// order, but some may be left out. previous and gap are the item's links.
	transform(it *item, previous, gap uint64, now time.Time) (*outgoing, error)
}

// newTransform makes the transform of one tenure. maxSize is what the
// destination takes in one message, fixed what the engine's headers need of it.
func (w *worker) newTransform(chain envelope.ChainID, maxSize, fixed int) transform {
	if u := w.route.unseal; u != nil {
		return &unsealer{unsealing: u, stream: w.route.Source.Stream, maxSize: maxSize, fixed: fixed}
	}
	return &sealer{
		keys: w.ring, pass: w.route.PassHeaders, rule: w.route.ReservedHeaders, chain: chain, maxSize: maxSize, fixed: fixed,
		tracer: w.tracer, propagator: w.propagator,
	}
}

func (s *sealer) prepare(ctx context.Context, items []item) (int, error) {
	return s.keys.prepare(ctx, items)
}

func (s *sealer) transform(it *item, previous, gap uint64, now time.Time) (*outgoing, error) {
	return s.seal(it, previous, gap, now)
}

var (
	_ transform = (*sealer)(nil)
	_ transform = (*unsealer)(nil)
)
