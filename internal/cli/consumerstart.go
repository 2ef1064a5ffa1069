package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/keyweir/keyweir/gateway"
)

// placed is one message of the relayed stream.
type placed struct {
	gateway.Position
	seq     uint64 // in the relayed stream
	subject string
}

// at returns the first message of the relayed stream at seq or later; nil if there
// is none.
func (m *mapping) at(ctx context.Context, seq uint64) (*placed, error) {
	s, err := getStored(ctx, m.to, m.out.Relayed, storedRequest{Seq: seq, Next: ">"})
	if s == nil || err != nil {
		return nil, err
	}
	h, err := nats.DecodeHeadersMsg(s.Header)
	if err != nil {
		h = nil // said below
	}
	p, err := gateway.ParsePosition(h.Get(gateway.HeaderSource))
	if err != nil {
		return nil, notMapped("keyweir verify finds what is wrong with a sealed stream", "message %d of stream %s was not written by a route", s.Seq, m.out.Relayed)
	}
	return &placed{p, s.Seq, s.Subject}, nil
}

// search returns the first message from lo to hi of which is holds, given that it
// holds of the one at hi and, once it does, of all that follow.
func (m *mapping) search(ctx context.Context, lo, hi uint64, is func(*placed) bool) (*placed, error) {
	for lo < hi {
		mid := lo + (hi-lo)/2
		p, err := m.at(ctx, mid)
		switch {
		case err != nil:
			return nil, err
		case p == nil || is(p):
			hi = mid
		default:
			lo = p.seq + 1
		}
	}
	p, err := m.at(ctx, lo)
	if err == nil && (p == nil || !is(p)) {
		err = fmt.Errorf("%w: stream %s changed while it was searched; try again", errNotMapped, printable(m.out.Relayed))
	}
	return p, err
}

// findStart finds the first relayed message behind the floor, by the positions of
// the relayed stream. On one chain they rise with the sequences, and each names
// the one before it, so that neighbours show that nothing stood between them.
func (m *mapping) findStart(ctx context.Context, filters []string) error {
	st, floor := m.relayed.State, m.out.Floor
	if st.Msgs == 0 {
		return notMapped("let the route relay first; if messages expired, the place of the consumer is gone", "stream %s holds no message", m.out.Relayed)
	}
	last, err := m.at(ctx, st.LastSeq)
	switch {
	case err != nil:
		return err
	case last == nil:
		return notMapped("let the route relay one more message", "the last message of stream %s was removed", m.out.Relayed)
	case !last.Created.Equal(m.source.Created):
		return notMapped("name the stream that the route reads; if it was deleted and made again, the consumer belongs to another one",
			"the last message of %s comes from a stream made %v, %s was made %v", m.out.Relayed, last.Created.UTC(), m.out.Stream, m.source.Created.UTC())
	}
	// An earlier chain may have relayed the same messages before.
	head, err := m.search(ctx, st.FirstSeq, last.seq, func(p *placed) bool { return p.Chain == last.Chain })
	if err != nil {
		return err
	}
	if last.Sequence <= floor {
		held, err := m.held(ctx, last.Sequence+1, floor, m.relayedOrigins())
		if err != nil {
			return err
		}
		if held > 0 {
			return notMapped("wait until the route has caught up, and try again", "the consumer has acknowledged up to %d of %s, and only %d is relayed yet", floor, m.out.Stream, last.Sequence)
		}
		m.out.Start, m.out.Before = last.seq+1, last.Sequence
		return nil
	}
	p, err := m.search(ctx, head.seq, last.seq, func(p *placed) bool { return p.Sequence > floor })
	if err != nil {
		return err
	}
	m.out.Start, m.out.Before, m.out.After = p.seq, p.Previous, p.Sequence
	if err := m.compare(ctx, p); err != nil {
		return err
	}
	if p.seq > head.seq {
		before, err := m.at(ctx, p.seq-1)
		if err != nil {
			return err
		}
		if before != nil && before.seq == p.seq-1 && before.Sequence != p.Previous {
			return notMapped("keyweir verify shows what is wrong with a sealed stream", "message %d of %s follows %d of %s, and the message before it is %d", p.seq, m.out.Relayed, p.Previous, m.out.Stream, before.Sequence)
		}
	}
	switch {
	case p.Previous > floor:
		return notMapped("the twin would skip them; let the consumer acknowledge further, or make a consumer by hand that begins where the stream does",
			"the consumer has acknowledged up to %d of %s, and what was relayed of %d to %d has expired from %s", floor, m.out.Stream, floor+1, p.Previous, m.out.Relayed)
	case p.Previous == 0 && floor+1 < p.Sequence:
		wanted := filters
		if len(wanted) == 0 {
			wanted = []string{">"}
		}
		held, err := m.held(ctx, floor+1, p.Sequence-1, wanted)
		if err != nil {
			return err
		}
		if held > 0 {
			return notMapped("let the consumer acknowledge what came before the route began; or let a route begin with it (start: first, or a sequence)",
				"the consumer has acknowledged up to %d of %s, and the route began with %d: message %d was never relayed", floor, m.out.Stream, p.Sequence, held)
		}
		if m.source.State.FirstSeq > floor+1 {
			m.out.notef("the route began with %d; %s no longer holds anything for the consumer before that", p.Sequence, m.out.Stream)
		}
	}
	return nil
}

// held returns the first sequence from one to another that the source still holds
// on one of the subjects; 0: none.
func (m *mapping) held(ctx context.Context, from, to uint64, subjects []string) (uint64, error) {
	var first uint64
	for _, s := range subjects {
		if from > to {
			break
		}
		got, err := getStored(ctx, m.from, m.out.Stream, storedRequest{Seq: from, Next: s})
		if err != nil {
			return 0, err
		}
		if got != nil && got.Seq <= to && (first == 0 || got.Seq < first) {
			first = got.Seq
		}
	}
	return first, nil
}

// compare checks a relayed message against the source, if that still holds it.
func (m *mapping) compare(ctx context.Context, p *placed) error {
	s, err := getStored(ctx, m.from, m.out.Stream, storedRequest{Seq: p.Sequence})
	if err != nil || s == nil {
		return err
	}
	if !s.Time.Equal(p.Stored) {
		return notMapped("find out who restored or recreated a stream", "message %d of %s was stored %v, its relayed copy says %v", p.Sequence, m.out.Stream, s.Time.UTC(), p.Stored.UTC())
	}
	if m.strip == "" && m.add == "" {
		return nil
	}
	if want, ok := m.subject(s.Subject); !ok || want != p.subject {
		return notMapped("keyweir verify shows what is wrong with a sealed stream", "message %d of %s on %s and its relayed copy on %s do not fit", p.Sequence, m.out.Stream, s.Subject, p.subject)
	}
	return nil
}

// findSubjects finds out how subjects of the source become subjects of the relayed
// stream: from a message that both still hold, else from the streams' own subjects.
func (m *mapping) findSubjects(ctx context.Context) error {
	last, err := m.at(ctx, max(m.relayed.State.LastSeq, 1))
	if err != nil {
		return err
	}
	if last != nil && last.Created.Equal(m.source.Created) {
		if err := m.compare(ctx, last); err != nil {
			return err
		}
		s, err := getStored(ctx, m.from, m.out.Stream, storedRequest{Seq: last.Sequence})
		if err != nil {
			return err
		}
		if s != nil {
			if m.pair(s.Subject, last.subject) {
				return nil
			}
			return notMapped("check what the route relays", "message %d of %s on %s and its relayed copy on %s have no part of the subject in common", last.Sequence, m.out.Stream, s.Subject, last.subject)
		}
	}
	if a, b := m.source.Config.Subjects, m.relayed.Config.Subjects; len(a) > 0 && len(b) > 0 && m.pair(a[0], b[0]) {
		m.out.notef("%s no longer holds the last message relayed: how its subjects became those of %s was taken from the subjects of the streams", m.out.Stream, m.out.Relayed)
		return nil
	}
	return notMapped("let the route relay at least one message first", "nothing shows how subjects of %s become subjects of %s", m.out.Stream, m.out.Relayed)
}

// pair takes the longest common end of a subject and its relayed form; what
// stands before it on either side is what the route takes away and adds.
func (m *mapping) pair(source, relayed string) bool {
	s, r := strings.Split(source, "."), strings.Split(relayed, ".")
	n := 0
	for n < len(s) && n < len(r) && s[len(s)-1-n] == r[len(r)-1-n] {
		n++
	}
	if n == 0 {
		return false
	}
	common := strings.Join(s[len(s)-n:], ".")
	m.strip, m.add = strings.TrimSuffix(source, common), strings.TrimSuffix(relayed, common)
	return true
}
