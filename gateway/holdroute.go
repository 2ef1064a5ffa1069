package gateway

import (
	"errors"
	"fmt"
)

// Hold makes a route go on when single scopes have no key: see [Route].Hold. A
// route with partitions or dead letters cannot hold, nor one that drains. To end holding, take it
// out of the configuration when nothing is held: before, the route stops.
type Hold struct {
	// Stream is where the messages wait, on the connection of the sealed stream: up
	// to 255 of A-Z a-z 0-9 _ -. Zero: the sealed stream's name and _HOLD.
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
	if !streamName.MatchString(own.Stream) || own.Stream == r.Sealed.Stream {
		return nil, fmt.Errorf("hold stream %q, want 1 to 255 of A-Z a-z 0-9 _ -, and not the sealed stream", own.Stream)
	}
	if r.Engine != EngineAuto && r.Engine != EngineDurable {
		// See holds: two writers must not get into each other's rows.
		return nil, fmt.Errorf("hold needs the engine durable, not %v", r.Engine)
	}
	if r.Source.Partitions != nil || r.Drain {
		return nil, errors.New("hold does not go together with partitions or drain")
	}
	if r.DeadLetters != nil || r.ReservedHeaders != ReservedDrop {
		return nil, errors.New("hold does not go together with dead letters or rejected headers")
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
