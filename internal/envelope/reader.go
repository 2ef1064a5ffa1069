package envelope

import (
	"bytes"
	"container/list"
	"crypto/cipher"
	"fmt"
	"sync"
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
	aead cipher.AEAD
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
	own := &secret{key.s.b}
	return &KeyReader{
		id: record.Core.ID(), core: core, max: sessions,
		key: DataKey{s: own}, sessions: make(map[sessionKey]*list.Element),
	}, nil
}

// KeyID returns the ID of the key the reader opens with.
func (r *KeyReader) KeyID() KeyID { return r.id }

// Open appends meta and payload of e to dst and returns views of them. A dst
// with room for len(e.Sealed) bytes makes it allocation-free once the session
// is known. e is never written to and must not overlap dst's free capacity.
//
// Any failure to authenticate is [ErrTampered], including an inline record
// whose core is not the one of the key. Only sessions that opened a message are kept.
func (r *KeyReader) Open(dst []byte, e *Envelope) (Opened, error) {
	if e.KeyID != r.id {
		return Opened{}, fmt.Errorf("%w: envelope of key %s given to the reader of another", ErrTampered, e.KeyID)
	}
	if e.Record != nil {
		core, _, err := splitRecord(e.Record)
		if err != nil || !bytes.Equal(core, r.core) {
			return Opened{}, ErrTampered
		}
	}
	key := sessionKey{e.Suite, e.Salt}
	aead, known, err := r.session(key)
	if err != nil {
		return Opened{}, err
	}
	start := len(dst)
	out, err := aead.Open(dst, nil, e.Sealed, aad(e.Flags))
	if err != nil {
		return Opened{}, ErrTampered
	}
	if !known {
		r.keep(key, aead)
	}
	plain := out[start:]
	meta, payload, err := parseMeta(plain, e.Flags&FlagLayered != 0)
	if err != nil {
		clear(plain)
		return Opened{}, err
	}
	return Opened{Meta: meta, Payload: payload}, nil
}

// session returns the cipher of a session: a kept one, or one derived for this
// call only. Envelopes whose nonce was a counter open with it as well, in every
// FIPS mode.
func (r *KeyReader) session(k sessionKey) (aead cipher.AEAD, known bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, false, fmt.Errorf("%w: the reader is closed", ErrInvalid)
	}
	if el := r.sessions[k]; el != nil {
		r.recent.MoveToFront(el)
		return el.Value.(*readSession).aead, true, nil
	}
	sub := sessionSubkey(r.key, k.suite, r.id, k.salt)
	defer clear(sub.b[:])
	aead, err = newAEAD(sub, true)
	return aead, false, err
}

func (r *KeyReader) keep(k sessionKey, aead cipher.AEAD) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.sessions[k] != nil {
		return
	}
	r.sessions[k] = r.recent.PushFront(&readSession{k, aead})
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
	clear(r.sessions)
	r.recent.Init()
}
