package gateway

import (
	"time"

	"github.com/keyweir/keyweir/internal/envelope"
)

// lane is what is held of one scope, in the order of the source. It belongs to the
// worker's goroutine.
type lane struct {
	tag     string // of the scope it was opened for, see holdSubjects
	scope   string // "" if it was found in the hold stream and not yet seen in the rules
	subject string // one of the origin subjects, to ask for the key with
	since   time.Time

	tail     link   // the last message held
	lastSeq  uint64 // its sequence in the hold stream
	count    uint64 // messages held
	subjects map[string]struct{}

	// Release: where the hold stream is read on, and what was released last on the
	// current release chain.
	nextSeq uint64
	out     link // zero: a new chain has to begin
	from    link // of the message released last, as it was held; zero: none in this tenure
	ready   bool // its key was there a moment ago
	askAt   time.Time
	asks    *pause
	dead    error // its messages become dead letters for this; nil: they are sealed
}

// holds is what a route holds and releases, as known to one tenure.
//
// The hold stream is written like the sealed one: by one worker, in atomic batches
// under a fence of its own, every message with its link and the route's position
// under a MAC. A partition has a hold stream of its own. These rules connect both
// streams.
//
//  1. A message of the sealed stream that states the position n leaves only when
//     all messages up to n that are held have been acknowledged by the hold
//     stream. So the position in the sealed stream stays the only one; messages
//     in the hold stream above it are found at take-over and skipped.
//  2. Before the first message of a scope is held, everything published to the
//     sealed stream has been acknowledged. So whatever is held follows, within
//     its scope, all that was sealed, and stays in order.
//  3. While messages of a subject are held, every later one of it is held too.
//     So a held message was released exactly if a sealed one of its subject is not
//     older. How far each scope was released stands in the position record as well,
//     as marks: what limits remove from the sealed stream is not missed, since the
//     record is at most a second older than its last message. If more than that is
//     gone, nobody can tell, and the route stops. Marks that speak of more than the
//     sealed stream holds do not count: what it lost of its end is released again.
//     The record also says how much of the hold stream its writer knew. What another
//     one held behind that, and the position has passed, its writer had sealed from
//     the source.
//  4. A held message is released only when the position has passed it. Its sealed
//     copy states that position, so that nobody reads it from the source again
//     when it is removed from the hold stream.
//  5. Held messages are removed when the last of their scope was released, only
//     when the sealed copies are safe, as source messages are, and only behind a
//     fence: an empty message, behind which nobody can write who does not know of
//     the release. Otherwise a worker that is late could go on with a row whose
//     beginning is gone, which looks like a loss. A fence is also the first thing
//     that a tenure writes.
//  6. Source messages that were held are let go only after a later message of the
//     sealed stream was acknowledged, whose fence shuts out all who did not see
//     them held. The position record is no such fence: a worker that is late would
//     not find them in the source, seal what follows them, and make them look
//     released by rule 3.
//  7. Both streams are written in atomic batches, one in flight. Two workers may
//     disagree about what is held, so that their rows of messages differ; with
//     single messages in flight, one row could get into the other, behind the
//     back of the fence, which compares sequences and not authors.
//  8. What can neither be held nor sealed becomes a dead letter, in its turn, like
//     others; so does a held message that cannot be sealed any more. That it is
//     parked is final, so that a second try changes nothing.
//
// Where a kill may strike, and what the next worker does:
//
//	before a batch is held             nothing was done; it is read and held again
//	held, not known or not recorded    it is found in the hold stream above the
//	                                   position, and skipped when it is read again
//	held, sealed ones of its batch not likewise; the others are sealed
//	scope opened, nothing held         nothing was done; the key is asked for again
//	released, not known                the sealed stream says so; the release goes on
//	                                   behind it
//	released as a dead letter, not     it is parked again, and refused as stored
//	known
//	all released, not removed          likewise; the lane is closed and removed
//	fenced, not removed                nothing was done; the next one fences too
//	in the middle of removing          what is left was released, likewise
//	source message let go              the position in the sealed stream covers it
//
// A worker that is late (frozen, and taken over from) may store one batch in the
// sealed stream before the fence stops it, and nothing in the hold stream, unless
// its successor has not read that yet. It may remove what it released.
type holds struct {
	w        *worker
	d        *destination // the hold stream
	home     home         // its MACs
	subjects holdSubjects
	ring     *keyring // of the holding key
	engine   *durableEngine
	sealer   *sealer // into the hold stream
	released *sealer // into the sealed stream: the tenure's own
	opener   *holdOpener

	lanes  map[string]*lane    // by tag
	scopes map[string]*lane    // by scope, as far as asked for; nil: none
	bound  map[string]*lane    // by origin subject
	stored map[uint64]struct{} // source sequences above the position that are held
	last   uint64              // sequence of the hold stream's last message
	active *lane               // being released
	reader *puller             // of the active lane

	asked   chan refreshed   // capacity 1: an answer for lanes
	asking  map[string]*lane // by scope: who waits for it; nil: nobody
	removal removal
	marks   *marks
	faults  map[uint64]error // messages of a lane that cannot be held, and become dead letters
	items   []item           // being released
	links   []heldLink
}

// laneOf returns the lane that a message belongs into, nil if none. A subject stays
// in its lane whatever the rules say by now.
func (h *holds) laneOf(origin, scope string) *lane {
	if len(h.lanes) == 0 {
		return nil
	}
	if l := h.bound[origin]; l != nil {
		return l
	}
	l, known := h.scopes[scope]
	if !known {
		if l = h.lanes[h.subjects.tag(scope)]; l != nil {
			l.scope = scope
		}
		if len(h.scopes) >= maxScopes {
			clear(h.scopes) // cheap to compute again
		}
		h.scopes[scope] = l
	}
	return l
}

// open makes a lane.
func (h *holds) open(tag, scope, subject string) *lane {
	l := &lane{
		tag: tag, scope: scope, subject: subject, since: time.Now(), subjects: make(map[string]struct{}),
		asks: newPause(h.w.tune.keySlow, h.w.tune.keySlowM),
	}
	h.lanes[tag] = l
	clear(h.scopes)
	return l
}

// postpone lets the lane wait before its key is asked for again.
func (l *lane) postpone() {
	l.ready = false
	l.askAt = time.Now().Add(l.asks.b.NextBackOff())
}

// next is the link of the next message that is held in the lane.
func (l *lane) next(main envelope.ChainID, created int64, it *item) link {
	n := link{chain: l.tail.chain, sequence: it.seq, previous: l.tail.sequence, created: created, timestamp: it.timestamp}
	if l.count == 0 || l.tail.created != created {
		n.chain, n.previous = envelope.ReleaseChain(main, it.seq), 0
	}
	return n
}

// held notes a message that was given a place in the hold stream.
func (h *holds) held(l *lane, origin string, n link, seq uint64) {
	if l.count == 0 {
		l.nextSeq = seq
	}
	l.tail, l.lastSeq, l.subject = n, seq, origin
	l.count++
	if _, ok := l.subjects[origin]; !ok {
		l.subjects[origin] = struct{}{}
		h.bound[origin] = l
	}
}

// place is the link under which a held message is released.
func (l *lane) place(main envelope.ChainID, held link) link {
	n := held
	n.chain, n.previous = l.out.chain, l.out.sequence
	if l.out.sequence == 0 || l.out.created != held.created {
		n.chain, n.previous = envelope.ReleaseChain(main, held.sequence), 0
	}
	return n
}

// close forgets a lane of which everything was released.
func (h *holds) close(l *lane) {
	for s := range l.subjects {
		delete(h.bound, s)
	}
	delete(h.lanes, l.tag)
	clear(h.scopes)
}

// empty reports whether the hold stream has nothing that matters, nor will have by
// what was done so far.
func (h *holds) empty() bool { return h == nil || len(h.lanes) == 0 && h.removal.empty() }

// furthest is the last message held of a source stream.
func (h *holds) furthest(created int64) (seq uint64) {
	if h != nil {
		for _, l := range h.lanes {
			if l.tail.created == created {
				seq = max(seq, l.tail.sequence)
			}
		}
	}
	return seq
}

// counts returns how many scopes and messages are held.
func (h *holds) counts() (scopes, messages uint64) {
	for _, l := range h.lanes {
		messages += l.count
	}
	return uint64(len(h.lanes)), messages
}
