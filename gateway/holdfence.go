package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyweir/keyweir/internal/envelope"
)

// fence stores an empty message in the hold stream. From then on whoever read the
// stream before cannot write to it any more. Nothing is on its way to the stream
// when it is called.
//
// A full stream takes no fence; then it takes nothing of anybody else either, and
// what was released has to go to make room.
func (h *holds) fence(ctx context.Context, chain envelope.ChainID, created int64, c cursor) error {
	s := newSigner(h.w.routeKey, &h.home, chain, created)
	out := outgoing{source: c.scanned, previous: c.previous, timestamp: c.timestamp, own: &link{chain: chain, sequence: 1, created: created}}
	m := nats.NewMsg(h.subjects.fence())
	m.Header.Set(HeaderVersion, "1")
	m.Header.Set(HeaderSource, s.sign(h.last+1, &out))
	m.Header.Set(jetstream.ExpectedStreamHeader, h.d.config.Name)
	m.Header.Set(jetstream.ExpectedLastSeqHeader, fmt.Sprint(h.last))
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	reply, err := h.w.route.Sealed.Conn.RequestMsgWithContext(ctx, m)
	if err != nil {
		return fmt.Errorf("fencing stream %s: %w", h.d.config.Name, err)
	}
	var ack struct {
		Sequence uint64              `json:"seq"`
		Error    *jetstream.APIError `json:"error"`
	}
	switch err := json.Unmarshal(reply.Data, &ack); {
	case err == nil && ack.Error != nil && ack.Error.ErrorCode == codeStoreFailed:
		return nil
	case err != nil || ack.Error != nil || ack.Sequence != h.last+1:
		return fmt.Errorf("fencing stream %s: %w", h.d.config.Name, refusal(reply))
	}
	h.last++
	h.marks.saw(h.last)
	if h.engine != nil {
		h.engine.skip(h.last)
	}
	h.removal.add(removable{tag: fenceTag, upTo: h.last, whole: true, fenced: true, at: time.Now()})
	return nil
}

// skip notes a message that somebody else of this worker stored while nothing of
// the engine was on its way.
func (e *durableEngine) skip(seq uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.next, e.last.sealed, e.last.stored = seq+1, seq, seq
}

// fenceRemovals sets a fence behind what was released, before it is removed.
func (t *tenure) fenceRemovals(ctx context.Context) error {
	h := t.holds
	var rows []removable
	for _, e := range h.removal.ripe(t.engine.acked().sealed, time.Now(), t.releaser.lag) {
		if !e.fenced {
			rows = append(rows, e)
		}
	}
	if len(rows) == 0 {
		return nil
	}
	if err := h.fence(ctx, t.place.chain, t.place.created, t.cursor); err != nil {
		return err
	}
	h.removal.fenced(rows)
	return nil
}

// disputed looks again before held messages count as lost: another worker may have
// released them, and removed them. That one wrote to one of the streams.
func (t *tenure) disputed(ctx context.Context, why error) error {
	if !errors.Is(why, ErrHold) {
		return why
	}
	if err := t.settle(ctx); err != nil {
		return err
	}
	for name, last := range map[string]uint64{t.w.route.Sealed.Stream: t.published, t.holds.d.config.Name: t.holds.last} {
		info, err := streamInfo(ctx, t.w.sealedJS, name)
		if err != nil {
			return err
		}
		if got := info.State.LastSeq; got != last {
			return fmt.Errorf("%w: stream %s ends at %d, not %d", ErrFenced, name, got, last)
		}
	}
	return why
}
