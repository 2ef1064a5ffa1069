package streams

import (
	"errors"
	"fmt"
	"slices"

	"github.com/keyweir/keyweir/internal/envelope"
)

// Bounds of what a Verifier remembers. A message whose missing range was
// forgotten counts as a duplicate when it comes after all, a chain that was
// forgotten as a new one. Chains of messages that were held back are numbered: one
// that may have been forgotten is taken up again where it stands, without an alarm.
const (
	maxMissing  = 64  // ranges per chain
	maxTracks   = 16  // chains
	maxOpen     = 256 // chains of an open stream
	maxReleased = 256 // chains of messages that were held back
)

// link is what one message says about its place.
type link struct {
	chain              ChainID
	sequence, previous uint64
}

// MissingRange says that messages with sequences above After and up to Until were
// not read. Until itself exists: the message Next names it as its predecessor.
type MissingRange struct {
	After uint64 `json:"after"`
	Until uint64 `json:"until"`
	Next  uint64 `json:"next"`
}

// track is one chain as far as it was observed.
type track struct {
	chain       ChainID
	first, last uint64         // sequences; what is below first was never asked for
	missing     []MissingRange // ascending, disjoint
}

// place judges a message of this chain and takes it in. A zero kind means that it
// is the one that had to come. count is that of a gap.
func (t *track) place(l link) (kind OrderKind, count uint64) {
	switch {
	case l.sequence > t.last && l.previous == t.last:
		t.last = l.sequence
		return 0, 0
	case l.sequence > t.last && l.previous > t.last:
		t.lack(MissingRange{After: t.last, Until: l.previous, Next: l.sequence})
		count = l.previous - t.last
		t.last = l.sequence
		return OrderGap, count
	case l.sequence > t.last:
		// It denies the message that was read last. Not taken in: if it is alone,
		// the genuine one that follows fits.
		return OrderSplice, 0
	}
	i, in := slices.BinarySearchFunc(t.missing, l.sequence, func(m MissingRange, s uint64) int {
		switch {
		case m.Next <= s:
			return -1
		case m.After >= s:
			return 1
		}
		return 0
	})
	switch {
	case in:
		return t.fill(i, l), 0
	case l.sequence < t.first:
		return OrderReorder, 0
	}
	return OrderDuplicate, 0
}

// fill takes in a message that belongs into a missing range.
func (t *track) fill(i int, l link) OrderKind {
	m := t.missing[i]
	if l.sequence > m.Until || l.previous < m.After {
		return OrderSplice // its neighbours deny it, or it denies them
	}
	var rest []MissingRange
	if l.previous > m.After {
		rest = append(rest, MissingRange{After: m.After, Until: l.previous, Next: l.sequence})
	}
	if l.sequence < m.Until {
		rest = append(rest, MissingRange{After: l.sequence, Until: m.Until, Next: m.Next})
	}
	t.missing = slices.Replace(t.missing, i, i+1, rest...)
	t.bound()
	return OrderReorder
}

func (t *track) lack(m MissingRange) {
	t.missing = append(t.missing, m)
	t.bound()
}

func (t *track) bound() {
	if over := len(t.missing) - maxMissing; over > 0 {
		t.missing = slices.Delete(t.missing, 0, over)
	}
}

// ChainState is what a [VerifierState] holds of one chain.
type ChainState struct {
	Chain string `json:"chain"` // as ChainID.String
	First uint64 `json:"first"` // sequence that was read first
	Last  uint64 `json:"last"`  // highest sequence read
	// Missing are the gaps that nothing has filled so far, ascending; the oldest
	// are forgotten beyond 64.
	Missing []MissingRange `json:"missing,omitempty"`
}

func (t *track) state() ChainState {
	return ChainState{Chain: t.chain.String(), First: t.first, Last: t.last, Missing: slices.Clone(t.missing)}
}

// restore checks everything, since a state comes from a file.
func (s *ChainState) restore() (*track, error) {
	id, err := envelope.ParseChainID(s.Chain)
	if err != nil {
		return nil, err
	}
	if s.First == 0 || s.First > s.Last || len(s.Missing) > maxMissing {
		return nil, fmt.Errorf("chain %v: sequences %d to %d with %d gaps", id, s.First, s.Last, len(s.Missing))
	}
	end := uint64(0)
	for _, m := range s.Missing {
		if m.After < end || m.After >= m.Until || m.Until >= m.Next || m.Next > s.Last {
			return nil, fmt.Errorf("chain %v: gap %d to %d before %d", id, m.After, m.Until, m.Next)
		}
		end = m.Next
	}
	return &track{chain: id, first: s.First, last: s.Last, missing: slices.Clone(s.Missing)}, nil
}

// chains is the order of a whole stream: chains that replace each other, of which
// the current one is the last of tracks, and release chains, which run beside them.
type chains struct {
	tracks   []*track
	released []*track // the one observed last is the last
	// forgotten is the highest number of a release chain that was forgotten: every
	// one up to it may have been observed before.
	forgotten uint64
}

func (c *chains) current() *track {
	if len(c.tracks) == 0 {
		return nil
	}
	return c.tracks[len(c.tracks)-1]
}

func (c *chains) find(id ChainID) int {
	return slices.IndexFunc(c.tracks, func(t *track) bool { return t.chain == id })
}

// observe judges one message. taken is false for a message that has no place of
// its own: a duplicate, or a splice that continues nothing. whole says that the
// first message must be the first of its chain.
func (c *chains) observe(l link, whole bool) (events []OrderEvent, taken bool) {
	if first, ok := l.chain.ReleasedFrom(l.sequence, l.previous); ok {
		return c.release(l, first, whole)
	}
	cur := c.current()
	if cur == nil {
		t := c.begin(l)
		if whole && l.previous != 0 {
			t.lack(MissingRange{Until: l.previous, Next: l.sequence})
			events = append(events, OrderEvent{Kind: OrderGap, Before: l.chain, Count: l.previous})
		}
		return events, true
	}
	before := cur.chain
	if cur.chain == l.chain {
		last := cur.last
		kind, count := cur.place(l)
		if kind == 0 {
			return nil, true
		}
		return []OrderEvent{{Kind: kind, Before: before, Last: last, Count: count}}, kind == OrderGap || kind == OrderReorder
	}
	i := c.find(l.chain)
	if i < 0 {
		events = []OrderEvent{{Kind: OrderChainChange, Before: before}}
		t := c.begin(l)
		if l.previous != 0 {
			// Either its beginning is missing, or it was spliced in; then the return of
			// the chain before it is an OrderSplice.
			t.lack(MissingRange{Until: l.previous, Next: l.sequence})
			events = append(events, OrderEvent{Kind: OrderGap, Before: before, Count: l.previous})
		}
		return events, true
	}
	old := c.tracks[i]
	events = []OrderEvent{{Kind: OrderSplice, Before: before, Last: old.last}}
	if l.sequence <= old.last || l.previous < old.last {
		return events, false
	}
	// It continues a chain that seemed to have ended: go on there, so that not
	// every message of the genuine chain is reported after one foreign one.
	c.tracks = append(slices.Delete(c.tracks, i, i+1), old)
	last := old.last
	if kind, count := old.place(l); kind != 0 {
		events = append(events, OrderEvent{Kind: kind, Before: before, Last: last, Count: count})
	}
	return events, true
}

// observeOpen judges one message of an open stream, where chains alternate. The
// writer of an unlinked one does not know what was stored, so that what is
// missing means nothing.
func (c *chains) observeOpen(l link, unlinked bool) (events []OrderEvent, taken bool) {
	var before ChainID
	if cur := c.current(); cur != nil {
		before = cur.chain
	}
	i := c.find(l.chain)
	if i < 0 {
		if len(c.tracks) == maxOpen {
			c.tracks = slices.Delete(c.tracks, 0, 1) // the one not heard of for longest
		}
		c.tracks = append(c.tracks, &track{chain: l.chain, first: l.sequence, last: l.sequence})
		return nil, true
	}
	t := c.tracks[i]
	c.tracks = append(slices.Delete(c.tracks, i, i+1), t)
	last := t.last
	kind, count := t.place(l)
	if kind == 0 || kind == OrderGap && unlinked {
		return nil, true
	}
	return []OrderEvent{{Kind: kind, Before: before, Last: last, Count: count}}, kind == OrderGap || kind == OrderReorder
}

// release judges a message that was held back by the gateway: its release chain
// runs beside the others and replaces none.
func (c *chains) release(l link, first uint64, whole bool) (events []OrderEvent, taken bool) {
	before := l.chain
	cur := c.current()
	if cur != nil {
		before = cur.chain
	}
	i := slices.IndexFunc(c.released, func(t *track) bool { return t.chain == l.chain })
	if i >= 0 {
		t := c.released[i]
		c.released = append(slices.Delete(c.released, i, i+1), t)
		last := t.last
		kind, count := t.place(l)
		if kind == 0 {
			return nil, true
		}
		return []OrderEvent{{Kind: kind, Before: before, Last: last, Count: count}}, kind == OrderGap || kind == OrderReorder
	}
	if len(c.released) == maxReleased {
		old := c.released[0]
		number, _ := old.chain.ReleasedFrom(old.last+1, old.last)
		c.forgotten = max(c.forgotten, number)
		c.released = slices.Delete(c.released, 0, 1)
	}
	t := &track{chain: l.chain, first: l.sequence, last: l.sequence}
	c.released = append(c.released, t)
	// Its beginning may be from before what was observed, unless its first message
	// was published later than that.
	if l.previous != 0 && first > c.forgotten && (whole || cur != nil && l.chain.Beside(cur.chain) && first > cur.first) {
		t.lack(MissingRange{Until: l.previous, Next: l.sequence})
		events = append(events, OrderEvent{Kind: OrderGap, Before: before, Count: l.previous - first + 1})
	}
	return events, true
}

// begin makes the message the first of its chain that was read, and the chain the
// current one.
func (c *chains) begin(l link) *track {
	if len(c.tracks) == maxTracks {
		c.tracks = slices.Delete(c.tracks, 0, 1)
	}
	t := &track{chain: l.chain, first: l.sequence, last: l.sequence}
	c.tracks = append(c.tracks, t)
	return t
}

func (c *chains) restore(states, released []ChainState, forgotten uint64, open bool) (err error) {
	c.forgotten = forgotten
	limit := maxTracks
	if open {
		limit = maxOpen
	}
	if c.tracks, err = restoreTracks(states, limit); err != nil {
		return err
	}
	c.released, err = restoreTracks(released, maxReleased)
	return err
}

func restoreTracks(states []ChainState, limit int) (tracks []*track, err error) {
	if len(states) > limit {
		return nil, fmt.Errorf("%d chains, at most %d", len(states), limit)
	}
	for i := range states {
		t, err := states[i].restore()
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(tracks, func(o *track) bool { return o.chain == t.chain }) {
			return nil, errors.New("a chain stands there twice")
		}
		tracks = append(tracks, t)
	}
	return tracks, nil
}
