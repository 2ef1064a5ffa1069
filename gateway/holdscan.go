package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/envelope"
)

// openHolds reads the hold stream as it was left. d is the sealed stream, at the
// position p.
func (w *worker) openHolds(ctx context.Context, d *destination, p *place) (*holds, error) {
	if err := w.checkHoldScope(ctx); err != nil {
		return nil, err
	}
	hd, err := openHold(ctx, w.sealedJS, &w.route, &d.config)
	if err != nil {
		return nil, err
	}
	h := &holds{
		w: w, d: hd, subjects: holdSubjectsOf(&w.route), last: hd.lastSeq,
		home:  home{route: w.route.Name, sealed: hd.config.Name, sealedCreated: hd.created.UnixNano(), partition: w.home.partition, source: w.home.source},
		lanes: make(map[string]*lane), scopes: make(map[string]*lane), bound: make(map[string]*lane), stored: make(map[uint64]struct{}),
		asked: make(chan refreshed, 1),
	}
	found, err := h.scan(ctx, p)
	if err != nil {
		return nil, err
	}
	for tag, f := range found {
		if err := h.restore(ctx, d, tag, f); err != nil {
			return nil, err
		}
	}
	if scopes, messages := h.counts(); scopes > 0 {
		w.log.Info("messages are held", "scopes", scopes, "messages", messages, "stream", hd.config.Name)
	}
	h.report()
	return h, nil
}

// checkHoldScope makes sure, before anything has to be held, that the key
// service's rules know the holding scope.
func (w *worker) checkHoldScope(ctx context.Context) error {
	ask, want := HoldSubject(w.route.Name), w.route.Hold.Scope
	check := func() error {
		scope, _, err := w.ring.rules.Scope(ask)
		switch {
		case err != nil:
			return fmt.Errorf("%w: no scope rule of the key service matches %s", ErrHold, ask)
		case scope != want:
			return fmt.Errorf("%w: the key service puts %s into scope %s, the route wants %s", ErrHold, ask, scope, want)
		}
		return nil
	}
	if check() == nil {
		return nil
	}
	if err := w.ring.loadRules(ctx); err != nil { // they may have been added a moment ago
		return err
	}
	return check()
}

// checkUnheld makes sure that a route that does not hold leaves nothing behind in
// a hold stream: it would be overtaken.
func (w *worker) checkUnheld(ctx context.Context, rec *record) error {
	if rec == nil || rec.Hold == "" || w.route.Hold != nil && w.route.Hold.Stream == rec.Hold {
		return nil
	}
	info, err := streamInfo(ctx, w.sealedJS, rec.Hold)
	switch {
	case errors.Is(err, jetstream.ErrStreamNotFound):
		return nil
	case err != nil:
		return err
	case info.State.Msgs > 0:
		return fmt.Errorf("%w: stream %s has %d messages that the route held and did not release; go on with on_scope_unavailable: hold and that stream until it is empty", ErrHold, rec.Hold, info.State.Msgs)
	}
	return nil
}

// foundLane is what the hold stream has of one scope: every message, and the
// origin subjects once. That is 40 bytes a message while the tenure begins.
type foundLane struct {
	subjects []string
	index    map[string]uint32
	messages []foundMessage
	last     link
}

type foundMessage struct {
	seq      uint64
	sequence uint64
	created  int64
	subject  uint32
	first    bool // of a release chain
}

// scan reads the headers of everything in the hold stream.
func (h *holds) scan(ctx context.Context, p *place) (map[string]*foundLane, error) {
	w := h.w
	if h.d.unused {
		return nil, nil
	}
	last, err := getFromLeader(ctx, w.route.Sealed.Conn, h.d.config.Name, getRequest{LastFor: h.subjects.all()})
	if errors.Is(err, errNoMessage) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	end := *h.d
	end.lastSeq = last.seq
	found := make(map[string]*foundLane)
	broken := func(seq uint64, format string, args ...any) error {
		return fmt.Errorf("%w: message %d of stream %s %s", ErrHold, seq, h.d.config.Name, fmt.Sprintf(format, args...))
	}
	return found, w.eachSealed(ctx, &end, 1, func(it *item) error {
		tag, origin, ok := h.subjects.parse(it.msg.Subject)
		pos, err := readPosition(w.routeKey, &h.home, it.seq, it.msg.Header.Get(HeaderSource))
		if err == nil && (!ok || pos.own == nil) {
			err = errBadPosition
		}
		if err != nil {
			return broken(it.seq, "was written by somebody else: %v", err)
		}
		f := found[tag]
		if f == nil {
			f = &foundLane{index: make(map[string]uint32)}
			found[tag] = f
		} else if own := pos.own; own.previous != 0 && (own.chain != f.last.chain || own.previous != f.last.sequence) {
			return broken(it.seq, "follows source message %d, and the one before it of its scope is %d: held messages were removed", own.previous, f.last.sequence)
		}
		at, ok := f.index[origin]
		if !ok {
			at = uint32(len(f.subjects))
			f.index[origin] = at
			f.subjects = append(f.subjects, origin)
		}
		f.messages = append(f.messages, foundMessage{it.seq, pos.own.sequence, pos.own.created, at, pos.own.previous == 0})
		f.last = *pos.own
		if pos.own.created == p.created && pos.own.sequence > p.cursor.scanned {
			h.stored[pos.own.sequence] = struct{}{}
		}
		return nil
	})
}

// restore makes the lane of what is not released yet.
func (h *holds) restore(ctx context.Context, d *destination, tag string, f *foundLane) error {
	// What was released is the beginning of the lane: find its end.
	var failed error
	n, _ := slices.BinarySearchFunc(f.messages, false, func(m foundMessage, _ bool) int {
		if failed != nil {
			return 0
		}
		last, err := h.sealedLast(ctx, d, f.subjects[m.subject])
		if err != nil {
			failed = err
			return 0
		}
		if l := (link{sequence: m.sequence, created: m.created}); last != nil && !last.message().before(&l) {
			return -1 // released
		}
		return 1
	})
	if failed != nil {
		return failed
	}
	if n == len(f.messages) {
		h.removal.add(tag, f.messages[n-1].seq, d.lastSeq)
		return nil
	}
	if n > 1 {
		// The last one stays, to tell the next worker what was released before.
		h.removal.add(tag, f.messages[n-2].seq, d.lastSeq)
	}
	rest := f.messages[n:]
	l := h.open(tag, "", f.subjects[rest[len(rest)-1].subject])
	l.tail, l.lastSeq, l.count, l.nextSeq = f.last, rest[len(rest)-1].seq, uint64(len(rest)), rest[0].seq
	for _, m := range rest {
		l.subjects[f.subjects[m.subject]] = struct{}{}
	}
	for s := range l.subjects {
		h.bound[s] = l
	}
	if n == 0 {
		if !rest[0].first {
			return fmt.Errorf("%w: message %d, the first of its scope in stream %s, follows others that were neither released nor are there: held messages were removed", ErrHold, rest[0].seq, h.d.config.Name)
		}
		return nil
	}
	// Go on with the release chain of the last one released, if that began one.
	last, err := h.sealedLast(ctx, d, f.subjects[f.messages[n-1].subject])
	if err != nil {
		return err
	}
	if last != nil && last.own != nil && last.own.sequence == f.messages[n-1].sequence && !rest[0].first {
		l.out = *last.own
	}
	return nil
}

// sealedLast is the position on the last sealed message of an origin subject; nil
// if there is none.
func (h *holds) sealedLast(ctx context.Context, d *destination, origin string) (*position, error) {
	w := h.w
	m, err := getFromLeader(ctx, w.route.Sealed.Conn, d.config.Name, getRequest{LastFor: w.prefix + origin})
	if errors.Is(err, errNoMessage) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	pos, err := readPosition(w.routeKey, &w.home, m.seq, m.header.Get(HeaderSource))
	if err != nil {
		return nil, fmt.Errorf("%w: message %d of sealed stream %s was written by somebody else: %v", ErrPosition, m.seq, d.config.Name, err)
	}
	return &pos, nil
}

// start makes what a tenure writes with.
func (h *holds) start(chain envelope.ChainID, created int64, maxPayload int) error {
	w := h.w
	if m := int(h.d.config.MaxMsgSize); m > 0 {
		maxPayload = min(maxPayload, m)
	}
	h.ring = newKeyring(w.keys, envelope.SessionConfig{Record: envelope.RecordInline, RandomNonce: w.route.RandomNonce, PadTo: w.route.PadTo}, string(h.subjects), w.metrics)
	h.ring.rules, h.ring.rulesAt = w.ring.rules, time.Now()
	h.sealer = &sealer{keys: h.ring, maxSize: maxPayload, fixed: engineHeaderSize(h.d.config.Name) + maxOwnHeader}
	h.opener = newHoldOpener(w.keys, w.route.Hold.Scope)
	e, err := newDurable(engineConfig{
		nc: w.route.Sealed.Conn, stream: h.d.config.Name, signer: newSigner(w.routeKey, &h.home, chain, created),
		lastSeq: h.d.lastSeq, ackTimeout: w.tune.ackTimeout,
	}, defaultBatchLimits)
	if err != nil {
		return err
	}
	h.engine = e
	return nil
}

// stop ends what start began.
func (h *holds) stop(ctx context.Context) {
	h.closeReader(ctx)
	if h.engine != nil {
		h.engine.close()
		h.opener.close()
		h.ring.close()
	}
}
