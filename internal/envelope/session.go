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

// GrantFromParts rebuilds a grant received from a key service. It copies its
// arguments; clear subkey afterwards. Errors: those of [ParseRecord], and
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

// ExposeGrant returns copies of what a key service sends to a sealer. Like
// [ExposeDataKey] it is out of reach of applications. Clear subkey afterwards.
func ExposeGrant(g *Grant) (record []byte, salt Salt, subkey []byte) {
	return slices.Clone(g.record), g.salt, slices.Clone(g.subkey.b[:])
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
// counter is its own. It is never persisted, copied or restarted.
type Session struct {
	redacted
	aead   cipher.AEAD
	id     KeyID
	salt   Salt
	record []byte
	cfg    SessionConfig
	nonce  [NonceSize]byte // a field: a local would escape through the interface
	sealed uint64          // messages so far, and the next counter nonce
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
	return &Session{aead: aead, id: g.id, salt: g.salt, record: g.record, cfg: cfg}, nil
}

func newAEAD(k *secret, random bool) (cipher.AEAD, error) {
	block, err := aes.NewCipher(k.b[:])
	if err != nil {
		return nil, fmt.Errorf("preparing cipher: %w", err)
	}
	if random {
		return cipher.NewGCMWithRandomNonce(block)
	}
	return cipher.NewGCM(block)
}

// KeyID returns the ID of the session's data key.
func (s *Session) KeyID() KeyID { return s.id }

// Salt returns the session's salt.
func (s *Session) Salt() Salt { return s.salt }

// Sealed returns how many messages and bytes (meta and payload) were sealed.
func (s *Session) Sealed() (messages, bytes uint64) { return s.sealed, s.bytes }

// Close drops the cipher; Seal then answers [ErrSessionEnded].
func (s *Session) Close() { s.aead, s.closed = nil, true }

// Seal appends the envelope of (m, payload) to dst and returns the result, as
// append does; a dst with room makes it allocation-free. payload must not
// overlap dst's free capacity. On an error dst's contents up to its length are
// untouched, nothing of the session is spent and nil is returned:
// [ErrInvalid] for a meta that breaks a maximum, [ErrSessionEnded] at a limit.
func (s *Session) Seal(dst []byte, m *Meta, payload []byte) ([]byte, error) {
	size, err := m.size()
	if err != nil {
		return nil, err
	}
	pad := 0
	if s.cfg.PadTo > 1 {
		if over := (size + len(payload)) % s.cfg.PadTo; over != 0 {
			pad = s.cfg.PadTo - over
		}
	}
	plain := size + pad + len(payload)
	if s.closed || s.sealed >= s.cfg.MaxMessages || uint64(plain) > s.cfg.MaxBytes-s.bytes {
		return nil, fmt.Errorf("%w after %d messages", ErrSessionEnded, s.sealed)
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
	// Spend the counter before it is used: whatever happens below, this nonce
	// never comes again.
	binary.BigEndian.PutUint64(s.nonce[4:], s.sealed)
	s.sealed++
	s.bytes += uint64(plain)

	dst = slices.Grow(dst, HeaderSize+len(record)+NonceSize+plain+TagSize)
	dst = appendHeader(dst, SuiteHKDFSHA256AES256GCM, flags, len(record), &s.id, &s.salt)
	dst = append(dst, record...)
	if s.cfg.RandomNonce {
		// The AEAD writes nonce || ciphertext and moves the plaintext up itself.
		start := len(dst)
		dst = m.append(dst, pad)
		dst = append(dst, payload...)
		return s.aead.Seal(dst[:start], nil, dst[start:], aad(flags)), nil
	}
	dst = append(dst, s.nonce[:]...)
	start := len(dst)
	dst = m.append(dst, pad)
	dst = append(dst, payload...)
	return s.aead.Seal(dst[:start], s.nonce[:], dst[start:], aad(flags)), nil
}

// SealedSize returns how long the envelope of (m, n payload bytes) can be at
// most in this session, or [ErrInvalid] for a meta that cannot be sealed.
func (s *Session) SealedSize(m *Meta, n int) (int, error) {
	size, err := m.size()
	if err != nil {
		return 0, err
	}
	if s.cfg.PadTo > 1 {
		size += s.cfg.PadTo - 1
	}
	return HeaderSize + len(s.record) + NonceSize + size + n + TagSize, nil
}
