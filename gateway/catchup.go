package gateway

import (
	"log/slog"
	"math"
	"sync"
	"time"
)

// A route catches up from a lag of catchUpFrom on until it is below catchUpTo.
const (
	catchUpFrom = 10_000
	catchUpTo   = 1_000
)

// catchUp follows how a route works off what waits for it: history at the start
// of a chain, or what came while the gateway was down. Safe for concurrent use.
type catchUp struct {
	mu       sync.Mutex // guards what follows
	total    uint64     // waited when it began; 0: not catching up
	begun    uint64     // messages sealed by then
	since    time.Time
	rate     float64 // messages per second, smoothed; 0: unknown
	messages uint64  // sealed at the last look
	looked   time.Time
}

// fill adds to s what is known.
func (c *catchUp) fill(s *RouteStats) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Backlog, s.Rate = c.total, c.rate
	if c.total > 0 && s.Messages > c.begun {
		s.BacklogSealed = s.Messages - c.begun
	}
}

// look is called every now and then, and reports while there is much to do.
func (c *catchUp) look(s RouteStats, now time.Time, log *slog.Logger) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fresh := s.Messages - c.messages
	if took := now.Sub(c.looked).Seconds(); !c.looked.IsZero() && took > 0 {
		rate := float64(fresh) / took
		if c.rate > 0 {
			rate = 0.6*c.rate + 0.4*rate
		}
		c.rate = rate
	}
	before := c.messages
	c.messages, c.looked = s.Messages, now
	switch {
	case c.total == 0 && s.Lag >= catchUpFrom:
		// What was sealed since the last look belonged to it, most likely.
		c.total, c.begun, c.since = s.Lag+fresh, before, now
	case c.total == 0:
		return
	case s.Lag < catchUpTo && s.State == StateRunning:
		log.Info("caught up", "sealed", s.Messages-c.begun, "waiting", s.Lag, "took", now.Sub(c.since).Round(time.Second))
		c.total = 0
		return
	}
	done := s.Messages - c.begun
	attrs := []any{
		"state", s.State.String(), "sealed", done, "waiting", s.Lag, "position", s.Position,
		"percent", math.Floor(1000*float64(done)/float64(max(done+s.Lag, 1))) / 10,
	}
	if c.rate >= 1 {
		left := time.Duration(float64(s.Lag) / c.rate * float64(time.Second))
		attrs = append(attrs, "per_second", math.Round(c.rate), "left", left.Round(time.Second))
	}
	log.Info("catching up", attrs...)
}
