package sealedcheck

import (
	"cmp"
	"slices"

	"github.com/keyweir/keyweir/internal/envelope"
)

// chains follows the chains of a stream by their headers.
type chains struct {
	limit       int
	interleaved bool // an open stream: several writers, a chain each
	list        []*Chain
	byID        map[envelope.ChainID]*Chain
	current     *Chain
	currentID   envelope.ChainID
	gone        uint64 // sealed messages up to here left the stream while it was read
	more        uint64
	forgotten   uint64 // number of the highest release chain that was forgotten
}

// add takes in the message stored at seq.
func (c *chains) add(r *Report, seq uint64, p *position) {
	// Messages that were held back form chains that run beside the others.
	first, held := p.chain.ReleasedFrom(p.sequence, p.previous)
	t := c.byID[p.chain]
	if t == nil {
		if len(c.list) >= c.limit {
			c.forget()
		}
		if len(c.list) >= c.limit {
			c.more++
			if held {
				c.forgotten = max(c.forgotten, first)
				return
			}
			r.find(Link, seq, "it is of chain %v, and the stream has too many chains to follow", p.chain)
			return
		}
		t = &Chain{
			ID: p.chain.String(), Messages: 1, First: seq, Last: seq, FirstSource: p.sequence, LastSource: p.sequence,
			FromStart: p.previous == 0, Released: held, created: p.created,
		}
		c.list = append(c.list, t)
		c.byID[p.chain] = t
		if held {
			// Its beginning may have left the stream, unless its first message is
			// younger than what is there.
			if p.previous != 0 && first > c.forgotten && !c.interleaved && c.current != nil && first > c.current.FirstSource && p.chain.Beside(c.currentID) {
				r.find(Link, seq, "chain %v of messages held back begins with source message %d, which follows %d", p.chain, p.sequence, p.previous)
			}
			return
		}
		if p.previous != 0 && !c.interleaved && c.current != nil && c.current.Last >= c.gone {
			r.find(Link, seq, "chain %v begins with source message %d, which follows %d", p.chain, p.sequence, p.previous)
		}
		c.current, c.currentID = t, p.chain
		return
	}
	t.Messages++
	switch {
	case t != c.current && !c.interleaved && !held:
		r.find(Link, seq, "source message %d of chain %s comes after chain %s had begun", p.sequence, t.ID, c.current.ID)
		if p.sequence > t.LastSource && p.previous >= t.LastSource {
			c.current, c.currentID = t, p.chain
		}
	case p.sequence <= t.LastSource:
		r.find(Link, seq, "source message %d comes after source message %d: moved or repeated", p.sequence, t.LastSource)
	case p.previous != t.LastSource && !(t.Last < c.gone && p.previous > t.LastSource):
		r.find(Link, seq, "source message %d follows %d, and the one before it in the stream is %d", p.sequence, p.previous, t.LastSource)
	case p.created != t.created:
		r.find(Link, seq, "source message %d comes from a source stream of another creation time than the chain", p.sequence)
	}
	t.LastSource, t.Last = max(t.LastSource, p.sequence), seq
}

// forget makes room: of the chains of messages that were held back, the half that
// was not heard of for longest goes. There may be as many of them as scopes were
// held; that they are too many is nobody's fault.
func (c *chains) forget() {
	var held []*Chain
	for _, t := range c.list {
		if t.Released {
			held = append(held, t)
		}
	}
	slices.SortFunc(held, func(a, b *Chain) int { return cmp.Compare(a.Last, b.Last) })
	gone := make(map[*Chain]bool)
	for _, t := range held[:(len(held)+1)/2] {
		gone[t] = true
		c.more++
	}
	for id, t := range c.byID {
		if gone[t] {
			number, _ := id.ReleasedFrom(t.LastSource+1, t.LastSource)
			c.forgotten = max(c.forgotten, number)
			delete(c.byID, id)
		}
	}
	c.list = slices.DeleteFunc(c.list, func(t *Chain) bool { return gone[t] })
}

func (c *chains) report(r *Report) {
	if c.forgotten > 0 {
		r.note("the stream has more chains of messages that were held back than were followed at a time, %d: what is missing of one between its messages may not show", c.limit)
	}
	r.Chains = make([]Chain, len(c.list))
	for i, t := range c.list {
		r.Chains[i] = *t
	}
	r.ChainsMore = c.more
}
