package envelope

import (
	"bytes"
	"container/list"
	"fmt"
	"sync"
	"sync/atomic"
)

// DefaultSessions is how many sessions a [KeyReader] keeps ready, about 1.5 KB each.
const DefaultSessions = 256

// Opened is one opened envelope. Its slices, and those inside Meta, point into
// the buffer that [KeyReader.Open] appended to.
type Opened struct {
	Meta    MetaView
	Payload []byte
}

// KeyReader opens the envelopes of one data key. It owns the key, a bounded LRU
// of session ciphers derived from it, and drops all of them on Close. Safe for
// concurrent use.
type KeyReader struct {
	redacted
	id   KeyID
	core []byte
	max  int

	// last is the front of recent, for the usual case of many messages of one
	// session in a row. Written under mu.
	last atomic.Pointer[readSession]

	mu       sync.Mutex // guards the fields below
	key      DataKey
	sessions map[sessionKey]*list.Element // of *readSession
	recent   list.List                    // front: most recently used
	closed   bool
}

type sessionKey struct {
	suite Suite
	salt  Salt
}

type readSession struct {
	key  sessionKey
	aead *hidden
}

// NewKeyReader makes a reader for the key that record describes; key must match
// its commitment ([ErrWrongKey]). The reader keeps its own copy of key, so the
// caller may clear his. sessions bounds the cache; 0 means [DefaultSessions].
func NewKeyReader(record *Record, key DataKey, sessions int) (*KeyReader, error) {
	if err := record.Core.Verify(key); err != nil {
		return nil, err
	}
	if sessions <= 0 {
		sessions = DefaultSessions
	}
	core, err := record.Core.Append(nil)
	if err != nil {
		return nil, err
	}
	own := newSecret(*key.s.b)
	return &KeyReader{
		id: record.Core.ID(), core: core, max: sessions,
		key: DataKey{s: own}, sessions: make(map[sessionKey]*list.Element),
	}, nil
}

// KeyID returns the ID of the key the reader opens with.
func (r *KeyReader) KeyID() KeyID { return r.id }

// Open appends meta and payload of e to dst and returns views of them. A dst
// with room for len(e.Sealed) bytes makes it allocation-free once the session
// is known. e is never written to.
//
// Any failure to authenticate is [ErrTampered], including an inline record
// whose core is not the one of the key; the wraps of an inline record are not
// authenticated by the envelope, see [Envelope.CheckRecord]. A dst whose free
// capacity overlaps e, and a closed reader, are [ErrInvalid]. Only sessions that
// opened a message are kept.
func (r *KeyReader) Open(dst []byte, e *Envelope) (Opened, error) {
	if e.KeyID != r.id {
		return Opened{}, fmt.Errorf("%w: envelope of another key than the reader's", ErrTampered)
	}
	if e.Flags&^knownFlags != 0 || (len(e.Record) != 0) != (e.Flags&FlagRecord != 0) {
		return Opened{}, fmt.Errorf("%w: not an envelope that was parsed", ErrMalformed)
	}
	if len(e.Record) != 0 {
		core, _, err := splitRecord(e.Record)
		if err != nil || !bytes.Equal(core, r.core) {
			return Opened{}, ErrTampered
		}
	}
	start, n := len(dst), len(e.Sealed)-NonceSize-TagSize
	if n < metaFixedSize {
		return Opened{}, ErrTampered
	}
	if n <= cap(dst)-start {
		if out := dst[start : start+n]; overlap(out, e.Sealed) || overlap(out, e.Record) {
			return Opened{}, errOverlap
		}
	}
	s, known, err := r.session(sessionKey{e.Suite, e.Salt})
	if err != nil {
		return Opened{}, err
	}
	out, err := s.aead.Open(dst, nil, e.Sealed, aad(e.Flags))
	if err != nil {
		return Opened{}, ErrTampered
	}
	if !known {
		r.keep(s)
	}
	var o Opened
	plain := out[start:len(out):len(out)]
	payload, ok := o.Meta.parse(plain, e.Flags&FlagLayered != 0)
	if !ok {
		clear(plain)
		return Opened{}, ErrTampered
	}
	o.Payload = payload
	return o, nil
}

// session returns the cipher of a session: a kept one, or one derived for this
// call only. Envelopes whose nonce was a counter open with it as well, in every
// FIPS mode.
func (r *KeyReader) session(k sessionKey) (s *readSession, known bool, err error) {
	if s := r.last.Load(); s != nil && s.key == k {
		return s, true, nil
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil, false, fmt.Errorf("%w: the reader is closed", ErrInvalid)
	}
	if el := r.sessions[k]; el != nil {
		s := el.Value.(*readSession)
		r.recent.MoveToFront(el)
		r.last.Store(s)
		r.mu.Unlock()
		return s, true, nil
	}
	key := newSecret(*r.key.s.b) // a copy, so that deriving holds no lock
	r.mu.Unlock()
	defer clear(key.b[:])
	sub := sessionSubkey(DataKey{s: key}, k.suite, r.id, k.salt)
	defer clear(sub.b[:])
	aead, err := newAEAD(sub, true)
	if err != nil {
		return nil, false, err
	}
	return &readSession{k, aead}, false, nil
}

func (r *KeyReader) keep(s *readSession) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.sessions[s.key] != nil {
		return
	}
	r.sessions[s.key] = r.recent.PushFront(s)
	r.last.Store(s)
	if r.recent.Len() > r.max {
		last := r.recent.Back()
		delete(r.sessions, last.Value.(*readSession).key)
		r.recent.Remove(last)
	}
}

// Close clears the key and drops every session derived from it. Later opens
// fail with [ErrInvalid]. Safe to call twice.
func (r *KeyReader) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.key.Clear()
	r.last.Store(nil)
	clear(r.sessions)
	r.recent.Init()
}
