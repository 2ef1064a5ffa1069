package gateway

import (
	"context"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// errEnd ends a tenure that sealed everything up to the end of the drain.
var errEnd = errors.New("gateway: sealed up to the end of the drain")

// drained ends a partition that stands where the drain ends, with a position
// record that says so. If it stands behind that, because an instance that was not
// told to drain went on, the end moves there, and what ended before has to be
// drained again.
func (w *worker) drained(ctx context.Context, b *bucket, p *place, info *jetstream.StreamInfo) error {
	if p.cursor.scanned <= w.plan.Drain.After {
		return errDrained
	}
	recorded, revision, err := w.readLayout(ctx, b)
	if err != nil {
		return err
	}
	if recorded != nil && recorded.Drain != nil && recorded.Drain.After < p.cursor.scanned {
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
	return errEnd
}

// advance notes that nothing matches up to some sequence, so that messages of
// others that expire later are not taken for lost ones.
func (t *tenure) advance(to uint64, since int64) {
	t.cursor.scanned, t.cursor.since = to, since
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ahead, t.since = ahead{t.published, to, t.gap, t.ahead.parked}, since
}
