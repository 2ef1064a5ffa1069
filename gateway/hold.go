package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/keysvc"
)

// holdable reports whether a scope that got this answer is held: it may be
// available again, and others are meanwhile.
func holdable(err error) bool {
	return errors.Is(err, keysvc.ErrDenied) || errors.Is(err, keysvc.ErrSuspended) || errors.Is(err, keysvc.ErrUnavailable) || errors.Is(err, keysvc.ErrBusy)
}

// divert puts what belongs into a lane into the hold stream, and returns the rest
// when that is acknowledged.
func (t *tenure) divert(ctx context.Context, items []item, gaps map[uint64]uint64) ([]item, error) {
	h := t.holds
	if len(h.lanes) == 0 && len(h.stored) == 0 {
		return items, nil
	}
	out, held := items[:0], 0
	sealed := t.sealed()
	for i := range items {
		it := items[i]
		if it.seq <= sealed {
			continue // see seal
		}
		_, stored := h.stored[it.seq]
		delete(h.stored, it.seq)
		var l *lane
		if !stored {
			l = h.laneOf(it.msg.Subject, t.w.ring.subject(it.msg.Subject).scope)
		}
		if !stored && l == nil {
			out = append(out, it)
			continue
		}
		if stored {
			t.gap += gaps[it.seq]
			t.holding(it.seq)
			continue
		}
		switch err := t.hold(ctx, l, &it); {
		case err != nil && t.w.parkReason(err) != "":
			h.faults[it.seq] = err // in its turn, with those that are sealed
			out = append(out, it)
			continue
		case err != nil:
			return nil, err
		}
		t.gap += gaps[it.seq]
		held++
	}
	clear(items[len(out):])
	if held > 0 {
		if err := h.engine.flush(ctx); err != nil {
			return nil, fmt.Errorf("holding messages: %w", err)
		}
		h.marks.saw(h.last)
		h.report()
	}
	return out, nil
}

// hold seals one message under the holding key and publishes it.
func (t *tenure) hold(ctx context.Context, l *lane, it *item) error {
	h := t.holds
	n := l.next(t.place.chain, t.place.created, it)
	h.sealer.chain = n.chain
	for {
		key, err := t.holdingKey(ctx)
		if err != nil {
			return err
		}
		out, err := h.sealer.sealWith(key, h.subjects.message(l.tag, it.msg.Subject), it, n.previous, 0)
		if errors.Is(err, errNextSession) {
			continue
		}
		if err != nil {
			return err
		}
		out.own = &n
		out.source, out.previous, out.timestamp = t.cursor.scanned, t.cursor.previous, t.cursor.timestamp
		if err := h.engine.publish(ctx, out); err != nil {
			return fmt.Errorf("holding messages: %w", err)
		}
		h.last++
		h.held(l, it.msg.Subject, n, h.last)
		t.holding(it.seq)
		return nil
	}
}

// holdingKey waits for a session of the holding scope.
func (t *tenure) holdingKey(ctx context.Context) (*scopeKey, error) {
	w, waited := t.w, false
	p := newPause(w.tune.key, w.tune.keyMax)
	for {
		key, err := t.holds.key(ctx)
		if err == nil {
			if waited {
				w.log.Info("holding again")
				w.board.state(StateRunning)
			}
			return key, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if stops(err) {
			return nil, err
		}
		if !waited {
			w.log.Warn("no key to hold messages with, waiting", "error", err)
		}
		waited = true
		w.board.failed(StatePaused, err)
		if err := p.wait(ctx); err != nil {
			return nil, err
		}
	}
}

// key returns a session of the holding scope.
func (h *holds) key(ctx context.Context) (*scopeKey, error) {
	ask := HoldSubject(h.w.route.Name)
	if _, err := h.ring.prepare(ctx, []item{{msg: &nats.Msg{Subject: ask}}}); err != nil {
		if errors.Is(err, keysvc.ErrNoScope) {
			err = fmt.Errorf("%w: no scope rule of the key service matches %s", ErrHold, ask)
		}
		return nil, err
	}
	s := h.ring.subject(ask)
	if want := h.w.route.Hold.Scope; s.scope != want {
		return nil, fmt.Errorf("%w: the key service puts %s into scope %s, the route wants %s", ErrHold, ask, s.scope, want)
	}
	return s.key, nil
}

// begin opens a lane for every scope of items that the key service just refused a
// key for. It returns false if there is none, or nothing to hold with.
func (t *tenure) begin(ctx context.Context, items []item) (bool, error) {
	h, w := t.holds, t.w
	found := false
	for i := range items {
		s := w.ring.subject(items[i].msg.Subject)
		cause := w.ring.refused[s.scope]
		if s.err != nil || !holdable(cause) || w.parkReason(cause) != "" || h.laneOf(items[i].msg.Subject, s.scope) != nil {
			continue
		}
		if !found {
			if _, err := h.key(ctx); err != nil {
				if stops(err) {
					return false, err
				}
				w.log.Warn("no key to hold messages with", "error", err)
				return false, nil
			}
			found = true
		}
		l := h.open(h.subjects.tag(s.scope), s.scope, items[i].msg.Subject)
		l.postpone()
		w.log.Warn("scope unavailable, holding its messages", "scope", s.scope, "from", items[i].seq, "error", cause)
		w.board.update(func(r *RouteStats) { r.LastError, r.LastErrorAt = cause, time.Now() })
	}
	if !found {
		return false, nil
	}
	return true, t.settle(ctx)
}

// holding notes the last source message that is held and not yet covered by an
// acknowledged message of the sealed stream.
func (t *tenure) holding(seq uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.heldUpTo = max(t.heldUpTo, seq)
}

// faultless returns the items before the first one that cannot be held.
func (t *tenure) faultless(items []item) []item {
	if t.holds != nil && len(t.holds.faults) > 0 {
		for i := range items {
			if t.holds.faults[items[i].seq] != nil {
				return items[:i]
			}
		}
	}
	return items
}

// fault parks the first of items if it cannot be held.
func (t *tenure) fault(ctx context.Context, items []item, gaps map[uint64]uint64) ([]item, error) {
	if t.holds == nil {
		return items, nil
	}
	it := &items[0]
	why := t.holds.faults[it.seq]
	if why == nil {
		return items, nil
	}
	if err := t.deadLetter(ctx, it, gaps[it.seq], t.w.parkReason(why), why); err != nil {
		return nil, err
	}
	delete(t.holds.faults, it.seq)
	return items[1:], nil
}

// settle waits until everything published to the sealed stream is acknowledged.
func (t *tenure) settle(ctx context.Context) error {
	e, ok := t.engine.(*durableEngine)
	if !ok {
		return fmt.Errorf("%w: hold needs the engine durable", ErrEngine)
	}
	return e.flush(ctx)
}

// covered notes that everything up to a source message is sealed or held.
func (t *tenure) covered(end uint64, timestamp int64) {
	if end <= t.cursor.previous {
		return
	}
	if end > t.cursor.scanned {
		t.cursor.scanned, t.cursor.until = end, timestamp
	}
	t.held, t.handed = end, max(t.handed, end)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ahead, t.until = ahead{published: t.published, scanned: t.cursor.scanned, gap: t.gap}, t.cursor.until
}

// record is the position record of a worker at p. h may be nil.
func (h *holds) record(w *worker, p *place) record {
	r := w.recordOf(p)
	if h != nil {
		r.Released = h.marks.text(p.lastSeq)
	}
	return r
}

// covers is the source sequence up to which messages may be let go that were
// sealed or held before this tenure, see holds, rule 6.
func (t *tenure) covers() uint64 {
	if t.holds == nil {
		return t.cursor.scanned
	}
	return t.place.stated
}

// report puts the numbers where others see them.
func (h *holds) report() {
	scopes, messages := h.counts()
	h.w.board.update(func(s *RouteStats) { s.ScopesHeld, s.MessagesHeld = scopes, messages })
}
