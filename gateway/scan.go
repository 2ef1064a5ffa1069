package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// scanner reads the messages that a stream holds by now, in order and without
// their payloads. It misses none: a break begins again behind the last message.
// It belongs to one goroutine.
type scanner struct {
	nc        *nats.Conn
	js        jetstream.JetStream
	stream    string
	filters   []string // none: all
	heartbeat time.Duration
	pause     *pause

	at     uint64 // last sequence handed on
	end    bool   // nothing was behind it when it was delivered
	items  []item
	puller *puller
	name   string
}

// scanTries is how often in a row a scan is begun again without getting on.
const scanTries = 10

// next returns the next message, valid until the call after; nil at the end.
func (s *scanner) next(ctx context.Context) (*item, error) {
	tries := 0
	for {
		for len(s.items) > 0 {
			it := &s.items[0]
			s.items = s.items[1:]
			if it.seq > s.at {
				s.at, s.end = it.seq, it.pending == 0
				return it, nil
			}
		}
		if s.end {
			return nil, nil
		}
		if s.puller == nil {
			if tries++; tries > scanTries {
				return nil, fmt.Errorf("reading stream %s: it broke off after message %d again and again", s.stream, s.at)
			}
			waits, err := s.open(ctx)
			if err != nil {
				return nil, err
			}
			if waits == 0 {
				s.end = true
				return nil, nil
			}
		}
		items, err := s.puller.next(ctx, s.items[:0], batchSize)
		s.items = items
		switch {
		case errors.Is(err, errReopen):
			s.close(ctx)
			if s.pause == nil {
				s.pause = newPause(defaultTuning.retry, defaultTuning.retryMax)
			}
			if err := s.pause.wait(ctx); err != nil {
				return nil, fmt.Errorf("reading stream %s: %w", s.stream, err)
			}
		case err != nil:
			return nil, fmt.Errorf("reading stream %s: %w", s.stream, err)
		case len(items) == 0:
			// A heartbeat says that nothing is left: what was there is removed by now.
			s.end = s.puller.alive
		}
	}
}

func (s *scanner) open(ctx context.Context) (waits uint64, err error) {
	cctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	c, err := s.js.CreateConsumer(cctx, s.stream, jetstream.ConsumerConfig{
		DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: s.at + 1, FilterSubjects: s.filters, HeadersOnly: true,
		AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, Replicas: 1, InactiveThreshold: inactive,
	})
	if err != nil {
		return 0, fmt.Errorf("reading stream %s: %w", s.stream, err)
	}
	s.name = c.CachedInfo().Name
	if s.puller, err = newPuller(s.nc, s.stream, s.name, s.heartbeat); err != nil {
		return 0, fmt.Errorf("reading stream %s: %w", s.stream, err)
	}
	return c.CachedInfo().NumPending, nil
}

// close lets go of the consumer; it is safe to call twice.
func (s *scanner) close(ctx context.Context) {
	if s.puller == nil {
		return
	}
	s.puller.close()
	s.puller = nil
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
	defer cancel()
	_ = s.js.DeleteConsumer(ctx, s.stream, s.name) // the server removes an unused one by itself
}
