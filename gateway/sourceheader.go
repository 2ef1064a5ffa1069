package gateway

import (
	"errors"
	"time"

	"github.com/keyweir/keyweir/internal/envelope"
)

// Position is what HeaderSource of a relayed message says, for programs that read
// it without the route's key. Nothing of it is authenticated then: whoever may
// publish to the stream could have written it.
type Position struct {
	Chain    envelope.ChainID
	Sequence uint64    // in the source stream
	Previous uint64    // source sequence of the message before this one on the chain; 0: first
	Created  time.Time // when the source stream was made
	Stored   time.Time // when the source stream stored the message
}

// ErrNoPosition: what [ParsePosition] was given is not what a route writes.
var ErrNoPosition = errors.New("gateway: not a position")

// ParsePosition parses a HeaderSource, strictly. Errors are [ErrNoPosition].
func ParsePosition(value string) (Position, error) {
	p, _, err := parsePosition(value)
	if err != nil {
		return Position{}, ErrNoPosition
	}
	return Position{p.chain, p.sequence, p.previous, time.Unix(0, p.created), time.Unix(0, p.timestamp)}, nil
}
