package gateway

import (
	"errors"
	"fmt"
	"slices"

	"github.com/keyweir/keyweir/internal/pattern"
)

// Hold makes a route go on when single scopes have no key: see [Route].Hold. A
// drain waits until nothing is held. To end holding, take it out of the
// configuration when nothing is held: before, the route stops.
type Hold struct {
	// Stream is where the messages wait, on the connection of the sealed stream: up
	// to 255 of A-Z a-z 0-9 _ -. With partitions each has one, numbered as
	// [Sealed].Stream is. Zero: the sealed stream's name and _HOLD.
	Stream string
	// Scope is what the key service's rules must put the subject keyweir.hold.<route>
	// into: held messages are sealed under its keys. The gateway needs the
	// permissions generate and open on it, and nobody else needs any. Zero:
	// hold/<route>.
	Scope string
	// Create makes the stream if it does not exist; limits cannot be set. Nil: it
	// must exist.
	Create *CreateSealed
}

// HoldSubject is the subject for which a route asks the key service for the keys
// of what it holds. Held messages are published below it.
func HoldSubject(route string) string { return "keyweir.hold." + route }

// streams are the names of the route's hold streams, one for each partition; none
// of a nil h.
func (h *Hold) streams(r *Route) []string {
	if h == nil {
		return nil
	}
	return pattern.StreamNames(h.Stream, len(r.Source.Partitions))
}

// ErrHold: held messages cannot be kept or released: the hold stream has a setting
// that would lose them or was changed by somebody else, or the key service does
// not know the scope that they are sealed under.
var ErrHold = errors.New("gateway: hold stream refused")

// withDefaults checks h and fills in what zero values stand for.
func (h *Hold) withDefaults(r *Route) (*Hold, error) {
	if h == nil {
		return nil, nil
	}
	own := *h
	if own.Stream == "" {
		own.Stream = r.Sealed.Stream + "_HOLD"
	}
	if own.Scope == "" {
		own.Scope = "hold/" + r.Name
	}
	for _, s := range own.streams(r) {
		if !streamName.MatchString(s) || slices.Contains(r.sealedStreams(), s) {
			return nil, fmt.Errorf("hold stream %q, want 1 to 255 of A-Z a-z 0-9 _ -, and not a sealed stream", s)
		}
	}
	if r.Engine != EngineAuto && r.Engine != EngineDurable {
		// See holds: two writers must not get into each other's rows.
		return nil, fmt.Errorf("hold needs the engine durable, not %v", r.Engine)
	}
	if r.Ingest != nil {
		return nil, errors.New("core ingest does not hold: it answers its publishers with an error")
	}
	if r.DeadLetters != nil && slices.Contains(own.streams(r), r.DeadLetters.Stream) {
		return nil, fmt.Errorf("stream %s is for held messages and for dead letters", r.DeadLetters.Stream)
	}
	for _, s := range r.Source.Subjects {
		if patternsOverlap(s, HoldSubject(r.Name)+".>") {
			return nil, fmt.Errorf("source subject %q overlaps those of the hold stream, %s.>", s, HoldSubject(r.Name))
		}
	}
	if c := h.Create; c != nil {
		if c.Replicas < 0 || c.Replicas > 5 || c.MaxAge != 0 || c.MaxBytes != 0 || c.Storage != FileStorage && c.Storage != MemoryStorage {
			return nil, errors.New("creating the hold stream: replicas 0 to 5, and no limits, which would lose what is held")
		}
		create := *c
		own.Create = &create
	}
	return &own, nil
}
