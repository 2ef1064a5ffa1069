package streams

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	pullExpiry  = 30 * time.Second // how long one pull waits for messages
	defaultWait = 30 * time.Second // the server's default AckWait
)

// source fetches from one consumer into a feed.
//
// A consumer is read by single pulls: between two of them nothing can be on its
// way, so a hold really stops delivery, and every delivered message stands in the
// feed, where it is kept alive. An iterator of the library would keep pulling, and
// one that nobody reads for long drops what does not fit its buffer. An ordered
// consumer is an iterator all the same: it notices such holes and starts again
// behind the last message read, and single pulls would make it start again for each.
type source struct {
	consumer jetstream.Consumer
	feed     *feed
	log      *slog.Logger

	name     string // stream/consumer, for logs
	stream   string
	filters  []string
	acks     bool          // the consumer wants acknowledgements
	ackWait  time.Duration // the shortest wait it grants
	batch    int
	bytes    int
	expiry   time.Duration
	group    string        // the consumer's priority group, "" if it has none
	noBytes  bool          // the next pull goes without the byte bound
	window   int           // at most so many messages are delivered and unsettled in one pull
	beat     time.Duration // idle heartbeat: a dead pull is noticed after twice this
	maxTries int           // MaxDeliver; 0 or less: no limit
}

func newSource(c jetstream.Consumer, o *Opener) *source {
	s := &source{
		consumer: c, feed: newFeed(), log: o.log, batch: o.fetch, window: o.fetch, bytes: o.bytes,
		expiry: pullExpiry, beat: o.times.heartbeat,
	}
	info := c.CachedInfo()
	if info == nil {
		return s
	}
	cfg := &info.Config
	s.name, s.stream, s.maxTries = info.Stream+"/"+info.Name, info.Stream, cfg.MaxDeliver
	s.filters = cfg.FilterSubjects
	if cfg.FilterSubject != "" {
		s.filters = []string{cfg.FilterSubject}
	}
	s.acks = cfg.AckPolicy != jetstream.AckNonePolicy
	s.ackWait = orDefault(cfg.AckWait, defaultWait)
	for _, d := range cfg.BackOff {
		s.ackWait = min(s.ackWait, d)
	}
	if n := cfg.MaxRequestBatch; n > 0 {
		s.batch = min(s.batch, n)
	}
	if n := cfg.MaxRequestMaxBytes; n > 0 {
		s.bytes = min(s.bytes, n)
	}
	if d := cfg.MaxRequestExpires; d > 0 {
		s.expiry = min(s.expiry, d)
	}
	s.beat = min(s.beat, s.expiry/3)
	s.window = s.batch
	if n := cfg.MaxAckPending; n > 0 && s.acks {
		s.window = min(s.window, n)
	}
	if len(cfg.PriorityGroups) > 0 {
		s.group = cfg.PriorityGroups[0]
	}
	return s
}

// run fetches until ctx ends or nothing more can come.
func (s *source) run(ctx context.Context) {
	if ordered(s.consumer) {
		s.feed.end(s.iterate(ctx))
	} else {
		s.feed.end(s.pulls(ctx))
	}
}

// ordered recognises the library's ordered consumer, which has no type of its own
// to ask for. One that is not recognised is read correctly, but slowly.
func ordered(c jetstream.Consumer) bool {
	return fmt.Sprintf("%T", c) == "*jetstream.orderedConsumer"
}

// pulls asks for one batch after the other; the next is on its way while the one
// before is being read.
func (s *source) pulls(ctx context.Context) error {
	pause := 100 * time.Millisecond
	for {
		if err := s.feed.admit(ctx, s.batch); err != nil {
			return err
		}
		err := s.pull(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			pause = 100 * time.Millisecond
			continue
		}
		if end := s.final(ctx, err); end != nil {
			return end
		}
		s.log.Debug("pull failed, trying again", "consumer", s.name, "error", err)
		if err := sleep(ctx, jitter(pause)); err != nil {
			return err
		}
		pause = min(2*pause, 5*time.Second)
	}
}

// pull makes one request and pushes what it brings.
func (s *source) pull(ctx context.Context) error {
	// The reader's own deadline must not shorten the pull below what its
	// heartbeat allows; its end does end the pull.
	outer := ctx
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.expiry)
	defer cancel()
	defer context.AfterFunc(outer, cancel)()
	batch := s.batch
	opts := []jetstream.FetchOpt{jetstream.FetchContext(ctx), jetstream.FetchHeartbeat(s.beat)}
	if s.group != "" {
		opts = append(opts, jetstream.FetchPriorityGroup(s.group))
	}
	if s.noBytes {
		batch = 1
	} else {
		opts = append(opts, jetstream.FetchMaxBytes(s.bytes))
	}
	started, n := time.Now(), 0
	got, err := s.consumer.Fetch(batch, opts...)
	if err != nil {
		return err
	}
	for m := range got.Messages() {
		s.feed.push(m)
		n++
	}
	err = got.Error()
	// A pull that came back empty before its time met a message larger than the
	// byte bound: that one is fetched alone.
	s.noBytes = err == nil && n == 0 && time.Since(started) < s.expiry/2 && !s.noBytes
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

// final says whether a failed pull was the last, and why.
func (s *source) final(ctx context.Context, err error) error {
	for _, end := range []error{
		jetstream.ErrConsumerDeleted, jetstream.ErrConsumerNotFound, jetstream.ErrBadRequest, jetstream.ErrInvalidOption,
		jetstream.ErrConnectionClosed, nats.ErrConnectionClosed, nats.ErrConnectionDraining,
	} {
		if errors.Is(err, end) {
			return fmt.Errorf("fetching from %s: %w", s.name, err)
		}
	}
	if errors.Is(err, nats.ErrNoResponders) {
		// Either no server at the moment, or the consumer is gone. Where asking is
		// not permitted the pulls go on.
		_, err := s.consumer.Info(ctx)
		if errors.Is(err, jetstream.ErrConsumerNotFound) || errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("fetching from %s: %w", s.name, err)
		}
	}
	return nil
}

// iterate reads an ordered consumer.
func (s *source) iterate(ctx context.Context) error {
	opts := []jetstream.PullMessagesOpt{
		jetstream.PullMaxMessages(s.batch),
		jetstream.PullExpiry(max(s.expiry, time.Second)),           // the least the library takes
		jetstream.PullHeartbeat(max(s.beat, 500*time.Millisecond)), // likewise
		jetstream.WithMessagesErrOnMissingHeartbeat(false),
	}
	if s.group != "" {
		opts = append(opts, jetstream.PullPriorityGroup(s.group))
	}
	it, err := s.consumer.Messages(opts...)
	if err != nil {
		return fmt.Errorf("reading from %s: %w", s.name, err)
	}
	defer it.Stop()
	for {
		if err := s.feed.admit(ctx, s.batch); err != nil {
			return err
		}
		m, err := it.Next(jetstream.NextContext(ctx))
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, jetstream.ErrNoHeartbeat):
		case err != nil:
			return fmt.Errorf("reading from %s: %w", s.name, err)
		default:
			s.feed.push(m)
		}
	}
}

// sleep waits for d or for the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
