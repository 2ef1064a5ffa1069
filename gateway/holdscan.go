package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keyweir/keyweir/internal/envelope"
)

// openHolds reads the hold stream as it was left. d is the sealed stream, at the
// position p, and rec the position record, nil without one that can be believed.
//
// What looks like a loss is looked at twice: another worker may be removing what it
// released.
func (w *worker) openHolds(ctx context.Context, d *destination, p *place, rec *record) (*holds, error) {
	h, err := w.readHolds(ctx, d, p, rec)
	switch {
	case err == nil:
		w.suspect = ""
		return h, nil
	case errors.Is(err, errHoldBroken) && w.suspect != err.Error():
		w.suspect = err.Error()
		return nil, fmt.Errorf("looking at the hold stream again: %v", err)
	}
	return nil, err
}

// errHoldBroken marks what is wrong with the contents of a hold stream.
var errHoldBroken = fmt.Errorf("%w", ErrHold)

func (w *worker) readHolds(ctx context.Context, d *destination, p *place, rec *record) (*holds, error) {
	if err := w.checkHoldScope(ctx); err != nil {
		return nil, err
	}
	hd, err := w.openHold(ctx, &d.config)
	if err != nil {
		return nil, err
	}
	h := &holds{
		w: w, d: hd, subjects: w.holdSubjects(), last: hd.lastSeq,
		home:  home{route: w.route.Name, sealed: hd.config.Name, sealedCreated: hd.created.UnixNano(), partition: w.home.partition, source: w.home.source},
		lanes: make(map[string]*lane), scopes: make(map[string]*lane), bound: make(map[string]*lane), stored: make(map[uint64]struct{}),
		asked: make(chan refreshed, 1), faults: make(map[uint64]error),
	}
	found, err := h.scan(ctx, p)
	if err != nil {
		return nil, err
	}
	r := &released{h: h, d: d, rec: rec}
	if err := r.read(ctx, found); err != nil {
		return nil, err
	}
	h.marks = newMarks(hd.created.UnixNano(), hd.lastSeq)
	for tag, f := range found {
		if err := h.restore(ctx, r, tag, f); err != nil {
			return nil, err
		}
	}
	scopes, messages := h.counts()
	if messages > 0 && r.unsure && (w.route.ResumeFrom == nil || w.resumed) {
		return nil, fmt.Errorf("%w: stream %s has %d messages, and limits or an operator removed messages of sealed stream %s that would say which of them were released already; with --resume-from all of them are released, perhaps for the second time", ErrHold, hd.config.Name, messages, d.config.Name)
	}
	if scopes > 0 {
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
		return fmt.Errorf("%w: message %d of stream %s %s", errHoldBroken, seq, h.d.config.Name, fmt.Sprintf(format, args...))
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
		if tag == fenceTag {
			return nil
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
func (h *holds) restore(ctx context.Context, r *released, tag string, f *foundLane) error {
	n := r.count(tag, f)
	var reached mark
	if n > 0 {
		reached = r.markOf(tag, f, n)
		h.marks.begin(tag, reached)
	}
	if n == len(f.messages) {
		h.removal.add(removable{tag: tag, upTo: f.messages[n-1].seq, sealed: r.d.lastSeq, whole: true})
		return nil
	}
	if n > 1 {
		// The last one stays, to tell the next worker what was released before.
		h.removal.add(removable{tag: tag, upTo: f.messages[n-2].seq, sealed: r.d.lastSeq})
	}
	rest := f.messages[n:]
	if n == 0 && !rest[0].first {
		return fmt.Errorf("%w: message %d, the first of its scope in stream %s, follows others that were neither released nor are there: held messages were removed", errHoldBroken, rest[0].seq, h.d.config.Name)
	}
	l := h.open(tag, "", f.subjects[rest[len(rest)-1].subject])
	l.tail, l.lastSeq, l.count, l.nextSeq = f.last, rest[len(rest)-1].seq, uint64(len(rest)), rest[0].seq
	for _, m := range rest {
		l.subjects[f.subjects[m.subject]] = struct{}{}
	}
	for s := range l.subjects {
		h.bound[s] = l
	}
	if n == 0 || rest[0].first {
		return nil
	}
	// Go on with the release chain of the last one released, if it is still there.
	last, err := r.copyOf(ctx, reached, &f.messages[n-1])
	if err == nil && last != nil {
		l.out = *last
	}
	return err
}

// start makes what a tenure writes with, and shuts out who wrote before.
func (h *holds) start(ctx context.Context, p *place, maxPayload int) error {
	w := h.w
	if err := h.fence(ctx, p.chain, p.created, p.cursor); err != nil {
		return err
	}
	if m := int(h.d.config.MaxMsgSize); m > 0 {
		maxPayload = min(maxPayload, m)
	}
	h.ring = newKeyring(w.keys, envelope.SessionConfig{Record: envelope.RecordInline, RandomNonce: w.route.RandomNonce, PadTo: w.route.PadTo}, string(h.subjects), w.metrics)
	h.ring.rules, h.ring.rulesAt = w.ring.rules, time.Now()
	h.sealer = &sealer{keys: h.ring, rule: w.route.ReservedHeaders, maxSize: maxPayload, fixed: engineHeaderSize(h.d.config.Name) + maxOwnHeader}
	h.opener = newHoldOpener(w.keys, w.route.Hold.Scope)
	e, err := newDurable(engineConfig{
		nc: w.route.Sealed.Conn, stream: h.d.config.Name, signer: newSigner(w.routeKey, &h.home, p.chain, p.created),
		lastSeq: h.last, ackTimeout: w.tune.ackTimeout,
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
