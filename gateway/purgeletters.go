package gateway

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/deadletter"
	"github.com/keyweir/keyweir/internal/envelope"
)

// letterCopies finds out which source messages a purge can leave to their dead
// letters. It belongs to one goroutine.
type letterCopies struct {
	w   *worker
	now time.Time // of the sealed side

	read   bool
	chains map[uint64][]envelope.ChainID // of dead letters, by source sequence; as subjects say
	lag    time.Duration
}

// letterState is what the dead letter of a source message is good for.
type letterState int

const (
	letterNone  letterState = iota // there is none that holds this message
	letterYoung                    // a power failure might undo it
	letterSafe
)

// of looks for the dead letter of a source message. It is found by its subject and
// believed for its proof, which names the message's chain, sequence and time.
func (c *letterCopies) of(ctx context.Context, it *item) (letterState, error) {
	if !c.read {
		if err := c.list(ctx); err != nil {
			return letterNone, err
		}
		c.read = true
	}
	for _, chain := range c.chains[it.seq] {
		p := &parking{w: c.w, letters: *c.w.route.DeadLetters, chain: chain}
		m, err := p.confirm(ctx, it.seq, it.timestamp)
		switch {
		case errors.Is(err, ErrDeadLetters) || errors.Is(err, errNoMessage):
			c.w.log.Warn("not a copy of a source message", "sequence", it.seq, "error", err)
			continue
		case err != nil:
			return letterNone, err
		}
		if whole, err := c.whole(ctx, p, it.seq, m); err != nil {
			return letterNone, err
		} else if !whole {
			continue
		}
		if c.lag > 0 && c.now.Sub(m.time) < c.lag {
			return letterYoung, nil
		}
		return letterSafe, nil
	}
	return letterNone, nil
}

// whole reports whether every further part is there, beside the first, m.
func (c *letterCopies) whole(ctx context.Context, p *parking, seq uint64, m *stored) (bool, error) {
	if m.header.Get(deadletter.HeaderRetried) != "" {
		return true, nil // the source has it once more, at a sequence that counts by itself
	}
	_, parts, err := deadletter.ParsePart(m.header.Get(deadletter.HeaderPart))
	if err != nil {
		return false, nil
	}
	for part := 2; part <= parts; part++ {
		subject := p.position(seq).Subject(p.letters.Subject, part)
		o, err := getFromLeader(ctx, c.w.route.Sealed.Conn, p.letters.Stream, getRequest{LastFor: subject})
		if err != nil && !errors.Is(err, errNoMessage) {
			return false, fmt.Errorf("reading dead letter of message %d: %w", seq, err)
		}
		if err != nil || o.header.Get(deadletter.HeaderProof) != m.header.Get(deadletter.HeaderProof) {
			c.w.log.Warn("dead letter with a part missing", "sequence", seq, "part", part, "of", parts)
			return false, nil
		}
	}
	return true, nil
}

// list reads the subjects of the route's dead letters, on all of its chains.
func (c *letterCopies) list(ctx context.Context) error {
	d := c.w.route.DeadLetters
	if d == nil {
		return nil
	}
	if _, err := streamInfo(ctx, c.w.sealedJS, d.Stream); errors.Is(err, jetstream.ErrStreamNotFound) {
		return nil // nothing was ever parked
	}
	info, err := c.w.openDeadLetters(ctx)
	if err != nil {
		return err
	}
	c.lag, _ = releaseLag(&info.Config, c.w.route.Sealed.SyncInterval)
	subjects, err := c.w.letterSubjects(ctx, d.Subject+"."+c.w.route.Name+".*.*")
	if err != nil {
		return err
	}
	c.chains = make(map[uint64][]envelope.ChainID)
	for subject := range subjects {
		if pos, _, _, err := deadletter.ParseSubject(subject); err == nil {
			c.chains[pos.Sequence] = append(c.chains[pos.Sequence], pos.Chain)
		}
	}
	return nil
}
