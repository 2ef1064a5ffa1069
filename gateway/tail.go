package gateway

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// checkTail makes sure that the last messages of the sealed stream follow each
// other, back to what is known to be whole: the position record, which is written
// from an unbroken row of acknowledgements only.
//
// The fence compares sequences, not authors, and that leaves a hole where several
// messages are in flight. If somebody else stores one message first, ours that
// expected its place is refused, but the next one, which expects to follow that
// place, fits and is stored: a message is missing under a genuine last position.
// The pipeline breaks then, and the position is read again, here. Every message
// names its predecessor on the chain under its MAC, so the hole shows. Two workers
// of one route that overlap pass, since both derive the same message from the same
// predecessor.
//
// Whoever wrote the messages before the last window had all of them acknowledged
// before it went on, so no more than a window has to be read.
func (w *worker) checkTail(ctx context.Context, d *destination, rec *record, same bool, last position) error {
	broken := func(seq uint64, format string, args ...any) error {
		return fmt.Errorf("%w: message %d of sealed stream %s %s: somebody else wrote in between", ErrPosition, seq, d.config.Name, fmt.Sprintf(format, args...))
	}
	base, known := uint64(0), false
	var before position
	if d.lastSeq > maxWindow {
		base = d.lastSeq - maxWindow
	}
	if same && rec.LastSeq >= base && rec.LastSeq < d.lastSeq {
		p, err := placeOf(rec)
		if err != nil {
			return err
		}
		base, known = rec.LastSeq, true
		before = position{chain: p.chain, own: &link{}, previous: p.cursor.previous}
	}
	at := base
	return w.eachSealed(ctx, d, base+1, func(it *item) error {
		seq := it.seq
		var pos position
		if seq == d.lastSeq {
			pos = last // checked
		} else {
			var err error
			if pos, err = readPosition(w.routeKey, &w.home, seq, it.msg.Header.Get(HeaderSource)); err != nil {
				return broken(seq, "is not ours (%v)", err)
			}
		}
		switch adjacent := seq == at+1; {
		case !known: // the first that is left
		case pos.chain != before.chain:
			if pos.previous != 0 {
				return broken(seq, "is of another chain")
			}
		case adjacent && pos.previous != before.cursor().previous, pos.previous < before.cursor().previous:
			return broken(seq, "is source message %d and follows %d, not %d", pos.message().sequence, pos.previous, before.cursor().previous)
		}
		at, before, known = seq, pos, true
		return nil
	})
}

// eachSealed calls f for the messages of the sealed stream from one sequence to
// the last, without their payloads. Messages that limits removed are left out.
func (w *worker) eachSealed(ctx context.Context, d *destination, from uint64, f func(*item) error) error {
	cctx, cancel := context.WithTimeout(ctx, requestTimeout)
	c, err := w.sealedJS.CreateConsumer(cctx, d.config.Name, jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from, HeadersOnly: true,
		AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, Replicas: 1, InactiveThreshold: inactive,
	})
	cancel()
	if err != nil {
		return fmt.Errorf("reading the end of the sealed stream: %w", err)
	}
	name := c.CachedInfo().Name
	p, err := newPuller(w.route.Sealed.Conn, d.config.Name, name, w.tune.heartbeat)
	if err != nil {
		return fmt.Errorf("reading the end of the sealed stream: %w", err)
	}
	defer func() {
		p.close()
		dctx, cancel := context.WithTimeout(ctx, requestTimeout)
		defer cancel()
		if err := w.sealedJS.DeleteConsumer(dctx, d.config.Name, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
			w.log.Debug("leaving the consumer to expire", "consumer", name, "error", err)
		}
	}()
	var items []item
	for {
		if items, err = p.next(ctx, items[:0], batchSize); err != nil {
			return fmt.Errorf("reading the end of the sealed stream: %w", err)
		}
		if len(items) == 0 && p.alive {
			return fmt.Errorf("reading the end of the sealed stream: message %d is gone", d.lastSeq) // a moment ago; look again
		}
		for i := range items {
			if items[i].seq > d.lastSeq {
				return nil // of another writer, since; the fence will tell
			}
			if err := f(&items[i]); err != nil {
				return err
			}
			if items[i].seq == d.lastSeq {
				return nil
			}
		}
	}
}
