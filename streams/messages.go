package streams

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// State says whether a reader holds.
type State struct {
	Stream, Consumer string
	// Held is true while messages wait for access: nothing is fetched, what was
	// fetched is kept alive and not counted as delivered again.
	Held bool
	// Err is why, nil when a hold ends. Subject and Sequence of the waiting
	// message are in it, as an [*OpenError].
	Err error
}

// Messages reads a pull consumer, durable, ordered or other, and yields opened
// messages in order. The caller acknowledges them. Each message owns its bytes.
// While messages wait for their turn they are reported as in progress; from the
// moment one is yielded AckWait is the caller's affair. With AckNone, what a cut
// connection had on its way is lost, as ever: an ordered consumer is not.
//
// A pair has either a message or an error. After an error the sequence ends,
// except under the [Deliver] policy after an [*OpenError] with Verdict Reject.
// When ctx ends, its error is yielded. Breaking the loop releases everything;
// messages fetched and not yielded are delivered again after AckWait.
func (o *Opener) Messages(ctx context.Context, c jetstream.Consumer) iter.Seq2[*Message, error] {
	return func(yield func(*Message, error) bool) {
		over := false // yield said stop: it must not be called again
		err := o.read(ctx, c, func(m *Message) error {
			if !yield(m, nil) {
				over = true
				return errBreak
			}
			return nil
		}, func(_ context.Context, oe *OpenError) error {
			if !yield(nil, oe) {
				over = true
				return errBreak
			}
			return nil
		})
		if !over {
			yield(nil, err)
		}
	}
}

// errBreak ends a read whose loop was broken.
var errBreak = errors.New("streams: loop broken")

// Consume calls h with each opened message, one after the other, and
// acknowledges the message when h returns nil; a message that h settled itself
// is left as h settled it. It blocks, and returns the error that ended it: that
// of ctx, of h (the message stays unacknowledged: to have it delivered again and
// go on, h calls NakWithDelay and returns nil), of the consumer, or the
// [*OpenError] of a message under the zero policy.
func (o *Opener) Consume(ctx context.Context, c jetstream.Consumer, h func(context.Context, *Message) error) error {
	if h == nil {
		return errors.New("consuming: handler is required")
	}
	if o.policy.kind == policyDeliver && o.policy.hook == nil {
		return errors.New("consuming: the Deliver policy needs a hook")
	}
	info := c.CachedInfo()
	acks := info != nil && info.Config.AckPolicy != jetstream.AckNonePolicy
	return o.read(ctx, c, func(m *Message) error {
		if err := h(ctx, m); err != nil {
			return err
		}
		if !acks {
			return nil
		}
		if err := m.Ack(); err != nil && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
			return fmt.Errorf("acknowledging message: %w", err)
		}
		return nil
	}, o.policy.hook)
}

// read is the loop under Messages and Consume. It returns when ctx ends, when
// nothing more can come, under the stop policy, or with the error of good or
// bad; never nil. Goroutines have ended by then.
func (o *Opener) read(ctx context.Context, c jetstream.Consumer, good func(*Message) error, bad func(context.Context, *OpenError) error) error {
	s := newSource(c, o)
	if err := o.policy.checkPark(ctx, s); err != nil {
		return err
	}
	if s.acks && s.maxTries > 0 {
		o.log.Warn("consumer has a delivery limit: what a stopped reader leaves behind is skipped by the server after so many starts",
			"consumer", s.name, "max_deliver", s.maxTries)
	}
	inner, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { s.run(inner) })
	if s.acks {
		wg.Go(func() { s.feed.keepAlive(inner, s.ackWait) })
	}
	r := &reading{Opener: o, src: s}
	for {
		raw, err := s.feed.head(ctx)
		if err != nil {
			return err
		}
		m, err := r.open(ctx, raw)
		if err == nil {
			s.feed.pop()
			if err := good(m); err != nil {
				return err
			}
			continue
		}
		var oe *OpenError
		if !errors.As(err, &oe) {
			return err
		}
		if errors.Is(err, ErrCheckpoint) {
			if err := r.skip(raw); err != nil {
				return err
			}
			continue
		}
		if err := r.undecryptable(ctx, raw, oe, bad); err != nil {
			return err
		}
		s.feed.pop()
	}
}

// reading is the state of one read; it belongs to its goroutine.
type reading struct {
	*Opener
	src     *source
	holding bool
	pause   time.Duration
}

// open opens the first message of the feed, holding as long as its key is out of
// reach. An *OpenError means it will not open; any other error ends the read.
func (r *reading) open(ctx context.Context, raw jetstream.Msg) (*Message, error) {
	r.prefetch(ctx, raw)
	unknown := r.unknownDeadline(raw)
	for {
		m, err := r.Open(ctx, raw)
		if err == nil {
			r.release()
			return m, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if errors.Is(err, ErrClosed) {
			return nil, ErrClosed
		}
		action := Verdict(err)
		if action == Skip {
			return nil, err
		}
		if errors.Is(err, ErrUnknownKey) && !time.Now().Before(unknown) {
			action = Reject
		}
		if action == Reject {
			r.release()
			return nil, err
		}
		if err := r.wait(ctx, err); err != nil {
			return nil, err
		}
	}
}

// prefetch asks for the keys of everything fetched in one call, when the first
// message would have to ask for its own.
func (r *reading) prefetch(ctx context.Context, raw jetstream.Msg) {
	_, w, err := r.parse(raw.Data())
	if err != nil || r.cache.holds(w) {
		return
	}
	n := 1
	if meta, err := raw.Metadata(); err == nil {
		n = int(min(meta.NumPending+1, uint64(r.src.window)))
	}
	r.src.feed.settle(ctx, n, r.times.settle)
	var ws []want
	for _, m := range r.src.feed.waiting() {
		if _, w, err := r.parse(m.Data()); err == nil {
			ws = append(ws, w)
		}
	}
	r.cache.prefetch(ctx, ws)
}

// unknownDeadline is until when a key unknown to the key service may still turn
// up. It counts from the storing of the message, so that a flood of forged key
// IDs delays a reader once and not once per message.
func (r *reading) unknownDeadline(raw jetstream.Msg) time.Time {
	now := time.Now()
	meta, err := raw.Metadata()
	if err != nil {
		return now
	}
	if end := meta.Timestamp.Add(r.times.unknown); end.Before(now.Add(r.times.unknown)) {
		return end
	}
	return now.Add(r.times.unknown) // the server's clock is ahead of ours
}

// wait holds for one pause.
func (r *reading) wait(ctx context.Context, cause error) error {
	if !r.holding {
		r.holding, r.pause = true, r.times.holdMin
		r.src.feed.hold(true)
		r.log.Warn("holding: messages wait for access", "consumer", r.src.name, "error", cause)
		r.tell(cause)
	}
	err := sleep(ctx, jitter(r.pause))
	r.pause = min(2*r.pause, r.times.holdMax)
	return err
}

// release ends a hold.
func (r *reading) release() {
	if !r.holding {
		return
	}
	r.holding = false
	r.src.feed.hold(false)
	r.log.Info("hold ended", "consumer", r.src.name)
	r.tell(nil)
}

func (r *reading) tell(err error) {
	if r.state == nil {
		return
	}
	st := State{Stream: r.src.stream, Held: r.holding, Err: err}
	if info := r.src.consumer.CachedInfo(); info != nil {
		st.Consumer = info.Name
	}
	r.state(st)
}

// undecryptable applies the policy to the first message of the feed. A nil error
// means that the message is settled and reading goes on.
func (r *reading) undecryptable(ctx context.Context, raw jetstream.Msg, oe *OpenError, bad func(context.Context, *OpenError) error) error {
	switch r.policy.kind {
	case policyPark:
		return r.park(ctx, raw, oe)
	case policyDeliver:
		if err := bad(ctx, oe); err != nil {
			return err
		}
		if !r.src.acks {
			return nil
		}
		if err := raw.TermWithReason("keyweir: " + Code(oe.Err)); err != nil && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
			return fmt.Errorf("terminating message: %w", err)
		}
		return nil
	}
	return oe
}

// skip settles a message that is none of the application's.
func (r *reading) skip(raw jetstream.Msg) error {
	if r.src.acks {
		if err := raw.Ack(); err != nil && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
			return fmt.Errorf("acknowledging checkpoint: %w", err)
		}
	}
	r.src.feed.pop()
	return nil
}

// park stores a dead letter, however long that takes, and then acknowledges the
// original. A crash between the two parks it again; the dead-letter stream drops
// the second copy within its window.
func (r *reading) park(ctx context.Context, raw jetstream.Msg, oe *OpenError) error {
	for {
		err := r.policy.park(ctx, r.src, raw, oe)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, errParkFinal) {
			return errors.Join(oe, err)
		}
		if err := r.wait(ctx, err); err != nil {
			return err
		}
	}
	r.release()
	r.log.Warn("message parked", "consumer", r.src.name, "sequence", oe.Sequence, "subject", r.policy.subject, "error", oe.Err)
	if !r.src.acks {
		return nil
	}
	if err := raw.Ack(); err != nil && !errors.Is(err, jetstream.ErrMsgAlreadyAckd) {
		return fmt.Errorf("acknowledging parked message: %w", err)
	}
	return nil
}
