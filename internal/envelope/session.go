package envelope

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"sync/atomic"
	"unsafe"
)

// Hard limits of one session, whatever its configuration says.
const (
	MaxSessionMessages = 1 << 32
	MaxSessionBytes    = 64 << 30
)

// InlineEvery is how often [RecordAuto] carries the key record: in the first
// message of a session and in every InlineEvery-th after it.
const InlineEvery = 1024

// RecordMode says where the key record travels.
type RecordMode uint8

const (
	RecordAuto      RecordMode = iota // inline in the first message and every InlineEvery-th, else by reference
	RecordInline                      // in every message: self-contained
	RecordReference                   // never: readers resolve the key ID through the key service
)

func (m RecordMode) String() string {
	switch m {
	case RecordAuto:
		return "auto"
	case RecordInline:
		return "inline"
	case RecordReference:
		return "reference"
	}
	return fmt.Sprintf("RecordMode(%d)", uint8(m))
}

// ParseRecordMode parses "auto", "inline" or "reference"; anything else is [ErrInvalid].
func ParseRecordMode(s string) (RecordMode, error) {
	for m := RecordAuto; m <= RecordReference; m++ {
		if m.String() == s {
			return m, nil
		}
	}
	return 0, fmt.Errorf("%w: record mode %q, want auto, inline or reference", ErrInvalid, s)
}

// Grant is the right to seal one session under one data key: a salt and a
// subkey, never the data key. Its holder cannot open what another session
// sealed. It is used up by [Grant.Session].
type Grant struct {
	redacted
	id     KeyID
	salt   Salt
	record []byte
	subkey *secret
	used   atomic.Bool
}

// NewGrant draws a session salt and derives its subkey from key, which must
// match the commitment of record ([ErrWrongKey]).
func NewGrant(key DataKey, record *Record) (*Grant, error) {
	if err := record.Core.Verify(key); err != nil {
		return nil, err
	}
	raw, err := record.Append(nil)
	if err != nil {
		return nil, err
	}
	g := &Grant{id: record.Core.ID(), record: raw}
	rand.Read(g.salt[:])
	g.subkey = sessionSubkey(key, SuiteHKDFSHA256AES256GCM, g.id, g.salt)
	return g, nil
}

// GrantFromParts rebuilds a grant received from a key service; do it once for
// each grant received, since two sessions with one salt would repeat nonces. It
// copies its arguments; clear subkey afterwards. Errors: those of [ParseRecord], and
// [ErrInvalid] for a subkey of wrong length or all zero.
func GrantFromParts(record []byte, salt Salt, subkey []byte) (*Grant, error) {
	r, err := ParseRecord(record)
	if err != nil {
		return nil, err
	}
	k, err := NewDataKey(subkey) // the same rules: 32 bytes, not zero
	if err != nil {
		return nil, fmt.Errorf("reading session subkey: %w", err)
	}
	return &Grant{id: r.Core.ID(), salt: salt, record: slices.Clone(record), subkey: k.s}, nil
}

// ExposeGrant returns copies of what a key service sends to a sealer, and uses
// the grant up, since two sessions with one salt would repeat nonces: of a used
// grant it returns no subkey. Like [ExposeDataKey] it is out of reach of
// applications. Clear subkey afterwards.
func ExposeGrant(g *Grant) (record []byte, salt Salt, subkey []byte) {
	if !g.used.Swap(true) {
		subkey = slices.Clone(g.subkey.b[:])
		clear(g.subkey.b[:])
	}
	return slices.Clone(g.record), g.salt, subkey
}

// KeyID returns the ID of the data key the grant belongs to.
func (g *Grant) KeyID() KeyID { return g.id }

// SessionConfig says how a session seals. The zero value seals with counter
// nonces (random ones in FIPS mode), without padding, records by RecordAuto.
type SessionConfig struct {
	Record RecordMode
	// RandomNonce draws every nonce from crypto/rand. It is forced when
	// fips140.Enabled(), and right for hosts that may be snapshotted: a restored
	// snapshot repeats a counter.
	RandomNonce bool
	// PadTo pads meta and payload to a multiple of this many bytes, which hides
	// sizes. 0: no padding. At most MaxPadTo; 128 is also fast.
	PadTo int
	// MaxMessages and MaxBytes end the session earlier than its hard limits;
	// 0 means the hard limit. MaxBytes counts meta and payload.
	MaxMessages, MaxBytes uint64
}

// Session seals messages under one subkey. It belongs to one goroutine: its
// counter is its own. It is never persisted, copied or restarted: a copy, which
// would repeat nonces, and the zero Session answer [ErrSessionEnded].
type Session struct {
	redacted
	self   *Session // tells a copy from the original
	aead   *hidden
	header [HeaderSize]byte // of an envelope without record
	record []byte
	cfg    SessionConfig
	sealed uint64 // messages so far, and the next counter nonce
	bytes  uint64
	closed bool
}

// Session starts the session of g, once: a second call is [ErrSessionEnded],
// since two sessions with one salt would repeat nonces. The grant's subkey is cleared.
func (g *Grant) Session(cfg SessionConfig) (*Session, error) {
	if cfg.PadTo < 0 || cfg.PadTo > MaxPadTo || cfg.Record > RecordReference {
		return nil, fmt.Errorf("%w: pad to %d, record mode %v", ErrInvalid, cfg.PadTo, cfg.Record)
	}
	if g.used.Swap(true) {
		return nil, fmt.Errorf("%w: the grant was used before", ErrSessionEnded)
	}
	defer clear(g.subkey.b[:])
	cfg.RandomNonce = cfg.RandomNonce || fips140.Enabled()
	if cfg.MaxMessages == 0 || cfg.MaxMessages > MaxSessionMessages {
		cfg.MaxMessages = MaxSessionMessages
	}
	if cfg.MaxBytes == 0 || cfg.MaxBytes > MaxSessionBytes {
		cfg.MaxBytes = MaxSessionBytes
	}
	aead, err := newAEAD(g.subkey, cfg.RandomNonce)
	if err != nil {
		return nil, err
	}
	s := &Session{aead: aead, record: g.record, cfg: cfg}
	s.self = s
	empty := Envelope{Suite: SuiteHKDFSHA256AES256GCM, KeyID: g.id, Salt: g.salt}
	empty.Append(s.header[:0])
	return s, nil
}

func newAEAD(k *secret, random bool) (*hidden, error) {
	block, err := aes.NewCipher(k.b[:])
	if err != nil {
		return nil, fmt.Errorf("preparing cipher: %w", err)
	}
	newGCM := cipher.NewGCM
	if random {
		newGCM = cipher.NewGCMWithRandomNonce
	}
	aead, err := newGCM(block)
	if err != nil {
		return nil, fmt.Errorf("preparing cipher: %w", err)
	}
	return &hidden{aead}, nil
}

// KeyID returns the ID of the session's data key.
func (s *Session) KeyID() KeyID { return KeyID(s.header[8:40]) }

// Salt returns the session's salt.
func (s *Session) Salt() Salt { return Salt(s.header[40:56]) }

// Sealed returns how many messages and bytes (meta and payload) were sealed.
func (s *Session) Sealed() (messages, bytes uint64) { return s.sealed, s.bytes }

// Close drops the cipher; Seal then answers [ErrSessionEnded].
func (s *Session) Close() { s.aead, s.closed = nil, true }

// Seal appends the envelope of (m, payload) to dst and returns the result, as
// append does; a dst with room for [Session.SealedSize] bytes makes it
// allocation-free. On an error dst's contents up to its length are untouched,
// nothing of the session is spent and nil is returned: [ErrInvalid] for a meta
// or an envelope that breaks a maximum or exceeds MaxBytes all by itself, or a
// payload that overlaps the bytes to be written; [ErrSessionEnded] at a limit,
// and from then on.
func (s *Session) Seal(dst []byte, m *Meta, payload []byte) ([]byte, error) {
	l, err := m.measure()
	if err != nil {
		return nil, err
	}
	if len(payload) > MaxSize {
		return nil, outOfRange("payload", len(payload), 0, MaxSize)
	}
	plain, pad := l.size+len(payload), 0
	if s.cfg.PadTo > 1 {
		if over := plain % s.cfg.PadTo; over != 0 {
			pad = s.cfg.PadTo - over
			plain += pad
		}
	}
	if uint64(plain) > s.cfg.MaxBytes-s.bytes || s.sealed >= s.cfg.MaxMessages || s.closed || s.self != s {
		return nil, s.refuse(plain)
	}
	flags := Flags(0)
	var record []byte
	if s.cfg.Record == RecordInline || s.cfg.Record == RecordAuto && s.sealed%InlineEvery == 0 {
		flags |= FlagRecord
		record = s.record
	}
	if s.cfg.RandomNonce {
		flags |= FlagRandomNonce
	}
	if m.Layered {
		flags |= FlagLayered
	}
	start, front := len(dst), HeaderSize+len(record)
	size := front + NonceSize + plain + TagSize
	if size > MaxSize {
		return nil, outOfRange("envelope", size, MinSize, MaxSize)
	}
	dst = slices.Grow(dst, size)
	out := dst[start : start+size]
	if overlap(out, payload) {
		return nil, errOverlap
	}
	// Spend the counter before it is used: whatever happens below, this nonce
	// never comes again.
	counter := s.sealed
	s.sealed++
	s.bytes += uint64(plain)

	*(*[HeaderSize]byte)(out) = s.header
	out[4] = byte(flags)
	if len(record) > 0 {
		binary.BigEndian.PutUint16(out[6:], uint16(len(record)))
		copy(out[HeaderSize:], record)
	}
	text, nonce := out[front:], []byte(nil)
	if !s.cfg.RandomNonce {
		nonce, text = text[:NonceSize], text[NonceSize:]
		binary.BigEndian.PutUint32(nonce, 0)
		binary.BigEndian.PutUint64(nonce[4:], counter)
	} // else the AEAD writes nonce || ciphertext itself and moves the plaintext up
	copy(m.put(text, l, pad), payload)
	s.aead.Seal(text[:0], nonce, text[:plain], aad(flags))
	return dst[:start+size], nil
}

// refuse ends the session, unless its very first message could not be sealed either.
func (s *Session) refuse(plain int) error {
	if !s.closed && s.self == s && uint64(plain) > s.cfg.MaxBytes {
		return fmt.Errorf("%w: %d bytes of meta and payload, the whole session may seal %d", ErrInvalid, plain, s.cfg.MaxBytes)
	}
	s.Close()
	return fmt.Errorf("%w after %d messages", ErrSessionEnded, s.sealed)
}

var errOverlap = fmt.Errorf("%w: input and output share memory", ErrInvalid)

// SealedSize returns how long the envelope of (m, n payload bytes) can be at
// most in this session, or [ErrInvalid] for a meta that cannot be sealed.
func (s *Session) SealedSize(m *Meta, n int) (int, error) {
	l, err := m.measure()
	if err != nil {
		return 0, err
	}
	if s.cfg.PadTo > 1 {
		l.size += s.cfg.PadTo - 1
	}
	return HeaderSize + len(s.record) + NonceSize + l.size + n + TagSize, nil
}

// overlap reports whether a and b share memory.
func overlap(a, b []byte) bool {
	return len(a) > 0 && len(b) > 0 &&
		uintptr(unsafe.Pointer(&a[0])) <= uintptr(unsafe.Pointer(&b[len(b)-1])) &&
		uintptr(unsafe.Pointer(&b[0])) <= uintptr(unsafe.Pointer(&a[len(a)-1]))
}
