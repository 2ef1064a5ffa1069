package sealedcheck

import (
	"encoding/binary"
	"hash/maphash"

	"github.com/keyweir/keyweir/internal/envelope"
)

// sessionID names the subkey of a session.
type sessionID struct {
	key  envelope.KeyID
	salt envelope.Salt
}

type session struct {
	index   uint32
	counted bool
	last    uint64 // highest counter, if counted
}

// nonceID is one nonce of one session.
type nonceID struct {
	session uint32
	nonce   [envelope.NonceSize]byte
}

// nonces looks for nonces used twice. The counters of a session only ever rise in
// a sealed stream, so remembering the highest one per session finds every
// repetition. Random ones have no order: they are compared with those of the last
// window messages, which also tells a copy of a message (the same ciphertext) from
// two messages under one nonce.
type nonces struct {
	maxSessions, window int

	seed     maphash.Seed
	sessions map[sessionID]session
	ages     ring[sessionID]
	next     uint32 // index of the next session
	recent   map[nonceID]uint64
	order    ring[nonceID]

	counter, random, begun, forgotten uint64
}

func newNonces(sessions, window int) *nonces {
	return &nonces{
		maxSessions: sessions, window: window, seed: maphash.MakeSeed(),
		sessions: make(map[sessionID]session), recent: make(map[nonceID]uint64),
	}
}

// add takes in an envelope and returns what is wrong with its nonce, "" if
// nothing is.
func (n *nonces) add(e *envelope.Envelope) (kind Kind, detail string) {
	id := sessionID{e.KeyID, e.Salt}
	s, known := n.sessions[id]
	if !known {
		s.index = n.next
		n.next++
		n.begun++
		if old, full := n.ages.push(id, n.maxSessions); full {
			delete(n.sessions, old)
			n.forgotten++
		}
	}
	nid := nonceID{s.index, [envelope.NonceSize]byte(e.Sealed)}
	digest := maphash.Bytes(n.seed, e.Sealed)
	seen, repeated := n.recent[nid]
	if !repeated {
		if old, full := n.order.push(nid, n.window); full {
			delete(n.recent, old)
		}
		n.recent[nid] = digest
	}
	switch {
	case repeated && seen == digest:
		kind, detail = Copy, "the same ciphertext is stored before"
	case repeated:
		kind, detail = NonceReuse, "the nonce sealed another message before: whoever sees both learns about their plaintexts"
	}
	if e.Flags&envelope.FlagRandomNonce != 0 {
		n.random++
		n.sessions[id] = s
		return kind, detail
	}
	n.counter++
	counter := binary.BigEndian.Uint64(nid.nonce[4:])
	switch {
	case kind != "":
	case binary.BigEndian.Uint32(nid.nonce[:]) != 0 || counter >= envelope.MaxSessionMessages:
		kind, detail = NonceOrder, "the counter is beyond what a session may seal"
	case s.counted && counter <= s.last:
		kind, detail = NonceOrder, "the counter of the session was higher before: the message was moved or copied, or the nonce used again"
	}
	s.last, s.counted = max(s.last, counter), true
	n.sessions[id] = s
	return kind, detail
}

// ring is a queue that displaces its oldest element when it is full.
type ring[T any] struct {
	items []T
	at    int
}

func (r *ring[T]) push(v T, limit int) (old T, displaced bool) {
	if len(r.items) < limit {
		r.items = append(r.items, v)
		return old, false
	}
	old, r.items[r.at] = r.items[r.at], v
	r.at = (r.at + 1) % limit
	return old, true
}
