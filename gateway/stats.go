package gateway

import (
	"fmt"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
)

// State is what a route is doing.
type State int

const (
	StateIdle     State = iota + 1 // not running
	StateWaiting                   // another instance holds the claim
	StateStarting                  // finding the position, opening the source
	StateRunning
	StatePaused   // no key to seal or open with; retried
	StateRetrying // an attempt failed; the next one comes after a pause
	StateStopped  // for good, see LastError
	StateDrained  // for good, having done what Route.Drain says
)

var stateNames = [...]string{
	StateIdle: "idle", StateWaiting: "waiting", StateStarting: "starting", StateRunning: "running",
	StatePaused: "paused", StateRetrying: "retrying", StateStopped: "stopped",
	StateDrained: "drained",
}

func (s State) String() string {
	if s >= StateIdle && int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", int(s))
}

// RouteStats is what is known of one route, or one partition of it, in this
// instance.
type RouteStats struct {
	Name string
	// Partition is the number of the partition, from 0, of Partitions; 0 of 1 for a
	// route without. SealedStream is its sealed stream.
	Partition, Partitions int
	SealedStream          string
	State                 State
	// Engine is the one in use; EngineAuto until one was chosen.
	Engine Engine
	// Position is the source sequence up to which everything is sealed and
	// acknowledged, SealedSequence the last sequence of the sealed stream by that.
	Position, SealedSequence uint64
	// Released is the source sequence up to which source messages were released.
	Released uint64
	// Lag is how many source messages wait, as last seen.
	Lag uint64
	// Backlog is how many source messages waited when the route began to catch up:
	// from a lag of 10,000 on, until it is below 1,000. It is 0 while the route
	// keeps up. BacklogSealed of them, or of those that came later, are sealed.
	Backlog, BacklogSealed uint64
	// Rate is how many messages a second were sealed of late; 0: not known yet.
	Rate float64
	// Messages and Bytes (of payload) were sealed and acknowledged by this
	// instance since the route started here; a message sealed again after a failed
	// attempt counts once.
	Messages, Bytes uint64
	// Parked counts messages that were put aside by this instance because they do
	// not open, see [Unseal].
	Parked uint64
	// Lost counts source messages that limits removed before they were sealed.
	Lost uint64
	// DeadLetters counts messages that this instance parked since it started.
	DeadLetters uint64
	// ScopesHeld and MessagesHeld are what waits in the hold stream, see [Hold].
	ScopesHeld, MessagesHeld uint64
	// LastError is the last error and LastErrorAt when; nil if there was none. A
	// route that recovered keeps it.
	LastError   error
	LastErrorAt time.Time
	// Ingest counts what a core ingest route did; nil for others. Of such a route
	// Messages and Bytes were handed to the sealed stream.
	Ingest *IngestStats
}

// Label names the route, or the partition of it: "orders", "orders/3".
func (s *RouteStats) Label() string {
	if s.Partitions <= 1 {
		return s.Name
	}
	return partitionLabel(s.Name, s.Partition)
}

func partitionLabel(route string, partition int) string {
	return fmt.Sprintf("%s/%d", route, partition)
}

// attributes are those of the metrics.
func (s *RouteStats) attributes() []attribute.KeyValue {
	out := []attribute.KeyValue{attribute.String("route", s.Name)}
	if s.Partitions > 1 {
		out = append(out, attribute.Int("partition", s.Partition))
	}
	return out
}

// board holds a route's RouteStats. Safe for concurrent use.
type board struct {
	mu sync.Mutex
	s  RouteStats // guarded by mu
}

func (b *board) update(f func(*RouteStats)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.s)
}

func (b *board) get() RouteStats {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.s
}

func (b *board) state(s State) { b.update(func(r *RouteStats) { r.State = s }) }

func (b *board) failed(s State, err error) {
	b.update(func(r *RouteStats) { r.State, r.LastError, r.LastErrorAt = s, err, time.Now() })
}
