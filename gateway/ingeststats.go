package gateway

import (
	"context"
	"fmt"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// IngestStats counts what a core ingest route did in this instance.
type IngestStats struct {
	// Received were taken from the plaintext subjects. Each was Published, or is
	// counted in Refused or Dropped, or is among the Waiting.
	Received uint64
	// Published were sealed and handed to the sealed stream. Whether it stored them
	// its acknowledgement says, which most publishers get past the gateway.
	Published uint64
	// Refused were answered with an error, by reason.
	Refused map[Refusal]uint64
	// Dropped are lost messages whose publishers did not ask for an answer, by
	// reason: not Published, or Published and not stored.
	Dropped map[Refusal]uint64
	// Overrun were dropped by the client library before the route saw them, because
	// they came faster than they could even be refused; their publishers time out.
	Overrun uint64
	// Waiting are in the queue now.
	Waiting uint64
}

// ingestCounts are the counters behind IngestStats. Safe for concurrent use.
type ingestCounts struct {
	received, published, bytes, overrun atomic.Uint64
	waiting                             atomic.Int64
	refused, dropped                    [refusalEnd]atomic.Uint64
}

// lost counts a message that was not sealed, or not stored.
func (c *ingestCounts) lost(r Refusal, answered bool) {
	if answered {
		c.refused[r].Add(1)
	} else {
		c.dropped[r].Add(1)
	}
}

func (c *ingestCounts) stats() *IngestStats {
	s := &IngestStats{
		Received: c.received.Load(), Published: c.published.Load(), Overrun: c.overrun.Load(), Waiting: uint64(max(0, c.waiting.Load())),
		Refused: make(map[Refusal]uint64), Dropped: make(map[Refusal]uint64),
	}
	for r := Refusal(1); r < refusalEnd; r++ {
		if n := c.refused[r].Load(); n > 0 {
			s.Refused[r] = n
		}
		if n := c.dropped[r].Load(); n > 0 {
			s.Dropped[r] = n
		}
	}
	return s
}

// stats is what Gateway.Stats says of the route.
func (g *ingest) stats() RouteStats {
	s := g.board.get()
	s.Ingest = g.counts.stats()
	s.Messages, s.Bytes = s.Ingest.Published, g.counts.bytes.Load()
	return s
}

// observeIngest reports the counters of core ingest when somebody asks.
func (g *Gateway) observeIngest(m metric.Meter) error {
	var counters [4]metric.Int64ObservableCounter
	for i, c := range []struct{ name, text string }{
		{"keyweir.gateway.ingest.received", "Messages taken from plaintext subjects."},
		{"keyweir.gateway.ingest.refused", "Messages answered with an error, by reason."},
		{"keyweir.gateway.ingest.dropped", "Messages lost whose publishers asked for no answer, by reason."},
		{"keyweir.gateway.ingest.overrun", "Messages that came faster than they could be refused."},
	} {
		var err error
		if counters[i], err = m.Int64ObservableCounter(c.name, metric.WithUnit("{message}"), metric.WithDescription(c.text)); err != nil {
			return fmt.Errorf("creating counter %s: %w", c.name, err)
		}
	}
	_, err := m.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		for _, r := range g.Stats() {
			s := r.Ingest
			if s == nil {
				continue
			}
			route := attribute.String("route", r.Name)
			o.ObserveInt64(counters[0], int64(s.Received), metric.WithAttributes(route))
			o.ObserveInt64(counters[3], int64(s.Overrun), metric.WithAttributes(route))
			for r := Refusal(1); r < refusalEnd; r++ { // zeros too: an alert needs the series to exist
				reason := attribute.String("reason", r.String())
				o.ObserveInt64(counters[1], int64(s.Refused[r]), metric.WithAttributes(route, reason))
				o.ObserveInt64(counters[2], int64(s.Dropped[r]), metric.WithAttributes(route, reason))
			}
		}
		return nil
	}, counters[0], counters[1], counters[2], counters[3])
	if err != nil {
		return fmt.Errorf("registering ingest counters: %w", err)
	}
	return nil
}
