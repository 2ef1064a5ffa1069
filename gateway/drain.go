package gateway

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// errEnd ends a tenure that sealed everything up to the end of the drain.
var errEnd = errors.New("gateway: sealed up to the end of the drain")

// drained ends a partition that stands, at a source sequence, where the drain ends,
// with a position record that says so. If it stands behind that, because an instance that was not
// told to drain went on, the end moves there, and what ended before has to be
// drained again.
func (w *worker) drained(ctx context.Context, b *bucket, at uint64, info *jetstream.StreamInfo) error {
	if at <= w.plan.Drain.After {
		return errDrained
	}
	recorded, revision, err := w.readLayout(ctx, b)
	if err != nil {
		return err
	}
	if recorded != nil && recorded.Drain != nil && recorded.Drain.After < at {
		end := *recorded.Drain
		end.After, end.Since = info.State.LastSeq, sinceOf(info, info.State.LastSeq)
		recorded.Drain = &end
		if err := w.writeLayout(ctx, b, recorded, revision); err != nil {
			return err
		}
	}
	return fmt.Errorf("the route was relayed beyond the end of the drain, at %d: draining again", w.plan.Drain.After)
}

// cut takes items behind the end of the drain away, and reports whether there were
// any: then everything before it has arrived.
func (t *tenure) cut(items []item) ([]item, bool) {
	if t.w.plan.Drain == nil {
		return items, false
	}
	for i := range items {
		if items[i].seq > t.w.plan.Drain.After {
			return items[:i], true
		}
	}
	return items, false
}

// ended reports whether everything up to the end of the drain was handed on.
func (t *tenure) ended() bool {
	return t.w.plan.Drain != nil && t.cursor.scanned >= t.w.plan.Drain.After
}

// end moves the cursor to the end of the drain. Nothing that matches is left before
// it, but what limits may have removed.
func (t *tenure) end(ctx context.Context) error {
	end := t.w.plan.Drain.After
	if t.cursor.scanned < end {
		info, err := t.w.sourceInfo(ctx)
		if err != nil {
			return err
		}
		missing, cur, err := t.w.checkGap(info, t.cursor)
		if err != nil {
			return err
		}
		if missing > 0 {
			t.gap += min(missing, end-t.cursor.scanned)
		}
		t.advance(end, cur.since)
	}
	if err := t.outlast(ctx); err != nil {
		return err
	}
	return errEnd
}

// outlast goes on releasing until nothing is held, and the hold stream is empty.
func (t *tenure) outlast(ctx context.Context) error {
	h := t.holds
	if h == nil || h.empty() {
		return nil
	}
	if scopes, messages := h.counts(); scopes > 0 {
		t.w.log.Warn("everything is sealed but what is held: the drain waits for the keys", "scopes", scopes, "messages", messages)
	}
	for !h.empty() {
		if err := t.tend(ctx); err != nil {
			return err
		}
		if h.releasing() {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			continue
		}
		if err := sleep(ctx, min(t.w.tune.tick, t.w.tune.key)); err != nil {
			return err
		}
	}
	return nil
}

// advance notes that nothing matches up to some sequence, so that messages of
// others that expire later are not taken for lost ones.
func (t *tenure) advance(to uint64, since int64) {
	t.cursor.scanned, t.cursor.since, t.cursor.until = to, since, 0
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ahead, t.since, t.until = ahead{t.published, to, t.gap, t.ahead.parked}, since, 0
}
