package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/keysvc"
)

// releaseBatch is how many held messages are released between two batches of new
// ones: enough to overtake what is still being held.
const releaseBatch = 512

// heldLink is what a message being released has besides its item.
type heldLink struct {
	seq  uint64 // in the hold stream
	held link
}

// tend asks for the keys of held scopes and releases a part of what is available
// again. It is called between two batches of new messages.
func (t *tenure) tend(ctx context.Context) error {
	h := t.holds
	if err := h.answered(); err != nil {
		return err
	}
	if err := h.ask(ctx); err != nil {
		return err
	}
	if err := t.fenceRemovals(ctx); err != nil {
		return err
	}
	if h.active == nil {
		for _, l := range h.lanes {
			// What an earlier worker held beyond the position has to be read once more
			// and skipped first: see holds, rule 4.
			read := l.tail.sequence <= t.cursor.scanned || l.tail.created != t.place.created
			if l.ready && read && h.marks.room(l.tag) && (h.active == nil || l.nextSeq < h.active.nextSeq) {
				h.active = l
			}
		}
		if h.active == nil {
			return nil
		}
		h.w.log.Info("scope available again, releasing its messages", "scope", h.active.scope, "messages", h.active.count)
	}
	return t.release(ctx, h.active)
}

// ask asks for the keys of the lanes that are due, beside the worker: an authority
// that does not answer must not hold up the others.
func (h *holds) ask(ctx context.Context) error {
	if h.asking != nil {
		return nil
	}
	now := time.Now()
	subjects := make(map[string]string)
	lanes := make(map[string]*lane)
	for _, l := range h.lanes {
		if l.ready || now.Before(l.askAt) || len(subjects) == generateBatch {
			continue
		}
		ring := h.w.ring
		s := ring.subject(l.subject)
		if s.err != nil {
			if s = ring.rescope(ctx, l.subject); s.err != nil {
				if h.w.parkReason(s.err) != "" {
					l.ready = true // the release parks it
					continue
				}
				if stops(s.err) {
					return fmt.Errorf("held messages on %s: %w", l.subject, s.err)
				}
				l.postpone()
				continue
			}
		}
		if l.scope == "" {
			l.scope = s.scope
		}
		if subjects[s.scope] == "" {
			subjects[s.scope], lanes[s.scope] = l.subject, l
		}
	}
	if len(subjects) == 0 {
		return nil
	}
	h.asking = lanes
	go func() { h.asked <- h.w.ring.ask(ctx, subjects, false) }() // never blocks: one at a time
	return nil
}

// answered takes over what the key service said.
func (h *holds) answered() error {
	var r refreshed
	select {
	case r = <-h.asked:
	default:
		return nil
	}
	lanes := h.asking
	h.asking = nil
	for scope, l := range lanes {
		if h.lanes[l.tag] != l {
			continue
		}
		err := r.err
		key := r.keys[scope]
		switch {
		case key != nil && key.Err != nil:
			err = key.Err
		case key != nil && key.Scope != scope:
			err = fmt.Errorf("%w: the service puts %s into scope %s", ErrKeys, l.subject, key.Scope)
		case key != nil:
			err = h.w.ring.install(scope, l.subject, key)
		case err == nil:
			err = errors.New("no answer")
		}
		switch {
		case err == nil:
			l.ready, l.dead = true, nil
			l.asks.reset()
		case h.w.parkReason(err) != "":
			l.ready, l.dead = true, err
		case stops(err):
			return fmt.Errorf("held messages of scope %s: %w", scope, err)
		default:
			l.postpone()
		}
	}
	return nil
}

// releasing reports whether tend has more to do at once.
func (h *holds) releasing() bool { return h.active != nil }

// release seals the next held messages of a lane under their own key.
func (t *tenure) release(ctx context.Context, l *lane) error {
	h, w := t.holds, t.w
	if err := h.read(ctx, l); err != nil {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case stops(err):
			return t.disputed(ctx, err)
		}
		w.log.Warn("reading held messages failed, trying again", "scope", l.scope, "error", err)
		h.rest(ctx, l)
		return nil
	}
	for at := 0; at < len(h.items); {
		if l.dead != nil {
			if err := t.bury(ctx, l, &h.items[at], &h.links[at], l.dead); err != nil {
				return err
			}
			at++
			continue
		}
		ready, kerr := w.ring.prepare(ctx, h.items[at:])
		ended := false
		for range ready {
			err := t.releaseOne(ctx, l, &h.items[at], &h.links[at], at == len(h.items)-1)
			if ended = errors.Is(err, errNextSession); ended {
				break
			}
			if w.parkReason(err) != "" {
				err = t.bury(ctx, l, &h.items[at], &h.links[at], err)
			}
			if err != nil {
				return err
			}
			at++
		}
		if ended || kerr == nil {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if w.parkReason(kerr) != "" {
			if err := t.bury(ctx, l, &h.items[at], &h.links[at], kerr); err != nil {
				return err
			}
			if !errors.Is(kerr, keysvc.ErrNoScope) { // that is of one subject only
				l.dead = kerr
			}
			at++
			continue
		}
		if stops(kerr) {
			return fmt.Errorf("held message %d on %s: %w", h.items[at].seq, h.items[at].msg.Subject, kerr)
		}
		w.log.Warn("scope unavailable again, holding the rest", "scope", l.scope, "messages", l.count, "error", kerr)
		h.rest(ctx, l)
		break
	}
	clear(h.items)
	if l.count == 0 {
		h.close(l)
		h.removal.add(removable{tag: l.tag, upTo: l.lastSeq, sealed: t.published, whole: true})
		h.rest(ctx, nil)
		w.log.Info("everything held was released", "scope", l.scope, "held_for", time.Since(l.since).Round(time.Millisecond).String())
	} else if l.nextSeq > l.lastSeq {
		return t.disputed(ctx, fmt.Errorf("%w: %d held messages of scope %s are missing in stream %s", ErrHold, l.count, l.scope, h.d.config.Name))
	}
	h.report()
	return nil
}

func (t *tenure) releaseOne(ctx context.Context, l *lane, it *item, hl *heldLink, last bool) error {
	n := l.place(t.place.chain, hl.held)
	s := t.holds.released
	s.chain = n.chain
	out, err := s.seal(it, n.previous, t.gap, time.Now())
	s.chain = t.place.chain
	if err != nil {
		return err
	}
	out.own, out.last = &n, last
	out.source, out.previous, out.timestamp = t.cursor.scanned, t.cursor.previous, t.cursor.timestamp
	t.holds.marks.add(l.tag, mark{hl.seq, t.published + 1})
	if err := t.engine.publish(ctx, out); err != nil {
		return err
	}
	t.published++
	t.gap = 0
	l.out = n
	l.released(hl)
	return nil
}

// bury makes a dead letter of a held message that cannot be sealed.
func (t *tenure) bury(ctx context.Context, l *lane, it *item, hl *heldLink, why error) error {
	if err := t.heldLetter(ctx, it, &hl.held, t.w.parkReason(why), why); err != nil {
		return err
	}
	t.w.board.state(StateRunning)
	t.holds.marks.add(l.tag, mark{hl.seq, t.published})
	l.released(hl)
	return nil
}

// released notes that a message needs to be held no more.
func (l *lane) released(hl *heldLink) {
	l.from, l.nextSeq = hl.held, hl.seq+1
	l.count--
}

// rest ends the reading of the active lane, and lets l wait, unless it is nil.
func (h *holds) rest(ctx context.Context, l *lane) {
	if l != nil {
		l.postpone()
	}
	h.active = nil
	h.closeReader(ctx)
}

// read fills h.items with the next held messages of a lane, opened. None and no
// error: they did not come yet.
func (h *holds) read(ctx context.Context, l *lane) error {
	h.items, h.links = h.items[:0], h.links[:0]
	if h.reader == nil {
		if err := h.openReader(ctx, l); err != nil {
			return err
		}
	}
	raw, err := h.reader.next(ctx, nil, releaseBatch)
	if err != nil {
		return err
	}
	if len(raw) == 0 && h.reader.looked >= l.lastSeq {
		return fmt.Errorf("%w: held messages of scope %s are missing in stream %s", ErrHold, l.scope, h.d.config.Name)
	}
	from := l.from
	for i := range raw {
		it := &raw[i]
		if it.seq < l.nextSeq {
			continue // a replica that lags begins a consumer earlier than it was told
		}
		if it.seq > l.lastSeq {
			break // of another worker; the fence will tell
		}
		pos, err := readPosition(h.w.routeKey, &h.home, it.seq, it.msg.Header.Get(HeaderSource))
		_, origin, ok := h.subjects.parse(it.msg.Subject)
		if err == nil && (!ok || pos.own == nil) {
			err = errBadPosition
		}
		if err != nil {
			return fmt.Errorf("%w: message %d of stream %s was written by somebody else: %v", ErrHold, it.seq, h.d.config.Name, err)
		}
		if own := pos.own; from.sequence != 0 && own.previous != 0 && own.previous != from.sequence {
			return fmt.Errorf("%w: message %d of stream %s follows source message %d, and the one before it of its scope is %d: held messages were removed", ErrHold, it.seq, h.d.config.Name, own.previous, from.sequence)
		}
		plain, err := h.opener.open(ctx, it, origin, pos.own)
		if err != nil {
			return err
		}
		from = *pos.own
		h.items = append(h.items, plain)
		h.links = append(h.links, heldLink{it.seq, *pos.own})
	}
	return nil
}

func (h *holds) openReader(ctx context.Context, l *lane) error {
	cctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	c, err := h.w.sealedJS.CreateConsumer(cctx, h.d.config.Name, jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: l.nextSeq, FilterSubject: h.subjects.of(l.tag),
		AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, Replicas: 1, InactiveThreshold: inactive,
	})
	if err != nil {
		return fmt.Errorf("reading held messages: %w", err)
	}
	h.reader, err = newPuller(h.w.route.Sealed.Conn, h.d.config.Name, c.CachedInfo().Name, h.w.tune.heartbeat)
	if err != nil {
		h.reader = nil
		return fmt.Errorf("reading held messages: %w", err)
	}
	return nil
}

func (h *holds) closeReader(ctx context.Context) {
	if h.reader == nil {
		return
	}
	name := h.reader.consumer
	h.reader.close()
	h.reader = nil
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := h.w.sealedJS.DeleteConsumer(ctx, h.d.config.Name, name); err != nil && !errors.Is(err, jetstream.ErrConsumerNotFound) {
		h.w.log.Debug("leaving the consumer to expire", "consumer", name, "error", err)
	}
}
