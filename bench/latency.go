package bench

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/gateway"
)

// Latency are quantiles in microseconds, of so many messages.
type Latency struct {
	Messages int64 `json:"messages"`
	P50      int64 `json:"p50"`
	P99      int64 `json:"p99"`
	P999     int64 `json:"p99.9"`
	Max      int64 `json:"max"`
}

// latencies counts how long messages of a fixed rate took, each from the time it
// was due: a message that was published late, because the one before it held up
// the publisher, waited for all of that time.
type latencies struct {
	start time.Time
	every time.Duration // between two messages
	h     *hdrhistogram.Histogram
}

func newLatencies(start time.Time, rate int) *latencies {
	return &latencies{start, time.Second / time.Duration(rate), hdrhistogram.New(1, time.Minute.Microseconds(), 3)}
}

// due is when message n, from 0, is to be published.
func (l *latencies) due(n int) time.Time { return l.start.Add(time.Duration(n) * l.every) }

func (l *latencies) arrived(n int, at time.Time) error {
	us := max(1, at.Sub(l.due(n)).Microseconds())
	if err := l.h.RecordValue(min(us, l.h.HighestTrackableValue())); err != nil {
		return fmt.Errorf("recording latency: %w", err)
	}
	return nil
}

func (l *latencies) result() *Latency {
	return &Latency{l.h.TotalCount(), l.h.ValueAtQuantile(50), l.h.ValueAtQuantile(99), l.h.ValueAtQuantile(99.9), l.h.Max()}
}

// arrival is a message of a copy: where it was in the source stream, and when the
// reader had it.
type arrival struct {
	sequence uint64
	at       time.Time
	err      error
}

// latency publishes at a rate into an empty source stream, and reads the copies.
func (b *relayBench) latency(ctx context.Context, way relayWay, rate int) (*Latency, error) {
	if err := b.makeSource(ctx); err != nil {
		return nil, err
	}
	streams, end, err := b.begin(ctx, way)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	arrivals := make(chan arrival, 4096)
	defer cancel()
	var wg sync.WaitGroup
	for _, stream := range streams {
		reader, err := b.reader(ctx, stream)
		if err != nil {
			return nil, err
		}
		wg.Go(func() { read(ctx, reader, arrivals) })
	}
	// One message for each partition goes first, so that everything is up.
	for i := range b.Partitions {
		if _, err := b.js.Publish(ctx, relaySubject(i, b.Partitions), make([]byte, b.Size)); err != nil {
			return nil, fmt.Errorf("publishing: %w", err)
		}
		if _, err := arrived(ctx, arrivals); err != nil {
			return nil, err
		}
	}
	messages := int(b.LatencyTime.Seconds() * float64(rate))
	l := newLatencies(time.Now().Add(10*time.Millisecond), rate)
	published := make(chan error, 1)
	wg.Go(func() { published <- b.publishAt(ctx, l, messages) })
	for range messages {
		a, err := arrived(ctx, arrivals)
		if err != nil {
			return nil, err
		}
		if err := l.arrived(int(a.sequence)-b.Partitions-1, a.at); err != nil {
			return nil, err
		}
	}
	if err := <-published; err != nil {
		return nil, err
	}
	// The readers first: without its stream one would look for it for ever.
	cancel()
	wg.Wait()
	return l.result(), end()
}

// read hands on what comes until ctx ends.
func read(ctx context.Context, reader jetstream.MessagesContext, to chan<- arrival) {
	defer reader.Stop()
	for {
		m, err := reader.Next(jetstream.NextContext(ctx))
		a := arrival{at: time.Now(), err: err}
		if err == nil {
			a.sequence, a.err = sourceSequence(m)
		}
		select {
		case to <- a:
		case <-ctx.Done():
			return
		}
		if a.err != nil {
			return
		}
	}
}

// arrived waits for a message of a copy.
func arrived(ctx context.Context, from <-chan arrival) (arrival, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, chaosPatience, errors.New("nothing arrives any more"))
	defer cancel()
	select {
	case a := <-from:
		if a.err != nil {
			return a, fmt.Errorf("reading the copy: %w", a.err)
		}
		return a, nil
	case <-ctx.Done():
		return arrival{}, fmt.Errorf("reading the copy: %w", context.Cause(ctx))
	}
}

// reader reads the copy from its beginning.
func (b *relayBench) reader(ctx context.Context, stream string) (jetstream.MessagesContext, error) {
	for end := time.Now().Add(chaosPatience); ; {
		c, err := b.js.OrderedConsumer(ctx, stream, jetstream.OrderedConsumerConfig{})
		if err == nil {
			m, err := c.Messages(jetstream.PullMaxMessages(2000))
			if err != nil {
				return nil, fmt.Errorf("reading the copy: %w", err)
			}
			return m, nil
		}
		if !isNotFound(err) || time.Now().After(end) {
			return nil, fmt.Errorf("reading the copy: %w", err)
		}
		if err := pauseFor(ctx, 10*time.Millisecond); err != nil { // the gateway makes it
			return nil, err
		}
	}
}

// publishAt publishes every message when it is due, or as soon after as it can.
func (b *relayBench) publishAt(ctx context.Context, l *latencies, messages int) error {
	payload := make([]byte, b.Size)
	t := time.NewTimer(0)
	defer t.Stop()
	for i := range messages {
		if wait := time.Until(l.due(i)); wait > 0 {
			t.Reset(wait)
			select {
			case <-t.C:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if _, err := b.js.PublishAsync(relaySubject(i, b.Partitions), payload, jetstream.WithStallWait(chaosPatience)); err != nil {
			return fmt.Errorf("publishing: %w", err)
		}
	}
	return nil
}

// sourceSequence is where in the source stream a copy comes from: the gateway and
// the server note it in a header.
func sourceSequence(m jetstream.Msg) (uint64, error) {
	f := strings.Split(m.Headers().Get(gateway.HeaderSource), ":") // chain, sequence, ...
	if len(f) < 2 {
		f = strings.Fields(m.Headers().Get("Nats-Stream-Source")) // stream, sequence, ...
	}
	if len(f) >= 2 {
		if n, err := strconv.ParseUint(f[1], 10, 64); err == nil && n > 0 {
			return n, nil
		}
	}
	return 0, errors.New("a message does not say where it comes from")
}
