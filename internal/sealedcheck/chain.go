package sealedcheck

import "github.com/keyweir/keyweir/internal/envelope"

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
}

// add takes in the message stored at seq.
func (c *chains) add(r *Report, seq uint64, p *position) {
	// Messages that were held back form chains that run beside the others.
	first, held := p.chain.ReleasedFrom(p.sequence, p.previous)
	t := c.byID[p.chain]
	if t == nil {
		if len(c.list) >= c.limit {
			c.more++
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
			if p.previous != 0 && !c.interleaved && c.current != nil && first > c.current.FirstSource && p.chain.Beside(c.currentID) {
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

func (c *chains) report(r *Report) {
	r.Chains = make([]Chain, len(c.list))
	for i, t := range c.list {
		r.Chains[i] = *t
	}
	r.ChainsMore = c.more
}
