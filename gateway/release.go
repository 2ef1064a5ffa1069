package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// releaser lets go of source messages whose sealed copy is safe: those whose
// acknowledgement is older than the lag (see [Sealed].SyncInterval), because from
// then on the sealed copy is the only one. It never lets go of anything that was
// neither covered by the position at take-over nor sealed by this worker.
type releaser struct {
	w         *worker
	lag       time.Duration
	retention jetstream.RetentionPolicy

	samples  []sample // of the acknowledged position, oldest first
	safe     uint64   // source sequence up to which release is allowed
	released uint64   // up to which it was done

	mu      sync.Mutex // guards what follows: filled by the worker, emptied by the keeper
	unacked []delivery // queue sources: in the order of delivery
	old     []oldConsumers
}

type sample struct {
	at     time.Time
	source uint64
}

type delivery struct {
	seq   uint64
	reply string
}

// oldConsumers hold back messages that a newer consumer will not bring again.
type oldConsumers struct {
	upTo  uint64 // they may go when everything up to here is safe
	names []string
}

// delivered notes a message that is to be acknowledged once it is safe.
func (r *releaser) delivered(seq uint64, reply string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unacked = append(r.unacked, delivery{seq, reply})
}

// reopened forgets deliveries of an earlier consumer: either they come again, or
// that consumer is among old and goes when all that was handed on is safe. Until
// then its interest is what keeps them in the source stream.
func (r *releaser) reopened(old []string, handed uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.unacked = nil
	if len(old) > 0 {
		r.old = append(r.old, oldConsumers{handed, old})
	}
}

// sealed notes that everything up to a source sequence is acknowledged by now.
func (r *releaser) sealed(now time.Time, source uint64) {
	if n := len(r.samples); n == 0 && source > r.safe || n > 0 && source > r.samples[n-1].source {
		r.samples = append(r.samples, sample{now, source})
	}
	for len(r.samples) > 0 && now.Sub(r.samples[0].at) >= r.lag {
		r.safe = r.samples[0].source
		r.samples = r.samples[1:]
	}
}

// release does what is due.
func (r *releaser) release(ctx context.Context) error {
	if r.retention == jetstream.LimitsPolicy {
		if r.w.route.Source.AfterSeal != AfterSealPurge || r.safe <= r.released {
			return nil
		}
		if err := r.purge(ctx, r.safe); err != nil {
			return err
		}
		r.released = r.safe
		return nil
	}
	if err := r.ack(); err != nil {
		return err
	}
	r.released = r.safe
	return r.dropOld(ctx)
}

// purge removes what matches the route, up to and with seq. By subject even where
// the route takes all that the stream takes today: older messages may be others'.
func (r *releaser) purge(ctx context.Context, seq uint64) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	s, err := r.w.sourceJS.Stream(ctx, r.w.route.Source.Stream)
	if err != nil {
		return fmt.Errorf("purging source: %w", err)
	}
	for _, filter := range r.w.route.Source.Subjects {
		if err := s.Purge(ctx, jetstream.WithPurgeSubject(filter), jetstream.WithPurgeSequence(seq+1)); err != nil {
			return fmt.Errorf("purging source: %w", err)
		}
	}
	return nil
}

var ackBody = []byte("+ACK")

// ack acknowledges what is safe. It is not waited for: an acknowledgement that is
// lost goes with the connection, the consumer is made anew then, and the message
// is delivered and acknowledged again.
func (r *releaser) ack() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for n < len(r.unacked) && r.unacked[n].seq <= r.safe {
		if err := r.w.route.Source.Conn.Publish(r.unacked[n].reply, ackBody); err != nil {
			r.unacked = r.unacked[n:]
			return fmt.Errorf("acknowledging source messages: %w", err)
		}
		n++
	}
	if r.unacked = r.unacked[n:]; len(r.unacked) == 0 {
		r.unacked = nil // lets go of the array
	}
	return nil
}

func (r *releaser) dropOld(ctx context.Context) error {
	r.mu.Lock()
	var due []string
	for len(r.old) > 0 && r.old[0].upTo <= r.safe {
		due = append(due, r.old[0].names...)
		r.old = r.old[1:]
	}
	r.mu.Unlock()
	if len(due) == 0 {
		return nil
	}
	if err := r.w.deleteConsumers(ctx, due); err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.old = append([]oldConsumers{{0, due}}, r.old...)
		return err
	}
	return nil
}

// keeper writes the position record and releases, beside the worker, from what
// the engine says is acknowledged. Nothing it fails to do is lost: the next tick
// does it.
type keeper struct {
	t        *tenure
	store    *recordStore
	releaser *releaser
	seen     acked
	recorded uint64 // source sequence that the position record has
	ousted   bool   // see write
}

// run ticks until stop is closed, and once more.
func (k *keeper) run(ctx context.Context, stop <-chan struct{}) {
	every := k.t.w.tune.tick
	if k.releaser.lag > 0 {
		every = min(every, max(k.releaser.lag/4, 10*time.Millisecond))
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var written time.Time
	for {
		last := false
		select {
		case <-tick.C:
		case <-stop:
			last = true
		}
		now := time.Now()
		a := k.t.engine.acked()
		k.count(a)
		if last || now.Sub(written) >= k.t.w.tune.tick {
			k.note(ctx, "writing the position record", k.write(ctx, last))
			written = now
		}
		done := k.t.releasable(a)
		if h := k.t.holds; h != nil {
			k.note(ctx, "removing released messages", h.remove(ctx, a.sealed, k.releaser.lag))
		}
		k.releaser.sealed(now, done)
		k.note(ctx, "releasing source messages", k.releaser.release(ctx))
		released := k.releaser.released
		k.t.w.board.update(func(s *RouteStats) { s.Position, s.Released = max(s.Position, done), max(s.Released, released) })
		if last {
			return
		}
	}
}

// count reports what was acknowledged since the last tick.
func (k *keeper) count(a acked) {
	messages, bytes := a.sealed-k.seen.sealed, a.payload-k.seen.payload
	k.seen = a
	if messages == 0 {
		return
	}
	k.t.w.metrics.sealed(int(messages), int(bytes))
	k.t.w.board.update(func(s *RouteStats) {
		s.Messages += messages
		s.Bytes += bytes
		s.Position, s.SealedSequence = a.source, a.stored
	})
}

func (k *keeper) write(ctx context.Context, last bool) error {
	if k.ousted {
		return nil
	}
	p := k.t.reached()
	if e, ok := k.t.engine.(*durableEngine); ok && k.t.marks != nil {
		p.clean = last && e.settled()
	}
	r := k.t.holds.record(k.t.w, &p)
	err := k.store.save(ctx, r)
	if err == nil {
		k.recorded = p.cursor.scanned
		k.t.w.board.update(func(s *RouteStats) { s.Position = max(s.Position, k.recorded) })
	}
	if !errors.Is(err, errRecordMoved) {
		return err
	}
	if k.t.marks != nil {
		// Another tenure has begun, and the record is its own: what it says of itself
		// depends on it.
		k.ousted = true
		return nil
	}
	// Another instance writes as well; the fence sorts out who goes on. Never put
	// an older position over a newer one.
	other, lerr := k.store.load(ctx)
	if lerr != nil && !errors.Is(lerr, errBadRecord) {
		return lerr
	}
	if other != nil && other.LastSeq > p.lastSeq {
		return nil
	}
	return k.store.save(ctx, r)
}

func (k *keeper) note(ctx context.Context, what string, err error) {
	if err == nil || ctx.Err() != nil {
		return
	}
	k.t.w.log.Warn(what+" failed, trying again", "error", err)
	k.t.w.board.update(func(s *RouteStats) { s.LastError, s.LastErrorAt = err, time.Now() })
}
