package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyweir/keyweir/internal/envelope"
	"github.com/keyweir/keyweir/keysvc"
)

// tuning holds the times of a worker.
type tuning struct {
	claimTTL          time.Duration // of a bucket that the gateway creates
	heartbeat         time.Duration // that the source owes us
	ackTimeout        time.Duration // until a missing acknowledgement fails the engine
	tick              time.Duration // between position records
	retry, retryMax   time.Duration // between attempts
	key, keyMax       time.Duration // between questions for a key
	keySlow, keySlowM time.Duration // the same where an operator has to act
	drain             time.Duration // for the last acknowledgements at shutdown
	progress          time.Duration // between reports while a route catches up
}

var defaultTuning = tuning{
	claimTTL: 10 * time.Second, heartbeat: 5 * time.Second, ackTimeout: 10 * time.Second, tick: time.Second,
	retry: 50 * time.Millisecond, retryMax: 5 * time.Second,
	key: 250 * time.Millisecond, keyMax: 5 * time.Second, keySlow: 2 * time.Second, keySlowM: 30 * time.Second,
	drain: 10 * time.Second, progress: 5 * time.Second,
}

// worker relays one partition of a route; a route that is not partitioned has one,
// number 0. Everything here belongs to the goroutine of run, but for board and
// metrics.
type worker struct {
	route    Route // with the filters and the sealed stream of this partition
	part     part
	prefix   string // of sealed subjects
	instance string
	tune     tuning
	noClaim  bool // tests of the fence race workers that a claim would keep apart
	plain    bool // see Gateway.RelayPlain

	log        *slog.Logger
	tracer     trace.Tracer
	propagator propagation.TextMapPropagator
	metrics    *routeMetrics
	board      board

	sourceJS, sealedJS jetstream.JetStream
	keys               Keys
	ring               *keyring
	routeKey           keysvc.RouteKey
	home               home
	plan               *layout // as recorded
	epoch              uint64  // rises with every take-over
	tenure             string  // see record
	openings           int     // of the source, in this process
	resumed            bool    // ResumeFrom was used
	suspect            string  // what the hold stream was said to have lost, see openHolds
}

var _ relay = (*worker)(nil)

func (w *worker) stats() RouteStats { return w.board.get() }

// run relays until ctx ends (nil) or the route stops (*RouteError).
func (w *worker) run(ctx context.Context) error {
	w.ring = newKeyring(w.keys, envelope.SessionConfig{Record: w.route.Record, RandomNonce: w.route.RandomNonce, PadTo: w.route.PadTo}, w.prefix, w.metrics)
	w.ring.plain = w.plain
	defer w.ring.close()
	if s := w.part.share; s != nil {
		defer s.workerEnded()
	}
	retry := newPause(w.tune.retry, w.tune.retryMax)
	for {
		err := w.hold(ctx, retry)
		if ctx.Err() != nil {
			w.board.state(StateIdle)
			return nil
		}
		if errors.Is(err, errHandOver) {
			w.log.Info("handed the partition over")
			continue
		}
		if errors.Is(err, errDrained) {
			w.board.state(StateDrained)
			w.log.Info("drained", "up_to", w.plan.Drain.After)
			return nil
		}
		if stops(err) {
			if errors.Is(err, nats.ErrConnectionClosed) {
				err = fmt.Errorf("%w: %v", ErrConnection, err)
			}
			if w.part.share != nil {
				err = fmt.Errorf("partition %d: %w", w.part.number, err)
			}
			rerr := &RouteError{w.route.Name, err}
			w.board.failed(StateStopped, rerr)
			w.log.Error("route stopped", "error", err, "hint", rerr.Hint())
			return rerr
		}
		if w.failed(ctx, retry, err) != nil {
			w.board.state(StateIdle)
			return nil
		}
	}
}

// failed notes the end of an attempt and waits for the next one.
func (w *worker) failed(ctx context.Context, retry *pause, err error) error {
	state := StateRetrying
	switch {
	case errors.Is(err, ErrKeys):
		state = StatePaused
	case errors.Is(err, ErrFenced):
		w.metrics.fenced()
	}
	w.metrics.restarted()
	w.board.failed(state, err)
	w.log.Warn("attempt ended, trying again", "error", err)
	return retry.wait(ctx)
}

// hold takes the claim and works until ctx ends, the claim is lost or the route
// stops.
func (w *worker) hold(ctx context.Context, retry *pause) error {
	w.board.state(StateStarting)
	if err := w.askRouteKey(ctx); err != nil {
		return err
	}
	if err := w.admit(ctx); err != nil {
		return err
	}
	d, err := openDestination(ctx, w.sealedJS, &w.route, w.prefix)
	if err != nil {
		return err
	}
	if w.noClaim {
		w.epoch = rand.Uint64()
		return w.attempts(ctx, retry)
	}
	b, err := openBucket(ctx, w.route.Sealed.Conn, w.sealedJS, ClaimsBucket, w.tune.claimTTL, &d.config)
	if err != nil {
		return err
	}
	w.board.state(StateWaiting)
	var c *claim
	if s := w.part.share; s != nil {
		c, err = s.take(ctx, b, w.part.number, w.key(), []byte(w.instance))
	} else {
		c, err = takeClaim(ctx, b, w.key(), []byte(w.instance))
	}
	if err != nil {
		return fmt.Errorf("taking the claim: %w", err)
	}
	w.epoch = c.revision
	w.log.Info("took the claim", "epoch", w.epoch)

	held, cancel := context.WithCancelCause(ctx)
	if s := w.part.share; s != nil {
		s.holds(w.part.number, func() { cancel(errHandOver) })
		defer s.gone(w.part.number)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := c.hold(held); err != nil {
			cancel(err)
		}
	}()
	err = w.attempts(held, retry)
	cancel(nil)
	<-done
	rctx, rcancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout/2)
	defer rcancel()
	if rerr := c.release(rctx); rerr != nil {
		w.log.Warn("releasing the claim failed; it expires", "error", rerr)
	}
	return err
}

// key names this partition in both buckets. A relayed stream has one route only.
func (w *worker) key() string { return fmt.Sprintf("%s.%d", w.route.Sealed.Stream, w.part.number) }

// attempts tries again and again, under one claim.
func (w *worker) attempts(ctx context.Context, retry *pause) error {
	for {
		err := w.attempt(ctx, retry)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if stops(err) || errors.Is(err, errDrained) {
			return err
		}
		if errors.Is(err, errEnd) {
			continue // the next attempt sees whether all of it was acknowledged
		}
		if err := w.failed(ctx, retry, err); err != nil {
			return err
		}
	}
}

// attempt finds the position and relays from there, until something fails.
func (w *worker) attempt(ctx context.Context, retry *pause) error {
	w.board.state(StateStarting)
	d, err := openDestination(ctx, w.sealedJS, &w.route, w.prefix)
	if err != nil {
		return err
	}
	if w.route.unseal == nil && w.ring.rules == nil {
		if err := w.ring.loadRules(ctx); err != nil {
			return w.keyPause(ctx, err)
		}
	}
	b, err := openBucket(ctx, w.route.Sealed.Conn, w.sealedJS, PositionsBucket, 0, &d.config)
	if err != nil {
		return err
	}
	// Record, sealed stream, source stream, in this order: another instance that
	// still writes moves them in the opposite one, so what is read first is never
	// ahead of what is read next.
	store := &recordStore{b: b, key: w.key(), route: w.routeKey}
	rec, recErr := store.load(ctx)
	if recErr != nil && !errors.Is(recErr, errBadRecord) {
		return recErr
	}
	if d, err = openDestination(ctx, w.sealedJS, &w.route, w.prefix); err != nil {
		return err
	}
	if err := w.checkUnheld(ctx, rec); err != nil {
		return err
	}
	want := w.route.Engine
	if w.route.Hold != nil || w.route.shard != nil {
		want = EngineDurable // see holds
	}
	kind, why, err := chooseEngine(want, &d.config, w.route.Sealed.SyncInterval, w.route.Sealed.Conn.ConnectedServerVersion())
	if err != nil {
		return err
	}
	w.home = home{route: w.route.Name, sealed: d.config.Name, sealedCreated: d.created.UnixNano(), partition: w.part.number, source: w.route.Source.Stream, shared: w.route.shard != nil}
	if w.route.shard != nil {
		w.newTenure()
		if err := w.readTip(ctx, d); err != nil {
			return err
		}
	}
	info, err := w.sourceInfo(ctx)
	if err != nil {
		return err
	}
	if err := w.checkCycle(ctx, info); err != nil {
		return err
	}
	if w.plan, err = w.agree(ctx, b, d, info); err != nil {
		return err
	}
	if err := w.route.unseal.checkPark(ctx); err != nil {
		return err
	}
	p, err := w.recoverPlace(ctx, d, rec, recErr, info)
	if err != nil {
		return w.contested(ctx, err, d.lastSeq)
	}
	var h *holds
	if w.route.Hold != nil {
		if h, err = w.openHolds(ctx, d, p, rec); err != nil {
			return err
		}
		why = "the route holds messages"
	}
	// What was decided here must be the same for everybody from now on.
	if err := store.save(ctx, h.record(w, p)); err != nil {
		return err
	}
	w.resumed = w.resumed || p.resumed
	if end := w.plan.Drain; end != nil {
		at := max(p.cursor.scanned, h.furthest(p.created))
		if at > end.After || p.cursor.scanned >= end.After && h.empty() {
			return w.drained(ctx, b, at, info)
		}
	}
	parking, err := w.openParking(ctx, p)
	if err != nil {
		return err
	}
	var marks *marker
	if w.route.shard != nil {
		if marks, err = w.take(ctx, d, p, store); err != nil {
			return err
		}
		why = "the partitions share the sealed stream"
	}
	lag, warning := releaseLag(&d.config, w.route.Sealed.SyncInterval)
	lag = max(lag, parking.releaseLag())
	if warning != "" && w.openings == 0 {
		w.log.Warn(warning)
	}
	if h != nil {
		held, _ := releaseLag(&h.d.config, w.route.Sealed.SyncInterval)
		lag = max(lag, held) // what is held is the only copy too
	}
	w.log.Info("relaying", "engine", kind.String(), "because", why, "chain", p.chain.String(), "after", p.cursor.scanned, "sealed_sequence", p.lastSeq)
	w.board.update(func(s *RouteStats) { s.Engine, s.Position, s.SealedSequence = kind, p.cursor.scanned, p.lastSeq })
	t := &tenure{w: w, place: *p, cursor: p.cursor, since: p.cursor.since, until: p.cursor.until, gap: p.gap, published: p.lastSeq, handed: p.cursor.scanned, retry: retry, parking: parking, holds: h, marks: marks}
	if h != nil {
		t.heldUpTo = p.cursor.scanned
	}
	return t.run(ctx, d, kind, info, store, lag)
}

// askRouteKey asks for the MAC key of the route's positions, once.
func (w *worker) askRouteKey(ctx context.Context) error {
	if !w.routeKey.IsZero() {
		return nil
	}
	kctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	k, err := w.keys.RouteKey(kctx, w.route.Name)
	if err != nil {
		return w.keyPause(ctx, fmt.Errorf("%w: asking for the route key: %w", ErrKeys, err))
	}
	w.routeKey = k
	return nil
}

// keyPause makes errors that an operator has to mend wait longer, on top of the
// pause between attempts.
func (w *worker) keyPause(ctx context.Context, err error) error {
	if patient(err) {
		w.board.failed(StatePaused, err)
		if serr := sleep(ctx, w.tune.keySlow); serr != nil {
			return serr
		}
	}
	return err
}

// checkCycle refuses sealed subjects, and those of dead letters, that the source
// stream would take in again. Whether both streams are in one account shows when
// the source stream, with the same creation time, is there on the sealed side too.
func (w *worker) checkCycle(ctx context.Context, info *jetstream.StreamInfo) error {
	targets := append(w.route.targets(w.prefix), w.route.DeadLetters.patterns()...)
	if err := checkOwnOutput(&info.Config, w.route.Sealed.Stream); err != nil {
		return err
	}
	if !anyOverlap(targets, w.route.Source.Subjects) && !anyOverlap(targets, info.Config.Subjects) {
		return nil
	}
	other, err := streamInfo(ctx, w.sealedJS, w.route.Source.Stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if other.Created.Equal(info.Created) {
		return fmt.Errorf("%w: stream %s also takes %s: the route would relay its own output", ErrSource, info.Config.Name, strings.Join(targets, ", "))
	}
	return nil
}
