package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// batchSize is how many messages are looked at together: one question for their
// keys, one check for gaps.
const batchSize = 512

// tenure is one unbroken row of sealed messages: from a position read in the
// sealed stream to the first refusal, lost acknowledgement or shutdown.
//
// Where a crash may strike, and what happens then: before the publish, nothing
// was done. Between publish and acknowledgement, the message is stored or not; the
// next tenure reads which. Between acknowledgement and release, the source message
// is still there, at or below the position, and is released later. Between
// acknowledgement and position record, the record is older than the sealed stream
// and is not used.
//
// What the fence alone does not see, checkTail does.
type tenure struct {
	w      *worker
	place  place // where it began
	engine engine
	retry  *pause

	// What the worker's goroutine has handed on.
	cursor    cursor
	gap       uint64 // to be stated by the next envelope
	published uint64 // last sealed sequence given out
	handed    uint64 // last source sequence published, or covered at take-over
	reader    *reader
	turn      transform // sealing, or opening
	parking   *parking  // nil: what cannot be sealed stops the route
	releaser  *releaser
	pending   uint64
	holds     *holds  // nil: the route waits for keys
	held      uint64  // last source sequence of a batch that was sealed or held
	marks     *marker // nil: the sealed stream is this partition's alone
	barren    *pause  // between openings of the source that bring no message; nil after one did

	mu       sync.Mutex // guards what follows
	ahead    ahead
	since    int64  // see cursor; of ahead.scanned, or of a sequence before it
	until    int64  // see cursor; of ahead.scanned
	heldUpTo uint64 // last source message held, see releasable
}

// ahead says that the source was read further than the last message published:
// what came after it did not match, or was parked.
type ahead struct {
	published uint64 // valid while this is the last sealed sequence
	scanned   uint64
	gap       uint64
	parked    uint64 // the last message parked; it may be released
}

func (t *tenure) run(ctx context.Context, d *destination, kind Engine, info *jetstream.StreamInfo, store *recordStore, lag time.Duration) (err error) {
	w := t.w
	tctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// What has to be done after ctx ended, in bounded time.
	after, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	if t.reader, err = w.openReader(tctx, info, t.cursor); err != nil {
		return err
	}
	defer func() {
		t.reader.close()
		w.dropReader(after, t.reader)
	}()
	t.pending = t.reader.waits
	w.board.update(func(s *RouteStats) { s.Lag = t.pending })

	maxSize := int(w.route.Sealed.Conn.MaxPayload())
	if m := int(d.config.MaxMsgSize); m > 0 {
		maxSize = min(maxSize, m)
	}
	fixed := engineHeaderSize(d.config.Name)
	if t.holds != nil {
		fixed += maxOwnHeader // a message may have to be held, and released with a longer header
	}
	t.turn = w.newTransform(t.place.chain, maxSize, fixed)
	if t.holds != nil {
		t.holds.released = t.turn.(*sealer) // Route.withDefaults: a route that opens does not hold
		defer t.holds.stop(after)
		if err := t.holds.start(tctx, &t.place, int(w.route.Sealed.Conn.MaxPayload())); err != nil {
			return err
		}
	}
	cfg := engineConfig{
		nc: w.route.Sealed.Conn, stream: d.config.Name, signer: newSigner(w.routeKey, &w.home, t.place.chain, t.place.created),
		lastSeq: t.place.lastSeq, window: w.route.Window, ackTimeout: w.tune.ackTimeout, plain: w.route.unseal != nil,
		marks: t.marks,
	}
	if w.metrics.timesPublish() {
		cfg.onAck = w.metrics.publishTook
	}
	eng, err := newEngine(kind, cfg)
	if err != nil {
		return err
	}
	defer eng.close()
	t.engine = eng
	t.releaser = &releaser{w: w, lag: lag, retention: info.Config.Retention}
	t.releaser.sealed(time.Now(), t.covers()) // read at take-over; safe when the lag has passed
	t.releaser.reopened(t.reader.old, t.handed)

	k := &keeper{t: t, store: store, releaser: t.releaser, seen: acked{sealed: t.place.lastSeq}}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		k.run(after, stop)
	}()
	go func() {
		select {
		case <-eng.failed():
			cancel(eng.err())
		case <-tctx.Done():
		}
	}()

	w.board.state(StateRunning)
	err = t.pump(tctx)
	grace := w.tune.drain
	if eng.err() != nil {
		grace = min(grace, time.Second) // most likely the server is away; do not wait for it
	}
	deadline := time.AfterFunc(grace, giveUp)
	defer deadline.Stop()
	if ferr := eng.err(); ferr == nil {
		// Shutdown, a message that stops the route, a lost claim: what was published
		// before it still counts.
		if derr := eng.drain(after); derr != nil {
			w.log.Warn("not everything was acknowledged; the next run reads what was stored", "error", derr)
		}
	} else if !stops(err) || errors.Is(err, ErrSourceGap) {
		err = ferr
	}
	healthy, last := eng.err() == nil, t.published
	if t.marks != nil {
		eng.close() // nothing leaves from here on, so that the record can say what there is
		last = t.marks.follows
	}
	if healthy {
		err = w.contested(after, err, last)
	}
	close(stop)
	<-stopped
	if a := eng.acked(); a.sealed > t.place.lastSeq {
		t.retry.reset()
	}
	return err
}

// pump reads, seals and publishes until something fails. It returns the cause
// when ctx ends.
func (t *tenure) pump(ctx context.Context) error {
	items := make([]item, 0, batchSize)
	for {
		var err error
		if t.holds != nil {
			if err := t.tend(ctx); err != nil {
				return err
			}
			if t.holds.releasing() && !t.reader.more() {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				continue
			}
		}
		items, err = t.reader.next(ctx, items[:0], batchSize)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, errReopen) {
			err = t.reopen(ctx, err)
		}
		if err != nil {
			return err
		}
		items, last := t.cut(items)
		switch {
		case len(items) > 0:
			t.barren = nil
			if err := t.relay(ctx, items); err != nil {
				return err
			}
		case !last:
			if t.reader.alive {
				t.barren = nil
			}
			t.idle()
		}
		if last || t.ended() {
			return t.end(ctx)
		}
		clear(items) // lets go of the messages
	}
}

// reopen makes a new reader behind the cursor after the old one broke, and checks
// first that the source still is what it was.
func (t *tenure) reopen(ctx context.Context, why error) error {
	w := t.w
	w.log.Info("opening the source again", "reason", why, "after", t.cursor.scanned)
	broken := t.reader
	broken.close()
	if t.barren == nil {
		t.barren = newPause(w.tune.retry, w.tune.retryMax)
	} else if err := t.barren.wait(ctx); err != nil { // the last opening brought nothing
		return err
	}
	p := newPause(w.tune.retry, w.tune.retryMax)
	for {
		r, err := t.tryReopen(ctx)
		if err == nil {
			t.reader = r
			t.releaser.reopened(r.old, t.handed)
			w.dropReader(ctx, broken)
			w.board.state(StateRunning)
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if stops(err) {
			return err
		}
		w.board.failed(StateRetrying, err)
		w.log.Warn("opening the source failed, trying again", "error", err)
		if err := p.wait(ctx); err != nil {
			return err
		}
	}
}

func (t *tenure) tryReopen(ctx context.Context) (*reader, error) {
	info, err := t.w.sourceInfo(ctx)
	if err != nil {
		return nil, err
	}
	if err := t.w.checkIdentity(ctx, info, t.place.created, t.cursor); err != nil {
		return nil, err
	}
	missing, cur, err := t.w.checkGap(info, t.cursor)
	if err != nil {
		return nil, err
	}
	t.cursor = cur
	t.gap += missing
	return t.w.openReader(ctx, info, t.cursor)
}

// idle notes that nothing more matches up to where the server looked.
func (t *tenure) idle() {
	t.pending = 0
	t.w.board.update(func(s *RouteStats) { s.Lag = 0 })
	to := t.reader.looked
	if end := t.w.plan.Drain; end != nil {
		to = min(to, end.After)
	}
	if to > t.cursor.scanned {
		t.advance(to, time.Now().UnixNano())
	}
}

// relay seals and publishes one batch, in order, waiting for keys if it must.
func (t *tenure) relay(ctx context.Context, items []item) (err error) {
	w := t.w
	if t.reader.queue {
		items = t.enqueue(items)
		if len(items) == 0 {
			return nil
		}
	}
	gaps, err := w.batchGap(ctx, items, t.cursor)
	if err != nil {
		return err
	}
	if t.holds != nil {
		end := items[len(items)-1]
		if items, err = t.divert(ctx, items, gaps); err != nil {
			return err
		}
		defer func() {
			if err == nil {
				t.covered(end.seq, end.timestamp)
			}
		}()
	}
	p, slow := newPause(w.tune.key, w.tune.keyMax), newPause(w.tune.keySlow, w.tune.keySlowM)
	paused := false
	for len(items) > 0 {
		if items, err = t.fault(ctx, items, gaps); err != nil || len(items) == 0 {
			return err
		}
		ready, kerr := t.turn.prepare(ctx, t.faultless(items))
		if kerr != nil && t.holds != nil {
			if found, err := t.begin(ctx, items); err != nil {
				return err
			} else if found {
				if items, err = t.divert(ctx, items, gaps); err != nil {
					return err
				}
				continue
			}
		}
		if ready > 0 && paused {
			paused = false
			w.log.Info("going on")
			w.board.state(StateRunning)
			p.reset()
			slow.reset()
		}
		done, err := t.seal(ctx, items[:ready], gaps)
		items = items[done:]
		why := err
		if why == nil {
			why = kerr
		}
		if reason := w.parkReason(why); reason != "" {
			if err := t.deadLetter(ctx, &items[0], gaps[items[0].seq], reason, why); err != nil {
				return err
			}
			items, paused = items[1:], false
			continue
		}
		switch {
		case errors.Is(err, errNextSession):
			continue
		case err != nil:
			return err
		case kerr == nil:
			continue
		case w.route.unseal.parks(kerr):
			if err := t.park(ctx, &items[0], gaps[items[0].seq], kerr); err != nil {
				return err
			}
			items = items[1:]
			continue
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case stops(kerr):
			return fmt.Errorf("message %d on %s: %w", items[0].seq, items[0].msg.Subject, kerr)
		}
		if !paused {
			w.log.Warn("no key, waiting", "sequence", items[0].seq, "error", kerr)
		}
		paused = true
		w.board.failed(StatePaused, kerr)
		wait := p
		if patient(kerr) {
			wait = slow
		}
		if err := wait.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// enqueue notes the deliveries of a queue source for acknowledgement and drops
// those that the cursor covers: delivered once more, and sealed before.
func (t *tenure) enqueue(items []item) []item {
	out := items[:0]
	at := t.sealed()
	for _, it := range items {
		t.releaser.delivered(it.seq, it.msg.Reply)
		if it.seq > at {
			at = it.seq
			out = append(out, it)
		}
	}
	return out
}

// sealed is the source sequence up to which whatever is delivered was sealed
// before. It is not cursor.scanned: a message that should not have come is sealed
// rather than dropped.
func (t *tenure) sealed() uint64 { return max(t.reader.from, t.cursor.previous, t.held) }

// seal seals and publishes items whose keys are there. It returns how many were
// published.
func (t *tenure) seal(ctx context.Context, items []item, gaps map[uint64]uint64) (int, error) {
	timed := t.w.metrics.timesSeal()
	for i := range items {
		it := &items[i]
		if it.seq <= t.sealed() {
			continue // a replica that lags begins a consumer earlier than it was told
		}
		if known, err := t.parking.parked(ctx, it); err != nil {
			return i, err
		} else if known {
			t.passed(it, gaps[it.seq])
			continue
		}
		gap := t.gap + gaps[it.seq]
		now := time.Now()
		out, err := t.turn.transform(it, t.cursor.previous, gap, now)
		if err != nil {
			return i, err
		}
		if timed {
			t.w.metrics.sealTook(time.Since(now))
			timed = false
		}
		out.last = it.pending == 0 && i == len(items)-1 && !t.reader.more()
		if err := t.engine.publish(ctx, out); err != nil {
			return i, err
		}
		t.published++
		t.handed = it.seq
		t.gap = 0
		t.cursor = cursor{scanned: it.seq, previous: it.seq, timestamp: it.timestamp}
	}
	if n := len(items); n > 0 && items[n-1].pending != t.pending {
		t.pending = items[n-1].pending
		t.w.board.update(func(s *RouteStats) { s.Lag = t.pending })
	}
	return len(items), nil
}

// reached is the place as acknowledged by now; safe for concurrent use.
func (t *tenure) reached() place {
	p := t.place
	a := t.engine.acked()
	at := p.lastSeq
	p.lastSeq = a.stored
	if a.source > 0 {
		at, p.gap, p.resumed = a.sealed, 0, false
		p.cursor = cursor{scanned: a.source, previous: a.previous, timestamp: a.timestamp}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ahead.published == at && t.ahead.scanned > p.cursor.scanned {
		p.cursor.scanned, p.cursor.since, p.cursor.until, p.gap = t.ahead.scanned, t.since, t.until, t.ahead.gap
	}
	return p
}

// passed notes a message that is parked: nothing of it goes into the sealed
// stream, and the position moves all the same.
func (t *tenure) passed(it *item, gap uint64) {
	t.gap += gap
	t.handed = max(t.handed, it.seq)
	if it.seq > t.cursor.scanned {
		t.cursor.scanned, t.cursor.since, t.cursor.until = it.seq, it.timestamp, it.timestamp
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ahead, t.since, t.until = ahead{t.published, t.cursor.scanned, t.gap, it.seq}, t.cursor.since, t.cursor.until
}

// releasable is the source sequence up to which everything is sealed and
// acknowledged, or parked, given what the engine acknowledged; safe for
// concurrent use.
func (t *tenure) releasable(a acked) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ahead.published == a.sealed && t.heldUpTo <= a.source { // see holds, rule 6
		return max(a.source, t.ahead.parked)
	}
	return a.source
}
